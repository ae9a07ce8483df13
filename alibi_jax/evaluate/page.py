"""One self-contained HTML page from the records of one or more sweeps."""

import base64
import json
import math
from collections.abc import Iterable, Sequence
from string import Template

from alibi_jax.evaluate.axes import png_bytes
from alibi_jax.evaluate.plots import position_figure
from alibi_jax.evaluate.records import Record, non_overlapping, sliding
from alibi_jax.evaluate.statistics import longest_useful_length
from alibi_jax.evaluate.tables import DASH, Grid, warnings
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.run.display import html_text, multiple, number, perplexity_digits


def _rows(rows: Iterable[Sequence[str]], heading: Sequence[str]) -> str:
    """An HTML table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heading)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(grid: Grid, run: str, length: int) -> str:
    record = grid.cells.get((run, length))
    text = html_text(grid.text(run, length))
    if record is None or record.status != "ok":
        detail = html_text(record.detail if record else "")
        return f'<span class="faint" title="{detail}">{text}</span>'
    value = record.statistics["perplexity"]
    spread = value * record.statistics["standard_error"]
    error = f"<small> ± {number(spread, perplexity_digits(value))}</small>" if math.isfinite(value) else ""
    return (f"<b>{text}</b>" if grid.is_best(run, length) else text) + error


def _useful(records: Sequence[Record]) -> str:
    train_length = records[0].train_length
    losses = {record.length: record.statistics["mean_nats"] for record in records if record.status == "ok"}
    if train_length not in losses:
        return DASH
    length = longest_useful_length(losses, train_length)
    return f"{length:,}" + (f" ({multiple(length / train_length)})" if length > train_length else "")


def perplexity_html(records: Sequence[Record]) -> str:
    """Returns runs by lengths: perplexity ± its standard error, the best of each column bold, and the longest useful length."""
    grid = Grid(records)
    rows = []
    for run in grid.runs:
        useful = _useful([record for record in records if record.run == run])
        rows.append([html_text(run), *(_cell(grid, run, length) for length in grid.lengths), useful])
    return _rows(rows, ["run", *map(grid.heading, grid.lengths), "useful up to"])


def _verdict(far_context: float, error: float) -> str:
    if abs(far_context) <= 2 * error:
        return "no clear effect"
    return "helps" if far_context > 0 else "hurts"


def gain_html(records: Sequence[Record]) -> str:
    """Returns the gain over the training length, split in two, nats per token; a sentence where it was not measured."""
    rows = []
    for record in sorted(non_overlapping(records), key=lambda record: record.length):
        gain = record.statistics.get("gain")
        if gain:
            total, far, early = (number(gain[name], 4, sign="+") for name in ("total", "far_context", "early_tokens"))
            far += f"<small> ± {number(gain['far_context_error'], 4)}</small>"
            numbers = [total, far, early, _verdict(gain["far_context"], gain["far_context_error"])]
            rows.append([html_text(record.run), f"{record.length:,}", *numbers])
    if not rows:
        return "<p>Not measured: it needs the training length, also sliding, and a longer one, non-overlapping.</p>"
    runs = list(dict.fromkeys(html_text(record.run) for record in records))
    rows.sort(key=lambda row: runs.index(row[0]))
    return _rows(rows, ["run", "length", "total gain", "far context", "early tokens", "reading further"])


def _provenance(records: Sequence[Record]) -> str:
    keys = (
        "split",
        "num_tokens",
        "num_bytes",
        "unknown_words",
        "corpus_fingerprint",
        "checkpoint_step",
        "parameters",
        "date",
    )
    details = []
    for run in dict.fromkeys(record.run for record in records):
        own = [record for record in records if record.run == run]
        first = own[0]
        facts = {key: vars(first)[key] for key in keys}
        facts["evaluation_seconds"] = round(sum(record.seconds or 0 for record in own), 1)
        facts["failed"] = [f"{r.length}/{r.stride}: {r.status}: {r.detail}" for r in own if r.status != "ok"]
        facts |= {key: vars(first)[key] for key in ("machine", "versions", "config")}
        text = html_text(json.dumps(facts, indent=2, ensure_ascii=False), keep="\n")
        position = html_text(POSITIONS[first.position].label)
        summary = f"{html_text(run)} <small>{position}, trained at {first.train_length:,} tokens</small>"
        details.append(f"<details><summary>{summary}</summary><pre>{text}</pre></details>")
    return "".join(details)


def _image(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html_text(description)}" src="data:image/png;base64,{data}">'


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
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
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
tbody th { font-weight: 500; white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
td b { color: var(--accent); }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  overflow-x: auto; font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.warning { border-left: 4px solid var(--accent); font-weight: bold; padding: .4rem .9rem; background: var(--panel); }
</style></head><body><main>
<h1>$title</h1>
<p class="faint">$subtitle</p>
$warning
$figure
$table
<p class="faint">± is one standard error, from blocks of neighbouring tokens. Differences between runs scored on the
same tokens are better known than that. Bold: best in its column. Useful up to: the longest length whose
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


def _perplexity_section(name: str, records: Sequence[Record]) -> str:
    return f"<h2>Perplexity, {html_text(name)}</h2>\n{perplexity_html(records)}" if records else ""


def page(records: Sequence[Record], title: str, command: str, picture: bytes) -> str:
    """Returns the page as HTML. picture: of `extrapolation_figure`, a PNG."""
    whole, (stride, slid) = non_overlapping(records), sliding(records)
    tokens = ", ".join(f"{count:,}" for count in sorted({record.num_tokens for record in records}))
    lengths = ", ".join(f"{length:,}" for length in sorted({record.train_length for record in records}))
    runs = len({record.run for record in records})
    counted = f"{runs} run{'s' if runs > 1 else ''}"
    return PAGE.substitute(
        title=html_text(title),
        subtitle=html_text(f"{counted} trained at {lengths} tokens · {tokens} tokens of the {records[0].split} split"),
        warning="".join(f'<p class="warning">{html_text(message)}</p>' for message in warnings(records)),
        figure=_image(picture, "Perplexity against evaluation length, non-overlapping and sliding"),
        table=_perplexity_section("non-overlapping windows", whole),
        sliding=_perplexity_section(f"sliding window, stride {stride}", slid),
        gains=gain_html(records),
        position=_position_section(records),
        command=html_text(command),
        provenance=_provenance(records),
    )
