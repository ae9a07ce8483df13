"""Tables of a sweep's records: plain text, Markdown, CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

from rich.cells import cell_len

from alibi_jax.evaluate.records import MANY_UNKNOWN, Record, fields_of, non_overlapping, sliding, unknown_rate
from alibi_jax.evaluate.statistics import STATISTICS, Gain
from alibi_jax.run.display import csv_cell, label, markdown_text, multiple, perplexity_number

COLUMNS = (  # in an order that readers of older files know; other statistics follow
    *("run", "position", "train_length", "length", "stride", "status", "detail", "split", "num_tokens", "num_bytes"),
    *("mean_nats", "perplexity", "bits_per_byte", "standard_error", "seconds", "checkpoint_step", "parameters"),
    *("corpus_fingerprint", "date"),
    *(f"gain_{field.name}" for field in dataclasses.fields(Gain)),
)
TEXT_WIDTH = 100  # columns of a terminal the plain table stays within
DASH = "–"


def csv_text(records: Sequence[Record]) -> str:
    """Returns the records as CSV, one row each: facts, then every statistic; a value that a record lacks is an empty cell.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [*COLUMNS, *(name for name in STATISTICS if name not in (*COLUMNS, "gain"))]
    writer.writerow(columns)
    for record in records:
        gain = record.statistics.get("gain") or {}
        values = fields_of(record) | {f"gain_{name}": value for name, value in gain.items()}
        writer.writerow(csv_cell(values.get(name)) for name in columns)
    return buffer.getvalue()


def protocols(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Returns (name, records) of what tables show: non-overlapping windows, then sliding ones if only they have some length."""
    whole, (stride, slid) = non_overlapping(records), sliding(records)
    lengths = {record.length for record in whole}
    shown = [("non-overlapping windows", whole)] if whole else []
    if any(record.length not in lengths for record in slid):
        shown.append((f"sliding window, stride {stride}", slid))
    return shown


def perplexity_text(record: Record) -> str:
    """Returns the perplexity of a record, or why it has none."""
    if record.status != "ok":
        return record.status
    return perplexity_number(record.statistics["perplexity"])


class Grid:
    """Records as a table: rows are runs in order, columns lengths; `best` is each column's lowest perplexity."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.runs = list(dict.fromkeys(record.run for record in records))
        self.lengths = sorted({record.length for record in records})
        self.cells = {(record.run, record.length): record for record in records}
        self.train_lengths = {record.run: record.train_length for record in records}
        scored = [record for record in records if record.status == "ok"]
        self.best = {
            length: min(record.statistics["perplexity"] for record in scored if record.length == length)
            for length in {record.length for record in scored}
        }

    def is_best(self, run: str, length: int) -> bool:
        """Whether a run is the best, or as good as the best, of several at a length."""
        record = self.cells.get((run, length))
        several = sum((other, length) in self.cells for other in self.runs) > 1
        best = self.best.get(length, math.inf)
        return bool(record) and several and record.statistics.get("perplexity") == best < math.inf

    def heading(self, length: int) -> str:
        """Returns the length, with its multiple of the training length where all runs share one."""
        units = set(self.train_lengths.values())
        return f"{length:,}" + (f" ({multiple(length / units.pop())})" if len(units) == 1 else "")

    def text(self, run: str, length: int) -> str:
        """Returns the text of a cell."""
        record = self.cells.get((run, length))
        return perplexity_text(record) if record else DASH


def warnings(records: Sequence[Record]) -> list[str]:
    """Returns what makes the numbers of these records misleading: different texts, or many unknown words."""
    messages = []
    if len({(record.corpus_fingerprint, record.num_tokens) for record in records}) > 1:
        messages.append("These runs were not scored on the same tokens: do not compare their numbers.")
    unknown = {record.run: unknown_rate(record) for record in records if unknown_rate(record) > MANY_UNKNOWN}
    if unknown:
        rates = ", ".join(f"{label(run)} {rate:.1%}" for run, rate in unknown.items())
        messages.append(
            f"Many words scored are outside the vocabulary ({rates}): the model only has to predict that they are, which makes "
            "every number look better."
        )
    return messages


def summary_table(records: Sequence[Record]) -> str:
    """Returns perplexity as plain text, runs by lengths, at most 100 columns wide: more lengths go below.

    Non-overlapping; a sliding window where that alone was evaluated, or at lengths of its own, under a heading.
    """
    shown = protocols(records)
    texts = (_plain_table(some) for _, some in shown)
    if [name for name, _ in shown] == ["non-overlapping windows"]:
        return next(texts)
    return "\n\n".join(f"{name}\n{text}" for (name, _), text in zip(shown, texts, strict=True))


def _plain_table(records: Sequence[Record]) -> str:
    grid = Grid(records)
    labels = ["run", *map(label, grid.runs)]
    names = max(map(cell_len, labels))
    columns = [[grid.heading(length), *(grid.text(run, length) for run in grid.runs)] for length in grid.lengths]
    widths = [max(map(len, column)) for column in columns]
    blocks, used = [[]], names
    for column, width in zip(columns, widths, strict=True):
        if blocks[-1] and used + 2 + width > TEXT_WIDTH:
            blocks, used = [*blocks, []], names
        blocks[-1].append([cell.rjust(width) for cell in column])
        used += 2 + width
    labels = [name + " " * (names - cell_len(name)) for name in labels]
    tables = ("\n".join("  ".join(row) for row in zip(labels, *block, strict=True)) for block in blocks)
    return "\n\n".join(tables)


def markdown_table(records: Sequence[Record]) -> str:
    """Returns the same tables in Markdown, the best of each column in bold."""
    shown = protocols(records)
    if [name for name, _ in shown] == ["non-overlapping windows"]:
        return _markdown_grid(shown[0][1])
    return "\n\n".join(f"{name[0].upper()}{name[1:]}:\n\n{_markdown_grid(some)}" for name, some in shown)


def _markdown_grid(records: Sequence[Record]) -> str:
    grid = Grid(records)
    rows = []
    for run in grid.runs:
        texts = ((grid.text(run, length), grid.is_best(run, length)) for length in grid.lengths)
        rows.append([markdown_text(run), *(f"**{text}**" if best else text for text, best in texts)])
    return markdown(["run", *map(grid.heading, grid.lengths)], rows)


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table of cells that are Markdown already, all columns but the first to the right."""
    lines = [heading, ["---", *("---:" for _ in heading[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
