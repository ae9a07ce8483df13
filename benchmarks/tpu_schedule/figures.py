"""From the rows of a record to figures: a visit's bundles, and those of whole calls of several lengths."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from alibi_jax.attention.reach import DEFAULT_TOLERANCE
from alibi_jax.plan.attention import (
    Blocks,
    Kernel,
    call_bundles,
    causal_blocks,
    kernel_of,
    longest_within,
    reached_blocks,
)
from alibi_jax.plan.chips import CHIPS
from alibi_jax.positions import alibi_slopes

Rows = Sequence[dict[str, Any]]
SCORES = 512 * 512  # figures of a visit are for so many scores, whatever its blocks
HEADS = 8
SCORE_BOUND = 6.0  # natural; of every row of the whole calls
LENGTHS = tuple(2**power for power in range(13, 21))  # 8,192 ... 1,048,576 tokens


class Pass(NamedTuple):
    """The kernels of one pass, of an implementation at blocks of one size, compiled for one length."""

    rows: tuple[dict[str, Any], ...]

    @property
    def blocks(self) -> tuple[int, int]:
        """Returns the tokens of a block of queries, and of keys."""
        return self.rows[0]["block_q"], self.rows[0]["block_k"]

    @property
    def kernels(self) -> list[Kernel]:
        """Returns the bundles of each kernel's regions."""
        return [kernel_of(row) for row in self.rows]

    def scaled(self, bundles: float) -> float:
        """Returns the bundles for SCORES scores, of those for a visit."""
        return bundles * SCORES / (self.blocks[0] * self.blocks[1])

    def visit(self, masked: bool, maximum: bool, loop: bool) -> float:
        """Returns the bundles of a visit of all kernels, for SCORES scores; loop: with those of the loop around it."""
        visits = [kernel.visit(masked, maximum) for kernel in self.kernels]
        return self.scaled(sum(visit.bundles + loop * visit.loop for visit in visits))

    def floor(self, unit: str) -> float:
        """Returns the least bundles by one unit of the visit that needs no mask and keeps no maximum, for SCORES scores."""
        return self.scaled(sum(self._plain(row)["floors"][unit] for row in self.rows))

    def peak(self) -> float:
        """Returns the cycles that the products of SCORES scores take at the published peak of one core."""
        chip = CHIPS[self.rows[0]["chip"]]
        operations = 2 * SCORES * self.rows[0]["width"] * sum(kernel.products for kernel in self.kernels)
        return operations * chip.clock * chip.cores / chip.flops

    @property
    def spills(self) -> float:
        """Returns the stores and loads of registers that overflow in that visit, for SCORES scores."""
        return self.scaled(sum(self._plain(row)["spills"] for row in self.rows))

    def _plain(self, row: dict[str, Any]) -> dict[str, Any]:
        bundles = kernel_of(row).visit(masked=False, maximum=False).bundles
        return next(visit for visit in row["visits"] if visit["bundles"] == bundles)

    def call(self, blocks: Blocks) -> float:
        """Returns the bundles of a call of all kernels."""
        return sum(call_bundles(kernel, blocks) for kernel in self.kernels)


def passes(rows: Rows, implementation: str, chip: str, pass_name: str, width: int, dtype: str) -> list[Pass]:
    """Returns the passes of an implementation that were compiled: of each size of blocks and length one."""
    wanted = (implementation, chip, pass_name, width, dtype)
    names = "implementation", "chip", "pass_name", "width", "dtype"
    fitting = [row for row in rows if tuple(row[name] for name in names) == wanted and "refused" not in row]
    groups: dict[tuple, list] = {}
    for row in fitting:
        groups.setdefault((row["block_q"], row["block_k"], row["length"]), []).append(row)
    return [Pass(tuple(group)) for group in groups.values()]


def for_length(every: Sequence[Pass], length: int) -> Pass | None:
    """Returns the pass whose program serves a length; None of none."""
    compiled = longest_within([each.rows[0]["length"] for each in every], length)
    return next((each for each in every if each.rows[0]["length"] == compiled), None)


def best(every: Sequence[Pass]) -> Pass | None:
    """Returns the pass of the fewest bundles a score, loop included; None of none."""
    return min(every, key=lambda each: each.visit(True, False, loop=True), default=None)


def calls(rows: Rows, implementation: str, chip: str, pass_name: str, width: int, dtype: str) -> Iterator[float]:
    """Yields the bundles of whole causal calls of LENGTHS; ours skips beyond the reach. Nothing where it was not compiled."""
    every = passes(rows, implementation, chip, pass_name, width, dtype)
    for length in LENGTHS if every else ():
        if implementation == "ours":
            chosen = for_length(every, length)
            reached = alibi_slopes(HEADS), SCORE_BOUND, DEFAULT_TOLERANCE[dtype]
            yield chosen.call(reached_blocks(length, *reached, *chosen.blocks))
        else:
            chosen = best(every)
            yield chosen.call(causal_blocks(length, HEADS, *chosen.blocks))
