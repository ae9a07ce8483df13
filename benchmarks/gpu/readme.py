"""The README's section about GPUs, made from one record."""

from pathlib import Path

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.part import ROOT
from benchmarks.gpu.tables import (
    WHOLE,
    Record,
    comparisons,
    contenders_of,
    latest,
    milliseconds,
    ours_of,
    rows_of,
    settings_of,
    state,
    table,
)

NOT_RUN = "**No GPU has run the kernels yet**: `make gpu` on a machine with one writes this section."
WIDTH, LENGTHS = 64, (8192, 32_768, 131_072)  # of the table: head width, tokens


def section(record: Record, path: Path) -> str:
    """Returns the section: what a record shows, or that there is none of a GPU. `path`: the record's, without a suffix."""
    if not record or any(facts["interpret"] for facts in record.values()):
        return f"{NOT_RUN}\n"
    path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    facts = latest(record)
    lines = [
        f"`make gpu` on one {facts['device']['kind']}, {facts['date'][:10]}, jax {facts['versions']['jax']} "
        f"([tables]({path}.md), [record]({path}.json)):",
        correctness_line(record),
        training_line(record),
        unfinished_line(record),
    ]
    return "\n".join(line for line in lines if line) + "\n\n" + speed_table(record)


def correctness_line(record: Record) -> str:
    """Returns how many comparisons with the oracle passed."""
    rows = comparisons(rows_of(record, "correctness"))
    passed = sum(row["passed"] for row in rows)
    text = f"{passed:,} of {len(rows):,} comparisons of outputs and gradients are within the tests' tolerances."
    return text if rows else ""


def training_line(record: Record) -> str:
    """Returns ALiBi's rate of training over that of no position method, by the kernel that was timed first."""
    rows = [row for row in rows_of(record, "training") if row.get("over_none") and row["position"] == "alibi"]
    rows = [row for row in rows if row["attention"] == rows[0]["attention"]]
    if not rows:
        return ""
    shown = [f"{row['over_none']:.2f} at {row['length']:,} tokens" for row in rows]
    mfu = [f"{row['mfu']:.0%}" for row in rows if row["mfu"]]
    return (
        f"Trained with ALiBi, a model of {rows[0]['parameters'] / 1e6:.0f} million parameters has this multiple of its speed "
        f"without a position method: {', '.join(shown)} (MFU {', '.join(mfu) or 'unknown'})."
    )


def unfinished_line(record: Record) -> str:
    """Returns which parts were not run, were cut, or have rows that did not pass."""
    lines = [f"{part}: {state(part, record)}" for part in PARTS if state(part, record) != WHOLE]
    return f"Incomplete: {'; '.join(lines)}." if lines else ""


def speed_table(record: Record) -> str:
    """Returns milliseconds of forward and backward, and those of the others over ours; "" where none were timed."""
    rows = [row for row in rows_of(record, "speed") if row.get("width") == WIDTH and row["length"] in LENGTHS]
    rows = [row for row in rows if row["direction"] == "forward+backward"]
    names, lines = contenders_of(rows), []
    for (_, _, inputs, length), contenders in settings_of(rows).items():
        ours = ours_of(contenders)
        cells = [milliseconds(contenders[name], ours) if name in contenders else None for name in names]
        lines.append((f"{length:,}, {inputs}", ours and f"{ours['visited']:.2f}", *cells))
    if not lines:
        return ""
    sizes = f"B=1, H={rows[0]['heads']}, D={WIDTH}, bfloat16"
    caption = f"Milliseconds of attention, forward and backward ({sizes}), in brackets their ratio to the first of our kernels:"
    return f"{caption}\n\n" + table(("tokens, inputs", "blocks visited", *names), lines)
