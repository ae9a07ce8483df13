"""With which tiles the Triton kernels serve which card."""

import pytest

from alibi_jax.attention.tiles import (
    CANDIDATES,
    KIB,
    SHARED_MEMORY,
    PassTiles,
    Tiles,
    choose_tiles,
    needed_shared_memory,
)

# Bytes of shared memory of a thread block as XLA's compiler for CUDA reported them without a GPU (jax 0.11.2, ptxas 13.5):
# capability, pass, bytes of a number, channels of a head, tiles.
MEASURED = [
    ((8, 0), "forward", 2, 64, Tiles(128, 64, 4, 3), 49_152),
    ((8, 0), "forward", 2, 128, Tiles(64, 64, 4, 2), 57_344),
    ((8, 0), "dq", 2, 128, Tiles(128, 64, 8, 3), 131_072),
    ((8, 0), "dq", 2, 128, Tiles(64, 64, 4, 2), 73_728),
    ((8, 0), "dkv", 2, 128, Tiles(64, 64, 8, 2), 74_240),
    ((8, 6), "forward", 2, 64, Tiles(32, 32, 4, 1), 10_240),
    ((8, 6), "forward", 2, 128, Tiles(128, 64, 8, 3), 98_304),
    ((8, 6), "dkv", 2, 128, Tiles(128, 64, 8, 3), 182_272),
    ((8, 9), "dq", 2, 128, Tiles(64, 64, 8, 2), 73_728),
    ((9, 0), "forward", 2, 64, Tiles(64, 128, 4, 2), 73_728),
    ((9, 0), "forward", 2, 128, Tiles(128, 128, 8, 3), 229_376),
    ((9, 0), "dq", 2, 128, Tiles(128, 128, 8, 2), 196_608),
    ((9, 0), "dkv", 2, 64, Tiles(64, 64, 4, 1), 40_960),
    ((9, 0), "dkv", 2, 64, Tiles(32, 64, 4, 3), 37_376),
    ((9, 0), "dkv", 2, 128, Tiles(128, 128, 8, 2), 230_400),
    ((9, 0), "forward", 4, 128, Tiles(16, 16, 4, 2), 25_664),
    ((9, 0), "dq", 4, 128, Tiles(64, 32, 8, 2), 106_496),
    ((9, 0), "dkv", 4, 128, Tiles(32, 32, 8, 2), 73_984),
    ((10, 0), "forward", 2, 128, Tiles(128, 64, 8, 3), 132_096),
    ((10, 0), "dq", 2, 128, Tiles(128, 64, 8, 3), 181_248),
    ((10, 0), "dkv", 2, 128, Tiles(64, 64, 8, 2), 139_860),
    ((12, 0), "forward", 2, 128, Tiles(64, 64, 4, 2), 57_344),
    ((12, 0), "dkv", 2, 128, Tiles(128, 64, 8, 3), 182_272),
]


@pytest.mark.parametrize("measured", MEASURED, ids=lambda case: "-".join(map(str, case[:4])) + f"-{tuple(case[4])}")
def test_the_rule_bounds_the_shared_memory_the_compiler_takes(measured):
    """And by no more than half above it, or tiles that fit would be left out."""
    capability, pass_name, itemsize, width, tiles, taken = measured
    bound = needed_shared_memory(pass_name, tiles, itemsize, width, capability)
    assert taken <= bound <= 1.5 * taken


@pytest.mark.parametrize("capability", SHARED_MEMORY, ids=str)
@pytest.mark.parametrize("width", [16, 64, 80, 128])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_the_shared_memory_of_the_card(itemsize, width, capability):
    for card in (capability, (13, 0), None):  # a card that nobody knows may be any
        for name, tiles in choose_tiles(itemsize, width, card)._asdict().items():
            needed = needed_shared_memory(name, tiles, itemsize, 64 if width <= 64 else 128, capability)
            assert needed <= SHARED_MEMORY[capability] * KIB


def test_hopper_alone_gives_64_rows_of_128_channels_to_4_warps():
    few, many = Tiles(64, 64, 4, 2), Tiles(64, 64, 8, 2)
    for capability, expected in {(9, 0): few, (8, 0): many, (8, 9): many, (10, 0): many, None: many}.items():
        assert choose_tiles(2, 128, capability)[1:] == (expected, expected)


@pytest.mark.parametrize(("itemsize", "width"), CANDIDATES)
def test_a_card_takes_the_first_tiles_that_fit(itemsize, width, monkeypatch):
    large, small = Tiles(256, 256, 8, 2), Tiles(16, 16, 4, 2)
    monkeypatch.setitem(CANDIDATES, (itemsize, width), PassTiles([large, small], [small, large], [large, small]))
    assert choose_tiles(itemsize, width, (8, 9)) == (small, small, small)
    monkeypatch.setitem(SHARED_MEMORY, (8, 9), 10_000)
    assert choose_tiles(itemsize, width, (8, 9)) == (large, small, large)
    assert choose_tiles(itemsize, width, None) == (small, small, small)
