"""The shapes of attention that tests and benchmarks share."""

from typing import NamedTuple


class Shape(NamedTuple):
    """q [batch, queries, heads, width], k and v [batch, keys, key_heads, width]; query t at position q_offset + t."""

    batch: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    width: int
    q_offset: int = 0
    causal: bool = True


# No block divides most of them; heads that are no power of two, heads that share keys, queries at the end of a cache.
SHAPES = {
    "one block": Shape(2, 128, 128, 4, 4, 16),
    "odd": Shape(1, 300, 300, 3, 3, 8),
    "one token": Shape(2, 1, 1, 1, 1, 4),
    "decoding": Shape(1, 1, 257, 2, 2, 8, 256),
    "end of a cache": Shape(1, 70, 333, 2, 2, 8, 263),
    "after a prefix": Shape(2, 130, 200, 3, 3, 8, 10),
    "past the keys": Shape(1, 40, 30, 2, 2, 8, 5),
    "encoder": Shape(1, 200, 150, 2, 2, 8, 0, False),
    "grouped": Shape(2, 150, 150, 6, 2, 16),
    "several blocks": Shape(1, 1300, 1300, 3, 1, 8),
}
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)  # what is timed, tokens
TPU_SHAPES = [Shape(1, 8192, 8192, 8, 8, width) for width in (64, 128)]  # compiled ahead of time
GPU_SHAPES = [Shape(1, length, length, 16, 16, width) for width in (64, 128) for length in (2048, 8192, 32768, 131072)]
