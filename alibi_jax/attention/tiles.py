"""The tiles of the Triton kernels (pallas_gpu.py): of each pass's candidates the first that a card's shared memory holds."""

from collections.abc import Sequence
from typing import NamedTuple

KIB = 1024
# The most shared memory of a thread block, KiB, by compute capability (NVIDIA, CUDA C++ Programming Guide, technical
# specifications per compute capability). Before 8.0 there is no asynchronous copy, nor a product of bfloat16.
SHARED_MEMORY = {
    (8, 0): 163,
    (8, 6): 99,
    (8, 7): 163,
    (8, 9): 99,
    (9, 0): 227,
    (10, 0): 227,
    (10, 3): 227,
    (11, 0): 227,
    (12, 0): 99,
    (12, 1): 99,
}
OLDEST = min(SHARED_MEMORY)


class Tiles(NamedTuple):
    """The queries and keys of a block, and how Triton runs it."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


class PassTiles(NamedTuple):
    """The tiles of each pass."""

    forward: Tiles
    dq: Tiles
    dkv: Tiles


class Candidates(NamedTuple):
    """The tiles each pass chooses from, best first; the last fit every card."""

    forward: Sequence[Tiles]
    dq: Sequence[Tiles]
    dkv: Sequence[Tiles]


# By bytes of a number and the channels a head has at most. NVIDIA's compiler spills no register of these;
# experiments/results/gpu_compile shows others beside them. None but HOPPER's were timed.
CANDIDATES = {
    (2, 64): Candidates([Tiles(128, 64, 4, 3)], [Tiles(64, 64, 4, 2)], [Tiles(64, 64, 4, 2)]),
    (2, 128): Candidates([Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2)], [Tiles(64, 64, 8, 2)], [Tiles(64, 64, 8, 2)]),
    (4, 64): Candidates([Tiles(32, 16, 4, 2)], [Tiles(32, 32, 4, 2)], [Tiles(32, 32, 4, 2)]),
    (4, 128): Candidates([Tiles(16, 16, 4, 3)], [Tiles(32, 32, 8, 2)], [Tiles(32, 32, 8, 2)]),
}
# Hopper's products (wgmma) give 64 rows to 4 warps. With 8, a score takes twice the instructions (dq: 25 for 12), and no more
# warps are at work, as the registers hold half as many blocks. Of some 15 tiles a pass, an H200 was fastest with these at 8,192
# and 32,768 tokens, skipping or not, or within 3%. The forward pass of 64 channels is 2 to 11% faster at 8,192 tokens than with
# blocks of 128 queries; that of 128 channels 13% faster at 32,768 tokens than with 8 warps, and up to 6% slower at 8,192. It
# spills 40 bytes, outside its loop.
HOPPER = CANDIDATES | {
    (2, 64): Candidates([Tiles(64, 64, 4, 3)], [Tiles(64, 64, 4, 3)], [Tiles(64, 64, 4, 2)]),
    (2, 128): Candidates([Tiles(128, 64, 4, 2)], [Tiles(64, 64, 4, 2)], [Tiles(64, 64, 4, 2)]),
}


def needed_shared_memory(pass_name: str, tiles: Tiles, itemsize: int, width: int, capability: tuple[int, int]) -> int:
    """Returns an upper bound of the bytes of shared memory that a pass takes with these tiles, of heads of `width` channels.

    The arrays of the program's own block: queries (forward), queries and gradients of the output (dq), keys and values (dkv);
    buffers of the two arrays that come block after block; weights, and of dkv their gradients too; and, for dkv, log-sum-exp
    and delta. It is a bound of what XLA's Triton takes (jax 0.11.2), which tests/test_tiles.py lists.
    """
    own, in_turn = (tiles.block_k, tiles.block_q) if pass_name == "dkv" else (tiles.block_q, tiles.block_k)
    # products read blocks from registers (mma.sync; float32's multiply-adds), Hopper's (wgmma) from shared memory, and those of
    # Blackwell's data center cards (tcgen05) take one more buffer's room there
    waiting = {9: 0, 10: 1, 11: 1}.get(capability[0], -1) if itemsize == 2 else -1
    buffers = max(1, tiles.num_stages + waiting)
    rows = own * (1 if pass_name == "forward" else 2) + 2 * in_turn * buffers
    weights = tiles.block_q * tiles.block_k * (2 if pass_name == "dkv" else 1)
    return itemsize * (rows * width + weights) + 8 * tiles.block_q * buffers


def choose_tiles(itemsize: int, width: int, capability: tuple[int, int] | None) -> PassTiles:
    """Returns the tiles of each pass on a card of that compute capability, for heads of `width` channels whose numbers have
    `itemsize` bytes. A capability that is unknown (None) or too new to be in the table: tiles that fit every card."""
    padded = 64 if width <= 64 else 128
    cards = [capability] if capability in SHARED_MEMORY else SHARED_MEMORY

    def fits(pass_name: str, tiles: Tiles) -> bool:
        return all(
            needed_shared_memory(pass_name, tiles, itemsize, padded, card) <= KIB * SHARED_MEMORY[card]
            for card in cards
        )

    lists = (HOPPER if capability == (9, 0) else CANDIDATES)[itemsize, padded]._asdict()
    return PassTiles(**{name: next(each for each in some if fits(name, each)) for name, some in lists.items()})
