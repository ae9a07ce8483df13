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


# By bytes of a number and the channels a head has at most.
CANDIDATES = {
    (2, 64): Candidates([Tiles(128, 64, 4, 3)], [Tiles(64, 64, 4, 2)], [Tiles(64, 64, 4, 2)]),
    (2, 128): Candidates(
        [Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 2)],
        [Tiles(64, 64, 8, 2), Tiles(64, 32, 4, 2)],
        [Tiles(64, 64, 8, 2), Tiles(32, 64, 4, 2)],
    ),
    (4, 64): Candidates([Tiles(64, 32, 4, 2)], [Tiles(32, 32, 4, 2)], [Tiles(32, 32, 4, 2)]),
    (4, 128): Candidates([Tiles(32, 32, 4, 2)], [Tiles(32, 32, 4, 1)], [Tiles(32, 32, 4, 1)]),
}


def largest_shared_memory(capability: tuple[int, int] | None) -> int:
    """Returns the bytes of shared memory a thread block may have; the smallest of all where the capability is unknown."""
    return KIB * SHARED_MEMORY.get(capability, min(SHARED_MEMORY.values()))


def needed_shared_memory(pass_name: str, tiles: Tiles, itemsize: int, width: int) -> int:
    """Returns an upper bound of the bytes of shared memory that a pass takes with these tiles.

    Two arrays of blocks in turn, as many at once as there are stages; the arrays of the program's own block, the queries
    (forward), queries and gradients of the output (dq), or keys and values (dkv); one block of weights; and, for dkv, the
    log-sum-exp and delta of each block of queries.
    """
    own, in_turn = (tiles.block_k, tiles.block_q) if pass_name == "dkv" else (tiles.block_q, tiles.block_k)
    rows = own * (1 if pass_name == "forward" else 2) + 2 * in_turn * tiles.num_stages
    numbers = 8 * tiles.block_q * tiles.num_stages
    return itemsize * (rows * width + tiles.block_q * tiles.block_k) + numbers


def choose_tiles(itemsize: int, width: int, capability: tuple[int, int] | None) -> PassTiles:
    """Returns the tiles of each pass on a card of that compute capability (None: unknown), for heads of `width` channels whose
    numbers have `itemsize` bytes."""
    padded = 64 if width <= 64 else 128
    room = largest_shared_memory(capability)

    def first(pass_name: str, candidates: Sequence[Tiles]) -> Tiles:
        return next(each for each in candidates if needed_shared_memory(pass_name, each, itemsize, padded) <= room)

    lists = CANDIDATES[itemsize, padded]._asdict()
    return PassTiles(**{name: first(name, candidates) for name, candidates in lists.items()})
