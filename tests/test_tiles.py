"""Which cards the Triton kernels serve, and with which tiles."""

import pytest

from alibi_jax.attention.tiles import CANDIDATES, KIB, SHARED_MEMORY, choose_tiles, needed_shared_memory

CAPABILITIES = [*SHARED_MEMORY, (13, 0), None]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("width", [16, 64, 80, 128])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_the_shared_memory_of_the_card(itemsize, width, capability):
    room = SHARED_MEMORY.get(capability, 99) * KIB  # a card nobody knows has the least
    chosen = choose_tiles(itemsize, width, capability)
    for name, tiles in chosen._asdict().items():
        assert needed_shared_memory(name, tiles, itemsize, 64 if width <= 64 else 128) <= room


def test_a_hopper_card_takes_the_first_tiles_of_every_list():
    for (itemsize, width), candidates in CANDIDATES.items():
        assert choose_tiles(itemsize, width, (9, 0)) == tuple(each[0] for each in candidates)
