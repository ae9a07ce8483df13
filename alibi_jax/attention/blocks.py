"""The length of the blocks of queries and keys in which attention is computed."""

# On a CPU, XLA runs products of this size on all cores, of 128 on one. On a TPU 1,024 fits too, and 2,048 overflows the VMEM of
# v5e and v5p. (Blocks on a GPU have sizes of their own, which fit its registers.)
BLOCK = 512


def block_size(length: int, multiple: int) -> int:
    """Returns a multiple of `multiple`, about BLOCK at most, with which as little as possible of `length` tokens is padding."""
    blocks = -(-length // BLOCK)
    return -(-length // (blocks * multiple)) * multiple
