"""The seconds of the attention kernels: blocks counted as the kernels visit them, and bundles added up from them."""

import json

import numpy as np
import pytest

from alibi_jax.attention.reach import DEFAULT_TOLERANCE
from alibi_jax.plan import attention
from alibi_jax.plan.attention import (
    Blocks,
    Kernel,
    Visit,
    attention_seconds,
    call_bundles,
    causal_blocks,
    reached_blocks,
)
from alibi_jax.plan.chips import CHIPS
from alibi_jax.positions import alibi_slopes

PLAIN, MASKED = Visit(100, False, False, 10), Visit(150, True, False, 10)
CHECKED, CHECKED_MASKED = Visit(130, False, True, 10), Visit(190, True, True, 10)
KERNEL = Kernel(128, 128, 20, 30, 0, 0, 0, False, False, (PLAIN, MASKED, CHECKED, CHECKED_MASKED))


def counted(length, slopes, bound, tolerance, block_q, block_k) -> tuple[int, int]:
    """Visits that need no mask, and that need one, pair by pair; the reach in float64, from the bound of its module."""
    unmasked = masked = 0
    for slope in np.float64(slopes):
        tokens = max((bound - np.log(tolerance) - np.log(-np.expm1(-slope))) / slope, 1)
        for query in range(0, length, block_q):
            for key in range(0, length, block_k):
                reached = key + block_k - 1 > query - np.ceil(tokens)
                if reached and key < query + block_q:
                    needs = key + block_k - 1 > query
                    masked, unmasked = masked + needs, unmasked + (not needs)
    return unmasked, masked


def by_mask(blocks: Blocks) -> tuple[float, float]:
    return tuple(blocks.visits[masked, False] + blocks.visits[masked, True] for masked in (False, True))


@pytest.mark.parametrize("blocks", [(128, 128), (256, 128), (128, 384)], ids=str)
@pytest.mark.parametrize("bound", [0.0, 6.0])
def test_blocks_are_those_of_a_count_pair_by_pair(blocks, bound):
    slopes, tolerance = alibi_slopes(4), DEFAULT_TOLERANCE["bfloat16"]
    reached = reached_blocks(1536, slopes, bound, tolerance, *blocks)
    assert by_mask(reached) == counted(1536, slopes, bound, tolerance, *blocks)
    assert (reached.query_blocks, reached.key_blocks) == (1536 // blocks[0], 1536 // blocks[1])
    every = causal_blocks(1536, 4, *blocks)
    assert by_mask(every) == counted(1536, [1e-9] * 4, bound, tolerance, *blocks)
    assert reached.visited < every.visited


@pytest.mark.parametrize(("bound", "heads"), [(6.0, [False, True, True, True]), (40.0, [True] * 4), (0.0, [False] * 4)])
def test_heads_keep_a_running_maximum_where_bits_could_be_lost(bound, heads):
    """93 bits: 2 x bound x log2(e), and slope x log2(e) over the block's other 511 queries."""
    slopes = np.array([2.0**-8, 2.0**-3, 0.5, -0.1]) if bound else np.full(4, 2.0**-4)
    for slope, keeps in zip(slopes, heads, strict=True):
        visits = reached_blocks(1024, slope[None], bound, 2.0**-13, 512, 512).visits
        assert visits[True, keeps] == 2 and visits[True, not keeps] == visits[False, not keeps] == 0


def test_bundles_are_those_of_the_regions_visited():
    blocks = Blocks(2, query_blocks=3, key_blocks=4, visits={(False, False): 5, (True, False): 6})
    assert call_bundles(KERNEL, blocks) == 6 * 50 + 5 * 110 + 6 * 160
    keeps = blocks._replace(visits={(False, True): 5, (True, True): 6})
    assert call_bundles(KERNEL, keeps) == 6 * 50 + 5 * 140 + 6 * 200
    assert call_bundles(KERNEL._replace(by_keys=True, last=7), blocks) == 8 * 50 + 6 * 7 + 5 * 110 + 6 * 160
    assert call_bundles(KERNEL._replace(every_pair=True), blocks) == 6 * 50 + 5 * 110 + 6 * 160 + (24 - 11) * 10
    assert call_bundles(KERNEL._replace(visits=(CHECKED_MASKED,)), blocks) == 6 * 50 + 11 * 200
    backward = KERNEL._replace(visits=(PLAIN, MASKED._replace(bundles=90)))
    assert backward.visit(False, True) == PLAIN and backward.visit(True, True).bundles == 90, "each for its own blocks"


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Figures of one chip: a forward kernel, and backward ones of two lengths."""
    visits = [PLAIN._asdict(), MASKED._asdict()]
    row = {"chip": "v5p", "pass_name": "forward", "width": 128, "dtype": "bfloat16", "length": 1024}
    row |= KERNEL._asdict() | {"visits": visits}
    rows = [
        row,
        row | {"pass_name": "backward", "start": 0},
        row | {"pass_name": "backward", "length": 4096, "start": 120},
    ]
    path = tmp_path / "bundles.json"
    path.write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(attention, "FIGURES", path)
    attention._rows.cache_clear()
    yield
    attention._rows.cache_clear()


def test_seconds_are_bundles_over_the_clock_of_both_cores(figures):
    def seconds(length=1024, **options):
        return attention_seconds("v5p", 4, 128, "bfloat16", 2, length, passes=("forward",), **options)

    rate = CHIPS["v5p"].clock * 2
    assert seconds() == pytest.approx(8 * (8 * 50 + 28 * 110 + 8 * 160) / rate)
    assert seconds(share=0.5) == pytest.approx(8 * (8 * 50 + 10 * 110 + 8 * 160) / rate)
    assert seconds(share=0.0) == pytest.approx(8 * 8 * 50 / rate)


def test_seconds_are_no_less_than_the_products_take_at_the_peak(figures):
    attention._rows()[0]["products"] = 100  # the forward kernel's, until the fixture reads its file anew
    forward = attention_seconds("v5p", 4, 128, "bfloat16", 2, 1024, passes=("forward",))
    assert forward == pytest.approx(8 * 36 * 100 * 2 * 128**3 / CHIPS["v5p"].flops)


def test_seconds_are_of_the_next_width_and_of_the_length_compiled_for(figures):
    one = attention_seconds("v5p", 1, 80, "bfloat16", 1, 2048, passes=("backward",), share=0.0)
    assert one == pytest.approx(16 * 30 / CHIPS["v5p"].clock / 2)
    long = attention_seconds("v5p", 1, 80, "bfloat16", 1, 4096, passes=("backward",), share=0.0)
    assert long == pytest.approx(32 * 150 / CHIPS["v5p"].clock / 2)


@pytest.mark.parametrize(
    "unknown", [("v5e", 128, "bfloat16"), ("v5p", 256, "bfloat16"), ("v5p", 128, "float32")], ids=str
)
def test_seconds_of_what_was_not_compiled_are_none(figures, unknown):
    chip, width, dtype = unknown
    assert attention_seconds(chip, 4, width, dtype, 1, 1024) is None


def test_a_tensor_cores_clock_times_its_arrays_is_the_published_peak():
    """v5e and v5p: four arrays of 128 x 128 a core, two operations each and cycle."""
    for name in ("v5e", "v5p"):
        chip = CHIPS[name]
        assert chip.clock * chip.cores * 4 * 128 * 128 * 2 == pytest.approx(chip.flops, rel=0.003)
