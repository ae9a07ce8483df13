"""How long the attention kernels of a TPU take at least: the bundles of the blocks they visit, over the clock.

attention_bundles.json has the bundles of each region of the kernels, as the TPU's compiler scheduled them (written by
`python -m benchmarks.tpu_schedule`). A bundle takes one cycle or, where a copy or a result is waited for, more: v5e's backward
pass has fewer bundles than its products take cycles at the published peak. So the times are floors of these programs, the
longer of the two. Another program for the same attention could be faster.
"""

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from alibi_jax.attention.ceilings import KEEP_MAXIMUM, ceilings
from alibi_jax.attention.reach import first_key_block, reach
from alibi_jax.plan.chips import CHIPS

FIGURES = Path(__file__).with_name("attention_bundles.json")


class Visit(NamedTuple):
    """The bundles of a visit of a block of queries to a block of keys."""

    bundles: int
    masked: bool
    maximum: bool  # keeps a running maximum
    loop: int  # bundles around it: of the loop over visits, copies included


class Kernel(NamedTuple):
    """The bundles of a kernel's regions."""

    block_q: int
    block_k: int
    start: int  # of a block, before its visits
    finish: int  # after them
    last: int  # of a block of the other side, at the last visit to it
    between: int  # of one head of a group: loops between a block's and that over visits
    products: int  # of matrices, of a block of queries with one of keys, a visit
    by_keys: bool  # a block is one of keys, and its visits go to blocks of queries
    every_pair: bool  # the grid runs over all pairs of blocks, so that those not visited take `loop` bundles
    visits: tuple[Visit, ...]

    def visit(self, masked: bool, maximum: bool) -> Visit:
        """Returns the visit that serves a block: the one kept for such blocks, or else the shortest that can serve them."""
        maximum = maximum and any(visit.maximum for visit in self.visits)  # a backward pass keeps none
        same = [visit for visit in self.visits if (visit.masked, visit.maximum) == (masked, maximum)]
        able = [visit for visit in self.visits if visit.masked >= masked and visit.maximum >= maximum]
        return min(same or able, key=lambda visit: visit.bundles)


class Blocks(NamedTuple):
    """How many blocks a call has and visits."""

    heads: int
    query_blocks: int  # of a head
    key_blocks: int
    visits: dict[tuple[bool, bool], float]  # of all heads, by (masked, maximum) as in `Visit`

    @property
    def visited(self) -> float:
        """Returns all visits."""
        return sum(self.visits.values())


def causal_blocks(length: int, heads: int, block_q: int, block_k: int) -> Blocks:
    """Returns the blocks of causal attention that skips nothing, and whose bounds need no running maximum."""
    return _counted(length, block_q, block_k, np.zeros((heads, 1), np.int64), np.zeros(heads, bool))


def reached_blocks(
    length: int, slopes: np.ndarray, score_bound: float, tolerance: float, block_q: int, block_k: int
) -> Blocks:
    """Returns the blocks of causal 16-bit attention that skips what lies beyond the reach (alibi_jax.attention.reach).

    score_bound: of every row's scaled scores, natural. The nearest keys' mass is taken to be 1, that of one key at distance 0
    with a score of 0. Memory and time grow with length / block_q.
    """
    slopes = jnp.asarray(slopes, jnp.float32)
    bounds = jnp.full_like(slopes, score_bound)
    tokens = reach(bounds, slopes, tolerance)[:, None]
    positions = block_q * jnp.arange(-(-length // block_q), dtype=jnp.int32)[None]
    first = first_key_block(*jnp.broadcast_arrays(tokens, positions), block_k)
    maximum = ceilings(bounds[None, :, None], slopes, jnp.full(1, block_q - 1), block_q)[0, :, 0] == KEEP_MAXIMUM
    return _counted(length, block_q, block_k, np.asarray(first), np.asarray(maximum))


def _counted(length: int, block_q: int, block_k: int, first: np.ndarray, maximum: np.ndarray) -> Blocks:
    """Returns the blocks of rows that visit the key blocks from `first` [H, Nq or 1] to that of their last query; maximum [H]:
    which heads keep a running maximum."""
    query_blocks, key_blocks = -(-length // block_q), -(-length // block_k)
    start = block_q * np.arange(query_blocks)
    last = np.minimum((start + block_q - 1) // block_k, key_blocks - 1)
    diagonal = np.maximum((start + 1) // block_k, first)  # the first block with a key after the block's first query
    masked, visited = ((last + 1 - begin).sum(1) for begin in (diagonal, first))
    visits = {}
    for keeps in (False, True):
        heads = maximum == keeps
        visits[False, keeps] = int((visited - masked)[heads].sum())
        visits[True, keeps] = int(masked[heads].sum())
    return Blocks(len(first), query_blocks, key_blocks, visits)


def call_bundles(kernel: Kernel, blocks: Blocks) -> float:
    """Returns the bundles of one call on one core."""
    own, other = blocks.query_blocks, blocks.key_blocks
    if kernel.by_keys:
        own, other = other, own
    total = blocks.heads * (own * (kernel.start + kernel.finish + kernel.between) + other * kernel.last)
    for kind, number in blocks.visits.items():
        visit = kernel.visit(*kind)
        total += number * (visit.bundles + visit.loop)
    if kernel.every_pair:
        pairs = blocks.heads * blocks.query_blocks * blocks.key_blocks
        total += (pairs - blocks.visited) * kernel.visit(False, False).loop
    return total


def attention_seconds(
    chip_kind: str,
    heads: int,
    width: int,
    dtype: str,
    rows: int,
    length: int,
    share: float = 1.0,
    passes: Sequence[str] = ("forward", "backward"),
) -> float | None:
    """Returns the seconds that causal attention's kernels take on one device at least, without waiting for copies.

    Blocks need no running maximum, except in float32, which keeps it.
    chip_kind: a name in CHIPS. heads, rows: of queries and batch, on the device. width: of a head; one without figures is as
    the next larger. share: of the blocks of causal attention, those visited (1: nothing is skipped). Heads that share keys are
    counted as if each had its own: their gradients are written once, which saves less than one bundle in 100. None where no
    figures are committed for chip, width, dtype and pass, or the chip's clock is not known.
    """
    chip = CHIPS[chip_kind]
    kernels = [_kernels(chip_kind, name, width, dtype, length) for name in passes]
    if not all(kernels) or chip.clock is None:
        return None
    maximum = dtype == "float32"
    seconds = 0.0
    for kernel in itertools.chain(*kernels):
        blocks = _shared(kernel, length, share, maximum)
        operations = 2 * kernel.products * width * kernel.block_q * kernel.block_k * blocks.visited
        seconds += max(call_bundles(kernel, blocks) / (chip.clock * chip.cores), operations / chip.flops)
    return rows * heads * seconds * chip.devices


def _shared(kernel: Kernel, length: int, share: float, maximum: bool) -> Blocks:
    """Returns the blocks of one head that visits a share of them: those at the diagonal first."""
    every = causal_blocks(length, 1, kernel.block_q, kernel.block_k)
    visited = share * every.visited
    masked = min(every.visits[True, False], visited)
    return every._replace(visits={(False, maximum): visited - masked, (True, maximum): masked})


def _kernels(chip: str, pass_name: str, width: int, dtype: str, length: int) -> list[Kernel]:
    """Returns the kernels of a pass, of the least width committed that is no smaller, compiled for such a length."""
    fitting = [row for row in _rows() if (row["chip"], row["pass_name"], row["dtype"]) == (chip, pass_name, dtype)]
    widths = [row["width"] for row in fitting if row["width"] >= width]
    fitting = [row for row in fitting if row["width"] == min(widths, default=0)]
    compiled = longest_within([row["length"] for row in fitting], length)
    return [kernel_of(row) for row in fitting if row["length"] == compiled]


def longest_within(lengths: Sequence[int], length: int) -> int | None:
    """Returns the length whose program serves `length`: the largest up to it, or the least of all; None of none."""
    return max((each for each in lengths if each <= length), default=min(lengths, default=None))


@functools.cache
def _rows() -> list[dict]:
    return json.loads(FIGURES.read_text())["rows"] if FIGURES.exists() else []


def kernel_of(row: dict) -> Kernel:
    """Returns the kernel of a row of attention_bundles.json."""
    visits = tuple(Visit(*(visit[name] for name in Visit._fields)) for visit in row["visits"])
    return Kernel(*(row[name] for name in Kernel._fields if name != "visits"), visits)
