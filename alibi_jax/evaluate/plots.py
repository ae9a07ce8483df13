"""The two figures of a report, drawn from the records of a sweep.

Runs whose labels differ only in a last "-s0", "-s1" ... are seeds of one line: each is drawn thinly, labelled once.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from alibi_jax.evaluate.axes import (
    COLOURS,
    INK,
    Tip,
    draw_line,
    label_lines,
    length_ticks,
    new_figure,
    readable_ticks,
    style,
)
from alibi_jax.evaluate.reader import losses_of
from alibi_jax.evaluate.records import Record, line_name, non_overlapping, sliding
from alibi_jax.evaluate.statistics import position_loss
from alibi_jax.run.display import number
from alibi_jax.storage import locate

INFINITE = "perplexity inf"  # scored, and past the largest number
FAILURE_MARKERS = {"out of memory": "x", "refused": "+", "not finite": "1", INFINITE: "2"}


def outcome(record: Record) -> str:
    """Returns the status of a record, or that its perplexity cannot be drawn."""
    return INFINITE if record.status == "ok" and not math.isfinite(record.statistics["perplexity"]) else record.status


def _first_failure(run: Sequence[Record]) -> Record | None:
    """Of a run's records in order of length: the first past the last that can be drawn; None if there is none."""
    drawn = [number for number, record in enumerate(run) if outcome(record) == "ok"]
    beyond = run[drawn[-1] + 1 :] if drawn else ()
    return beyond[0] if beyond else None


def _draw_failure(axes: Axes, last: tuple[int, float], failed: Record) -> None:
    """A mark at the length that could not be drawn, past the line's end `last`."""
    colour = COLOURS[failed.position]
    end, height = failed.length, last[1]
    axes.plot([last[0], end], [height, height], color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
    marker = FAILURE_MARKERS[outcome(failed)]
    axes.plot([end], [height], color=colour, marker=marker, markersize=8, markeredgewidth=2.2, zorder=5)


def _by_run(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each run that has one to draw, by length."""
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.length):
        runs.setdefault(record.run, []).append(record)
    return [run for run in runs.values() if any(outcome(record) == "ok" for record in run)]


def _draw_protocol(axes: Axes, records: Sequence[Record]) -> None:
    runs = _by_run(records)
    names = [line_name(run[0]) for run in runs]
    tips = []
    for name, run in zip(names, runs, strict=True):
        scored = [record for record in run if record.status == "ok"]
        lengths = [record.length for record in scored]
        heights = [
            record.statistics["perplexity"] if outcome(record) == "ok" else math.nan for record in scored
        ]  # a gap
        draw_line(axes, run[0].position, lengths, heights, thin=names.count(name) > 1, markers=True)
        last = [(x, y) for x, y in zip(lengths, heights, strict=True) if math.isfinite(y)][-1]
        failed = _first_failure(run)
        if failed:
            _draw_failure(axes, last, failed)
        tips.append(Tip(name, run[0].position, *last))
    label_lines(axes, tips)


def _failure_legend(axes: Axes, records: Sequence[Record]) -> None:
    seen = sorted(set(map(outcome, records)) - {"ok"})
    style = {"color": "#555555", "linestyle": "none", "markersize": 8, "markeredgewidth": 2}
    marks = [Line2D([], [], marker=FAILURE_MARKERS[status], label=status, **style) for status in seen]
    if marks:
        place = {"loc": "upper left", "bbox_to_anchor": (0.06, 1.0)}
        axes.legend(handles=marks, fontsize=9.5, frameon=False, labelcolor=INK, **place)


def _tick_text(tick: float) -> str:
    return f"{tick:,.10g}" if tick < 1e9 else number(tick, 0)


def _perplexity_ticks(axes: Axes, perplexities: Sequence[float]) -> None:
    pad = max((max(perplexities) / min(perplexities)) ** 0.06, 1.02)
    low, high = min(perplexities) / pad, min(max(perplexities) * pad, sys.float_info.max)
    ticks = readable_ticks(low, high)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FixedFormatter([_tick_text(tick) for tick in ticks]))
    axes.yaxis.set_minor_locator(NullLocator())


def _shown_lengths(records: Sequence[Record]) -> list[int]:
    """Lengths of what is drawn: scored ones, and of each run the first after them that was not."""
    runs = _by_run(records)
    drawn = [record.length for run in runs for record in run if outcome(record) == "ok"]
    return drawn + [failed.length for failed in map(_first_failure, runs) if failed]


def extrapolation_figure(records: Sequence[Record]) -> Figure:
    """Draws perplexity (log) against evaluation length (log2, tokens), non-overlapping beside sliding, 1600 x 700 pixels.

    Both panels have the same scales; a protocol of which nothing can be drawn has no panel. Dotted: the training length. A
    cross is the first length for which a method ran out of memory or that it refused, or whose perplexity is infinite.
    """
    stride, slid = sliding(records)
    panels = {"Non-overlapping windows": non_overlapping(records), f"Sliding window, stride {stride}": slid}
    panels = {title: some for title, some in panels.items() if any(outcome(record) == "ok" for record in some)}
    shown = [record for some in panels.values() for record in some]
    lengths = [length for some in panels.values() for length in _shown_lengths(some)]
    train_lengths = sorted({record.train_length for record in records})
    figure = new_figure(height=5.0)
    if not panels:
        figure.text(0.5, 0.5, "no finite perplexity to draw", fontsize=12, color=INK, horizontalalignment="center")
        return figure
    for axes, (title, some) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        style(axes, title, "evaluation length, tokens", "perplexity (lower is better)")
        length_ticks(axes, lengths, train_lengths)
        _perplexity_ticks(axes, [record.statistics["perplexity"] for record in shown if outcome(record) == "ok"])
        _draw_protocol(axes, some)
        _failure_legend(axes, some)
    return figure


def log_bins(
    losses: Float[np.ndarray, " L"], per_doubling: int = 3
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Returns position losses averaged in bins of equal width in log2: (geometric centres, means), positions from 1."""
    length = len(losses)
    wanted = np.geomspace(1, length + 1, max(2, round(per_doubling * np.log2(length + 1)) + 1))
    edges = np.unique(np.round(wanted).astype(int))
    means = np.add.reduceat(losses, edges[:-1] - 1) / np.diff(edges)
    return np.sqrt(edges[:-1] * (edges[1:] - 1.0)), means


def longest_windows(records: Sequence[Record]) -> list[Record]:
    """Returns, of each run, the record of its longest non-overlapping window that was scored and has its nats at hand."""
    longest: dict[str, Record] = {}
    for record in sorted(non_overlapping(records), key=lambda record: record.length):
        if record.status == "ok" and locate(record.nats_file).is_file():
            longest[record.run] = record
    return [longest[run] for run in dict.fromkeys(record.run for record in records) if run in longest]


def position_figure(records: Sequence[Record]) -> Figure | None:
    """Draws mean nats by position in each run's longest non-overlapping window; None when no run's nats are at hand.

    The fall on the left is the early-token curse; a line that goes on falling right of the dotted training length
    uses far context. Binned logarithmically, three bins a doubling.
    """
    chosen = longest_windows(records)
    if not chosen:
        return None
    losses = (losses_of(locate(record.nats_file), record) for record in chosen)
    curves = [log_bins(position_loss(nats, record.length)) for nats, record in zip(losses, chosen, strict=True)]
    figure = new_figure(height=4.3)
    axes = figure.subplots()
    style(axes, "Loss by position in the window", "inputs the target sees, tokens", "nats per token")
    longest = max(record.length for record in chosen)
    train_lengths = sorted({record.train_length for record in chosen})
    powers = [2**power for power in range(longest.bit_length())]
    length_ticks(axes, sorted({*powers, longest}), train_lengths)
    names = [line_name(record) for record in chosen]
    for record, name, (centres, means) in zip(chosen, names, curves, strict=True):
        draw_line(axes, record.position, centres, means, thin=names.count(name) > 1, markers=False)
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)
    ends = zip(names, chosen, curves, strict=True)
    label_lines(axes, [Tip(name, run.position, run.length, means[-1]) for name, run, (_, means) in ends])
    return figure
