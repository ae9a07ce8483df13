"""The rows of all records as one page and one plot.

python -m benchmarks.tpu_schedule.table FOLDER    # anew, from FOLDER/*.json
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from alibi_jax.evaluate.axes import png_bytes
from alibi_jax.plan.attention import FIGURES
from alibi_jax.storage import write_atomically
from benchmarks.tpu_schedule.figures import LENGTHS, Rows, best, calls, for_length, passes

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")
COLOURS = {"forward": "#D55E00", "backward": "#0072B2"}
LINES = {"ours": "-", "splash": "--"}
PASSES = ("forward", "backward")
WIDTHS = (64, 128, 256)
UNITS = ("MXU", "VALU", "VPOP", "EUP", "XLU", "VLOAD", "VSTORE")
LEGEND = """A bundle is one instruction word of the core and one cycle where nothing stalls. Counted in the programs that the
TPU's compiler writes; **nothing here has run**: waiting for copies and for results beyond what is scheduled is not in it.

A visit is the arithmetic of one block of queries with one block of keys; its bundles are given for 512 x 512 scores, whatever
the blocks. "With loop" adds what a visit takes around it: copies, counting, the branches. backward is the sum of a pass's
kernels. splash is jax's splash attention with a causal mask, which knows no bias, at our blocks and at the best of its own
(fewest bundles with loop). Masked, maximum: our visits that touch the diagonal, and those that keep a running maximum.
Floors are the least bundles by one unit alone, of our visit that needs neither, from the compiler's table of units; peak: the
cycles its products take at the published peak. Where that is more than the bundles, the core must wait."""


def line(cells: list) -> str:
    """Returns a row of a table."""
    return "| " + " | ".join(f"{cell:,.0f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def table(head: list[str], rows: list[list]) -> str:
    """Returns a table."""
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _blocks(each) -> str:
    return "{} x {}".format(*each.blocks)


def visits(rows: Rows, dtype: str) -> Iterator[list]:
    """Yields of each chip, width and pass the bundles of a visit of ours and of splash's, and the ratio."""
    for chip, width, name in itertools.product(CHIPS, WIDTHS, PASSES):
        own = for_length(passes(rows, "ours", chip, name, width, dtype), 0)
        every = passes(rows, "splash", chip, name, width, dtype)
        if own is None or not every:
            continue
        same, peer = best([each for each in every if each.blocks == own.blocks]), best(every)
        plain = [own.visit(False, False, loop) for loop in (False, True)]
        others = [own.visit(True, False, True), own.visit(False, True, True), own.visit(True, True, True)]
        beside = [same.visit(True, False, loop) for loop in (False, True)] if same else ["–", "–"]
        ratio = plain[1] / peer.visit(True, False, True)
        ratios = [f"{plain[0] / beside[0]:.2f}" if same else "–", f"{ratio:.2f}"]
        yield [
            chip,
            width,
            name,
            _blocks(own),
            *plain,
            *others,
            *beside,
            _blocks(peer),
            peer.visit(True, False, True),
            *ratios,
        ]


VISITS = ["chip", "D", "pass", "our blocks", "visit", "with loop", "masked", "maximum", "both"]
VISITS += ["splash, our blocks", "with loop", "its best blocks", "with loop", "visit / splash", "with loop / best"]


def floors(rows: Rows) -> Iterator[list]:
    """Yields of each chip, width and pass the floors of our visit, and its spills."""
    for chip, width, name in itertools.product(CHIPS, WIDTHS, PASSES):
        own = for_length(passes(rows, "ours", chip, name, width, "bfloat16"), 0)
        if own is not None:
            yield [chip, width, name, own.visit(False, False, False), own.peak(), *map(own.floor, UNITS), own.spills]


def regions(rows: Rows) -> Iterator[list]:
    """Yields the regions of each kernel of ours, of its own blocks."""
    for row in rows:
        if row["implementation"] == "ours" and "refused" not in row:
            each = [f"{v['bundles']:,}{' masked' * v['masked']}{' maximum' * v['maximum']}" for v in row["visits"]]
            around = sorted({visit["loop"] for visit in row["visits"]})
            yield [
                *(row[name] for name in ("chip", "width", "dtype", "length", "kernel")),
                f"{row['block_q']} x {row['block_k']}",
                *(row[name] for name in ("program", "longest_piece", "start", "finish", "last", "between")),
                ", ".join(map(str, around)),
                "; ".join(each),
            ]


REGIONS = [
    "chip",
    "D",
    "dtype",
    "tokens",
    "kernel",
    "blocks",
    "program",
    "longest piece",
    "start",
    "finish",
    "last",
    "between",
]
REGIONS += ["loop", "visits"]


def whole_calls(rows: Rows) -> Iterator[list]:
    """Yields of each chip and length the bundles of a call, in millions, ours with its growth over half the length."""
    for chip in CHIPS:
        every = {
            (implementation, name): list(calls(rows, implementation, chip, name, 128, "bfloat16"))
            for implementation, name in itertools.product(("ours", "splash"), PASSES)
        }
        for at, length in enumerate(LENGTHS):
            cells = [chip, f"{length:,}"]
            for (implementation, _), bundles in every.items():
                cells.append(f"{bundles[at] / 1e6:,.2f}" if bundles else "–")
                if implementation == "ours":
                    cells.append(f"{bundles[at] / bundles[at - 1]:.2f}" if bundles and at else "")
            yield cells


CALLS = ["chip", "tokens", "forward", "growth", "backward", "growth", "splash forward", "splash backward"]


def section(record: dict[str, Any]) -> str:
    """Returns a record's part of the page."""
    rows = record["rows"]
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("python", "jax"))
    parts = [
        f"## {record['compiler'].replace('_', ' ')}",
        f"Last by `{record['command']}`, {record['date'][:10]}; {versions}. Rows that it names replaced older ones.",
    ]
    parts += ["### A visit, bfloat16", table(VISITS, list(visits(rows, "bfloat16")))]
    parts += [
        "### Floors of our visit, and its spills",
        table(["chip", "D", "pass", "visit", "peak", *UNITS, "spills"], list(floors(rows))),
    ]
    parts += ["### A whole call: millions of bundles, 8 heads of width 128, bfloat16, causal"]
    parts += [
        "Every row's scores are bounded by 6, the nearest keys' mass is 1. Splash at its best blocks.",
        table(CALLS, list(whole_calls(rows))),
    ]
    parts += [
        "### For information: float32",
        "Ours multiplies float32 in six products of bfloat16, to its last bits; splash, by its bundles, in one.",
        table(VISITS, list(visits(rows, "float32"))),
    ]
    parts += [
        "### For information: splash's one kernel for dq, dk and dv, bfloat16, D = 128",
        "It writes a dq for every block of keys; their sum comes on top, and memory grows with the square of the length.",
        table(FUSED, list(fused(rows))),
    ]
    parts += ["### All regions of ours", table(REGIONS, list(regions(rows)))]
    return "\n\n".join(parts)


FUSED = ["chip", "its best blocks", "visit", "with loop"]


def fused(rows: Rows) -> Iterator[list]:
    """Yields of each chip the visit of splash attention's fused backward kernel; its sums of dq over key blocks come on top."""
    for chip in CHIPS:
        peer = best(passes(rows, "splash_fused", chip, "backward", 128, "bfloat16"))
        if peer is not None:
            yield [chip, _blocks(peer), *(peer.visit(True, False, loop) for loop in (False, True))]


def plot(rows: Rows) -> Figure:
    """Draws the bundles of whole calls against length, a panel for each chip."""
    figure = Figure(figsize=(10, 7.2), dpi=140, layout="constrained")
    for axes, chip in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, CHIPS, strict=True):
        for name, (implementation, style) in itertools.product(PASSES, LINES.items()):
            if bundles := list(calls(rows, implementation, chip, name, 128, "bfloat16")):
                who = "alibi_jax" if implementation == "ours" else "splash attention, which knows no bias"
                axes.loglog(LENGTHS, bundles, style, color=COLOURS[name], label=f"{name}: {who}", linewidth=1.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(LENGTHS, [f"{length // 1024}k" if length < 2**20 else "1M" for length in LENGTHS])
        axes.set_title(f"{chip}: bundles of a call", loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("tokens")
    if figure.axes[0].lines:
        figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def write_page(folder: Path) -> None:
    """Writes FOLDER/results.md from FOLDER/*.json, and FOLDER/bundles.png from the record that the plan's figures are of."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    parts = [
        "# The attention kernels for TPUs, by the compiler's own schedule",
        LEGEND,
        "![Bundles of a call](bundles.png)",
    ]
    write_atomically(folder / "results.md", "\n\n".join([*parts, *map(section, records)]) + "\n")
    planned = json.loads(FIGURES.read_text())["compiler"] if FIGURES.exists() else records[0]["compiler"]
    drawn = next((record for record in records if record["compiler"] == planned), records[0])
    write_atomically(folder / "bundles.png", png_bytes(plot(drawn["rows"])))


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
