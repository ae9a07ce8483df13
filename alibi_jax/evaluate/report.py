"""From the records of one or more sweeps to tables, a CSV file, a figure and one self-contained HTML page.

A record is one (run, length, stride) of `sweep.jsonl`, a plain dict; its keys are those the sweep writes.
"""

import base64
import csv
import html
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from alibi_jax.evaluate.plots import (
    NAMES,
    Record,
    extrapolation_figure,
    non_overlapping,
    png_bytes,
    position_figure,
    sliding,
)
from alibi_jax.evaluate.statistics import ResultsError, longest_useful_length

COLUMNS = (
    *("run", "position", "train_length", "length", "stride", "status", "detail", "split", "num_tokens", "num_bytes"),
    *("mean_nats", "perplexity", "bits_per_byte", "standard_error", "seconds", "checkpoint_step", "parameters"),
    *("corpus_fingerprint", "date"),
)
GAIN_COLUMNS = ("total", "far_context", "early_tokens", "far_context_error")
TEXT_WIDTH = 100  # columns of a terminal the plain table stays within
DASH = "–"


def _read_line(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ResultsError(
            f"{place}: got text that is not JSON ({error}), expected a record. Evaluate again."
        ) from error
    missing = {"run", "position", "train_length", "length", "stride", "status"} - set(record)
    if missing:
        raise ResultsError(f"{place}: got a record without {sorted(missing)}, expected them. Evaluate again.")
    return record


def read_records(folders: Sequence[Path]) -> list[Record]:
    """The records of every folder's sweep.jsonl, in order; `nats_file` is made relative to where the program runs.

    Raises FileNotFoundError for a folder without one, and ResultsError that names file and line for a corrupt line or
    for a second record of the same (run, split, length, stride): two runs under one label would be drawn as one.
    """
    records: list[Record] = []
    places: dict[tuple, str] = {}
    for path in (Path(folder) / "sweep.jsonl" for folder in folders):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: got no such file, expected the results of an evaluation. Run evaluate.")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            place = f"{path}, line {number}"
            record = _read_line(line, place)
            key = (record["run"], record.get("split"), record["length"], record["stride"])
            if key in places:
                raise ResultsError(
                    f"{place}: got run {key[0]!r} at length {key[2]}, stride {key[3]} again, expected it once (it is "
                    f"in {places[key]}). Give the runs different labels, or pass each folder once."
                )
            places[key] = place
            if record.get("nats_file"):
                record["nats_file"] = str(path.parent / record["nats_file"])
            records.append(record)
    return records


def _check(records: Sequence[Record]) -> None:
    splits = sorted({str(record.get("split")) for record in records})
    if len(splits) != 1:
        raise ResultsError(
            f"records: got splits {splits}, expected one or more records of one split. Pass one split's."
        )
    if not any(record["status"] == "ok" for record in non_overlapping(records)):
        raise ResultsError(
            "records: got none scored with non-overlapping windows, expected one or more. Evaluate with stride L."
        )


def csv_text(records: Sequence[Record]) -> str:
    """The records as CSV, one row each; the gain split in columns gain_*; a value a record lacks is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"gain_{name}" for name in GAIN_COLUMNS)])
    for record in records:
        gain = record.get("gain") or {}
        writer.writerow([*(record.get(name) for name in COLUMNS), *(gain.get(name) for name in GAIN_COLUMNS)])
    return buffer.getvalue()


def _digits(value: float) -> int:
    return 3 if value < 10 else 2 if value < 1000 else 0


def _perplexity(record: Record) -> str:
    if record["status"] != "ok":
        return record["status"]
    return f"{record['perplexity']:,.{_digits(record['perplexity'])}f}"


class _Grid:
    """Records as a table: rows are runs in order, columns lengths; `best` is each column's lowest perplexity."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.runs = list(dict.fromkeys(record["run"] for record in records))
        self.lengths = sorted({record["length"] for record in records})
        self.cells = {(record["run"], record["length"]): record for record in records}
        self.train_lengths = {record["run"]: record["train_length"] for record in records}
        scored = [record for record in records if record["status"] == "ok"]
        self.best = {
            length: min(record["perplexity"] for record in scored if record["length"] == length)
            for length in {record["length"] for record in scored}
        }

    def is_best(self, run: str, length: int) -> bool:
        record = self.cells.get((run, length), {})
        several = sum((other, length) in self.cells for other in self.runs) > 1
        return several and record.get("perplexity") == self.best.get(length, -1)

    def heading(self, length: int) -> str:
        """The length, with its multiple of the training length where all runs share one."""
        units = set(self.train_lengths.values())
        return f"{length:,}" + (f" ({length / units.pop():.3g}x)" if len(units) == 1 else "")

    def text(self, run: str, length: int) -> str:
        record = self.cells.get((run, length))
        return _perplexity(record) if record else DASH


def summary_table(records: Sequence[Record]) -> str:
    """Non-overlapping perplexity as plain text, runs by lengths, at most 100 columns wide: more lengths go below."""
    grid = _Grid(non_overlapping(records))
    names = max(map(len, [*grid.runs, "run"]))
    columns = [[grid.heading(length), *(grid.text(run, length) for run in grid.runs)] for length in grid.lengths]
    widths = [max(map(len, column)) for column in columns]
    blocks, used = [[]], names
    for column, width in zip(columns, widths, strict=True):
        if blocks[-1] and used + 2 + width > TEXT_WIDTH:
            blocks, used = [*blocks, []], names
        blocks[-1].append([cell.rjust(width) for cell in column])
        used += 2 + width
    labels = [name.ljust(names) for name in ["run", *grid.runs]]
    tables = ("\n".join("  ".join(row) for row in zip(labels, *block, strict=True)) for block in blocks)
    return "\n\n".join(tables)


def markdown_table(records: Sequence[Record]) -> str:
    """The same table in Markdown, the best of each column in bold."""
    grid = _Grid(non_overlapping(records))
    rows = [["run", *map(grid.heading, grid.lengths)], ["---", *("---:" for _ in grid.lengths)]]
    for run in grid.runs:
        texts = ((grid.text(run, length), grid.is_best(run, length)) for length in grid.lengths)
        rows.append([run, *(f"**{text}**" if best else text for text, best in texts)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _rows(rows: Iterable[Sequence[str]], heading: Sequence[str]) -> str:
    """An HTML table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heading)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(grid: _Grid, run: str, length: int) -> str:
    record = grid.cells.get((run, length))
    text = html.escape(grid.text(run, length))
    if record is None or record["status"] != "ok":
        detail = html.escape(str((record or {}).get("detail") or ""))
        return f'<span class="faint" title="{detail}">{text}</span>'
    value = record["perplexity"]
    error = f"<small> ± {value * record['standard_error']:,.{_digits(value)}f}</small>"
    return (f"<b>{text}</b>" if grid.is_best(run, length) else text) + error


def _useful(records: Sequence[Record]) -> str:
    train_length = records[0]["train_length"]
    losses = {record["length"]: record["mean_nats"] for record in records if record["status"] == "ok"}
    if train_length not in losses:
        return DASH
    length = longest_useful_length(losses, train_length)
    return f"{length:,}" + (f" ({length / train_length:.3g}x)" if length > train_length else "")


def perplexity_html(records: Sequence[Record]) -> str:
    """Runs by lengths: perplexity ± its standard error, the best of each column bold, and the longest useful length."""
    grid = _Grid(records)
    rows = []
    for run in grid.runs:
        useful = _useful([record for record in records if record["run"] == run])
        rows.append([html.escape(run), *(_cell(grid, run, length) for length in grid.lengths), useful])
    return _rows(rows, ["run", *map(grid.heading, grid.lengths), "useful up to"])


def _verdict(far_context: float, error: float) -> str:
    if abs(far_context) <= 2 * error:
        return "no clear effect"
    return "helps" if far_context > 0 else "hurts"


def gain_html(records: Sequence[Record]) -> str:
    """The gain over the training length, split in two, nats per token; a sentence where it was not measured."""
    rows = []
    for record in sorted(non_overlapping(records), key=lambda record: record["length"]):
        gain = record.get("gain")
        if gain:
            far = f"{gain['far_context']:+.4f}<small> ± {gain['far_context_error']:.4f}</small>"
            verdict = _verdict(gain["far_context"], gain["far_context_error"])
            numbers = [f"{gain['total']:+.4f}", far, f"{gain['early_tokens']:+.4f}", verdict]
            rows.append([html.escape(record["run"]), f"{record['length']:,}", *numbers])
    if not rows:
        return "<p>Not measured: it needs the training length and a longer one, both non-overlapping.</p>"
    runs = list(dict.fromkeys(html.escape(record["run"]) for record in records))
    rows.sort(key=lambda row: runs.index(row[0]))
    return _rows(rows, ["run", "length", "total gain", "far context", "early tokens", "reading further"])


def _warning(records: Sequence[Record]) -> str:
    """Runs scored on different text are not comparable; the page says so first."""
    texts = {(record.get("corpus_fingerprint"), record.get("num_tokens")) for record in records}
    if len(texts) <= 1:
        return ""
    return '<p class="warning"><b>These runs were not scored on the same tokens:</b> do not compare their numbers.</p>'


def _provenance(records: Sequence[Record]) -> str:
    keys = ("split", "num_tokens", "num_bytes", "corpus_fingerprint", "checkpoint_step", "parameters", "date")
    parts = []
    for run in dict.fromkeys(record["run"] for record in records):
        own = [record for record in records if record["run"] == run]
        first = own[0]
        facts = {key: first.get(key) for key in keys}
        facts["evaluation_seconds"] = round(sum(record.get("seconds") or 0 for record in own), 1)
        facts["failed"] = [
            f"{r['length']}/{r['stride']}: {r['status']}: {r['detail']}" for r in own if r["status"] != "ok"
        ]
        facts |= {key: first.get(key) for key in ("machine", "versions", "config")}
        text = html.escape(json.dumps(facts, indent=2, ensure_ascii=False))
        position = html.escape(NAMES.get(first["position"], first["position"]))
        summary = f"{html.escape(run)} <small>{position}, trained at {first['train_length']:,} tokens</small>"
        parts.append(f"<details><summary>{summary}</summary><pre>{text}</pre></details>")
    return "".join(parts)


def _image(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d1f22; --faint: #6a7078; --line: #dfe2e6; --paper: #fff; --panel: #f6f7f8;
  --accent: #b34a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --faint: #9aa1aa; --line: #3a3f46; --paper: #17191c;
  --panel: #202327; --accent: #ff9a5c; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
small, .faint { color: var(--faint); }
small { font-size: .8em; white-space: nowrap; }
img { display: block; width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px;
  margin: 1rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .38rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--faint); border-bottom: 2px solid var(--line); }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; }
td b { color: var(--accent); }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  overflow-x: auto; font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; }
summary { cursor: pointer; }
.warning { border-left: 4px solid var(--accent); padding: .4rem .9rem; background: var(--panel); }
</style></head><body><main>
<h1>$title</h1>
<p class="faint">$subtitle</p>
$warning
$figure
<h2>Perplexity, non-overlapping windows</h2>
$table
<p class="faint">± is one standard error, from blocks of neighbouring tokens; runs are scored on the same tokens, so
differences between them are better known than that. Bold: best in its column. Useful up to: the longest length whose
loss is not above that at the training length.</p>
$sliding
<h2>Where the gain comes from</h2>
<p>A longer input can lower the loss in two ways. <b>Far context</b>: targets past the training length are predicted
better than with only the training length to read, measured target by target against a sliding window of the training
length. <b>Early tokens</b>: the rest; longer windows leave fewer targets with little to read. Only the first is
extrapolation. Below zero, reading past the training length hurts. Nats per token; positive is better. Where that
sliding window moves by more than one token, far context comes out a little high.</p>
$gains
$position
<h2>How it was measured</h2>
<p><b>Non-overlapping</b>: the text is cut into windows of the evaluation length, and every target sees what precedes it
in its own window. <b>Sliding</b>: windows of the evaluation length overlap, only the last <i>stride</i> targets of each
are scored, and all windows are computed from scratch, so that past the start of the text no target has less to read
than the length less the stride. In both, every token is scored once, and perplexity is the exponential of the total
loss over the number of tokens.</p>
<h2>What was run</h2>
<pre>$command</pre>
$provenance
</main></body></html>
""")


def _position_section(records: Sequence[Record]) -> str:
    figure = position_figure(records)
    if figure is None:
        return ""
    image = _image(png_bytes(figure), "Mean loss by number of inputs a target sees")
    return (
        "<h2>Loss by position</h2><p>Each run in its longest non-overlapping window. The fall on the left is the cost "
        "of having little to read; what happens right of the dotted training length is extrapolation. Positions near "
        f"the left are few and noisy.</p>{image}"
    )


def _page(records: Sequence[Record], title: str, command: str, picture: bytes) -> str:
    stride, slid = sliding(records)
    heading = f"<h2>Perplexity, sliding window, stride {html.escape(stride)}</h2>"
    tokens = ", ".join(f"{count:,}" for count in sorted({record["num_tokens"] for record in records}))
    lengths = ", ".join(f"{length:,}" for length in sorted({record["train_length"] for record in records}))
    runs = len({record["run"] for record in records})
    counted = f"{runs} run{'s' if runs > 1 else ''}"
    return PAGE.substitute(
        title=html.escape(title),
        subtitle=html.escape(
            f"{counted} trained at {lengths} tokens · {tokens} tokens of the {records[0]['split']} split"
        ),
        warning=_warning(records),
        figure=_image(picture, "Perplexity against evaluation length, non-overlapping and sliding"),
        table=perplexity_html(non_overlapping(records)),
        sliding=heading + perplexity_html(slid) if slid else "",
        gains=gain_html(records),
        position=_position_section(records),
        command=html.escape(command),
        provenance=_provenance(records),
    )


def _write(path: Path, content: bytes) -> None:
    """Aside, then renamed: a reader sees the old file or the new one, never half of it."""
    aside = path.with_name(path.name + ".partial")
    aside.write_bytes(content)
    os.replace(aside, path)


def write_report(records: Sequence[Record], folder: Path, title: str, command: str) -> Path:
    """Write report.html, extrapolation.png and sweep.csv into `folder`; returns the path of report.html.

    records: of `read_records`, of one split. command: what made them, shown on the page. The page needs no other
    file. Runs whose arrays of nats are not at hand are missing from its figure of loss by position, and only there.
    """
    _check(records)
    folder = Path(folder)
    picture = png_bytes(extrapolation_figure(records))
    page = _page(records, title, command, picture)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "sweep.csv", csv_text(records).encode())
    _write(folder / "extrapolation.png", picture)
    _write(folder / "report.html", page.encode())
    return folder / "report.html"
