"""The record of a GPU as Markdown: its parts, and the tables of what they measured."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.kernels import KERNELS, SERVED
from benchmarks.gpu.part import failures

Row = dict[str, Any]
Record = dict[str, Any]  # part -> what `part.measure` wrote
NONE = "\u2013"  # of a cell
WHOLE = "finished, all passed"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table; None is a dash."""
    lines = [columns, ["---"] * len(columns)]
    lines += [[NONE if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latest(record: Record) -> Row:
    """Returns the part that was run last."""
    return max(record.values(), key=lambda facts: facts["started"])


def rows_of(record: Record, part: str) -> list[Row]:
    """Returns the rows of a part; none where it was not run."""
    return record[part]["rows"] if part in record else []


def state(part: str, record: Record) -> str:
    """Returns how a part ended, in words; of rows that did not pass, their number."""
    if part not in record:
        return "not run"
    return "; ".join(line.partition(", the first:")[0] for line in failures(record[part])) or WHOLE


def parts_table(record: Record) -> str:
    """Returns a line for each part: its seconds, rows and how it ended."""

    def line(part: str) -> list[Any]:
        if part not in record:
            return [part, None, None, state(part, record), None, None]
        facts = record[part]
        started = facts["date"][:16].replace("T", " ")
        return [part, f"{facts['seconds']:.0f}", len(facts["rows"]), state(part, record), started, facts["commit"]]

    return table(("part", "seconds", "rows", "how it ended", "started", "commit"), map(line, PARTS))


def correctness_table(rows: list[Row]) -> str:
    """Returns, for each kernel and dtype, the comparisons, those that did not pass, and the worst error over its tolerance."""
    rows, lines = comparisons(rows), []
    for kernel, dtype in dict.fromkeys((row["kernel"], row["dtype"]) for row in rows):
        those = [row for row in rows if (row["kernel"], row["dtype"]) == (kernel, dtype)]
        compared = [row for row in those if isinstance(row.get("error"), float)]  # NaN and infinity are text
        worst = max(compared, key=lambda row: row["error"] / row["tolerance"], default=None)
        over = worst and f"{worst['error'] / worst['tolerance']:.2f}"
        where = worst and f"{worst['case']}, {worst['direction']}: {worst['error']:.2g} of {worst['tolerance']:.2g}"
        lines.append((kernel, dtype, len(those), sum(not row["passed"] for row in those), over, where))
    return table(("kernel", "dtype", "comparisons", "not passed", "worst error / tolerance", "where"), lines)


def comparisons(rows: list[Row]) -> list[Row]:
    """Returns the rows of correctness that compare, or failed before they could."""
    return [row for row in rows if row["case"] != SERVED]


def served(rows: list[Row]) -> str:
    """Returns a line for each kernel that went through all cases of correctness: how many it served, and why not the others."""
    lines = []
    for row in rows:
        if row["case"] == SERVED:
            why = f"; the last that it refused: {row['reason']}" if row["reason"] else ""
            lines.append(f"- {row['kernel']} served {row['served']} of {row['of']} cases{why}\n")
    return "".join(lines)


def plain_table(rows: list[Row]) -> str:
    """Returns rows as they are, a column for each name in any of them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = [[row.get(name) for name in columns] for row in rows]
    return table(columns, [[f"{x:.4g}" if isinstance(x, float) else x for x in row] for row in shown])


def timed(rows: list[Row]) -> list[Row]:
    """Returns the rows of contenders that were timed."""
    return [row for row in rows if row.get("milliseconds")]


def contenders_of(rows: list[Row]) -> list[str]:
    """Returns the names of those that were timed, ours first."""
    return list(dict.fromkeys(row["contender"] for row in timed(rows)))


def settings_of(rows: list[Row]) -> dict[tuple, dict[str, Row]]:
    """Returns (direction, width, inputs, length) -> contender -> its row, in the order of a table."""
    keys = ("direction", "width", "inputs", "length")
    settings = sorted({tuple(row[key] for key in keys) for row in timed(rows)})
    return {
        setting: {row["contender"]: row for row in timed(rows) if tuple(row[key] for key in keys) == setting}
        for setting in settings
    }


def ours_of(contenders: dict[str, Row]) -> Row | None:
    """Returns the row of the first of our kernels, of those of one setting; None where none of them was timed."""
    return next((row for name, row in contenders.items() if name in KERNELS), None)


def speed_table(rows: list[Row], cell: Callable[[Row, Row | None], str]) -> str:
    """Returns a line for each setting and a column for each contender; cell(its row, ours)."""
    names = contenders_of(rows)
    lines = []
    for (direction, width, inputs, length), contenders in settings_of(rows).items():
        ours = ours_of(contenders)
        visited = ours and f"{ours['visited']:.3f}"
        cells = [cell(contenders[name], ours) if name in contenders else None for name in names]
        lines.append((direction, width, inputs, f"{length:,}", visited, *cells))
    return table(("direction", "D", "inputs", "tokens", "blocks visited", *names), lines)


def milliseconds(row: Row, ours: Row | None) -> str:
    """Returns a contender's milliseconds and, in brackets, over ours."""
    text = f"{row['milliseconds']:.3g}"
    return text if ours in (None, row) else f"{text} ({row['milliseconds'] / ours['milliseconds']:.2f}x)"


def rate(row: Row, ours: Row | None) -> str:
    """Returns a contender's effective TFLOP/s and, in brackets, its computed ones as a percentage of the card's peak."""
    of_peak = "" if row["of_peak"] is None else f" ({row['of_peak']:.0%})"
    return f"{row['effective_tflops']:,.0f}{of_peak}"


def failed(rows: list[Row]) -> str:
    """Returns a line for each row that did not pass or was skipped; "" where there is none."""
    keys = "contender kernel attention position dtype case what direction width inputs length".split()
    lines = []
    for row in rows:
        if "skipped" in row or row.get("passed") is False:
            name = ", ".join(str(row[key]) for key in keys if key in row)
            reason = row.get("skipped") or row.get("reason") or f"error {row.get('error')} of {row.get('tolerance')}"
            lines.append(f"- {name}: {reason}\n")
    return "".join(lines)


def training_table(rows: list[Row]) -> str:
    """Returns a line for each length and attention: tokens/s and MFU of both models, and ALiBi's rate over none's."""
    lines = []
    for length, attention in dict.fromkeys((row["length"], row["attention"]) for row in rows if "length" in row):
        those = {row["position"]: row for row in rows if (row.get("length"), row["attention"]) == (length, attention)}
        cells = [cell for position in ("none", "alibi") for cell in _training_cells(those.get(position))]
        over = those.get("alibi", {}).get("over_none")
        lines.append((f"{length:,}", attention, *cells, over and f"{over:.3f}"))
    columns = ("tokens", "attention", "none, tokens/s", "MFU", "ALiBi, tokens/s", "MFU", "ALiBi / none")
    return table(columns, lines)


def _training_cells(row: Row | None) -> list[str | None]:
    if row is None or row["tokens_per_second"] is None:
        return [None, None]
    return [f"{row['tokens_per_second']:,.0f}", row["mfu"] and f"{row['mfu']:.1%}"]


def page(title: str, record: Record, figure: str | None) -> str:
    """Returns the whole record as a page of Markdown."""
    last = latest(record)
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    correctness, step, speed, training = (
        rows_of(record, part) for part in ("correctness", "step", "speed", "training")
    )
    interpreted = any(facts["interpret"] for facts in record.values())
    sections = [
        f"# {title}\n",
        "Kernels ran step by step, small: these are no results of a GPU.\n" if interpreted else "",
        f"Made by `make gpu`. {versions}; driver {last['device'].get('driver') or 'unknown'}.\n",
        parts_table(record),
        "## Correctness\n",
        correctness_table(correctness) if correctness else "Not run.\n",
        served(correctness),
        failed(correctness),
        "## One step on the GPU and on the CPU\n",
        plain_table(step) if step else "Not run.\n",
        "## Attention\n",
        f"![Effective TFLOP/s against length]({figure})\n" if figure else "",
        *speed_sections(speed),
        "## Training\n",
        training_table(training) if training else "Not run.\n",
        failed(training),
    ]
    return "\n".join(section for section in sections if section)


def speed_sections(rows: list[Row]) -> list[str]:
    """Returns the tables of the speed of attention and what they mean."""
    if not rows:
        return ["Not run.\n"]
    heads = ", ".join(dict.fromkeys(str(row["heads"]) for row in timed(rows)))
    return [
        f"B=1, H={heads}, bfloat16; medians of turns. Milliseconds, in brackets their ratio to the first of our kernels.\n"
        "The clock is the host's: a call that takes less than its launch by the host shows the launch.\n",
        speed_table(rows, milliseconds) if timed(rows) else "Nothing was timed.\n",
        "Effective TFLOP/s, as if all causal pairs were computed; in brackets the share of the card's peak that is computed:\n",
        speed_table(rows, rate) if timed(rows) else "Nothing was timed.\n",
        failed(rows),
    ]
