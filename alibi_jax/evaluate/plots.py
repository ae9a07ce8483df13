"""The two figures of a report, drawn from the records of a sweep without matplotlib's global state.

Runs whose labels differ only in a last "-s0", "-s1" ... are seeds of one line: each is drawn thinly, labelled once.
"""

import io
import math
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import ArrayLike

from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.reader import load_nats
from alibi_jax.evaluate.records import Record, line_name, non_overlapping, sliding
from alibi_jax.evaluate.statistics import position_loss
from alibi_jax.run.display import label, number
from alibi_jax.storage import locate

# Okabe and Ito's palette, told apart under the common kinds of colour blindness; one fixed colour and marker a method.
COLOURS = {
    "alibi": "#D55E00",
    "sinusoidal": "#0072B2",
    "rotary": "#009E73",
    "t5": "#CC79A7",
    "learned": "#B8860B",
    "none": "#555555",
}
MARKERS = {"alibi": "o", "sinusoidal": "s", "rotary": "^", "t5": "D", "learned": "v", "none": "p"}
INFINITE = "perplexity inf"  # scored, and past the largest number
FAILURE_MARKERS = {"out of memory": "x", "refused": "+", "not finite": "1", INFINITE: "2"}
INK, FAINT = "#222222", "#D9D9D9"


def outcome(record: Record) -> str:
    """The status of a record, or that its perplexity cannot be drawn."""
    return INFINITE if record.status == "ok" and not math.isfinite(record.statistics["perplexity"]) else record.status


def readable_ticks(low: float, high: float) -> list[float]:
    """Ticks for a log axis from `low` to `high`: four or more where they fit, at round numbers; at most some dozen."""
    steps = (np.arange(1, 10, step) for step in (0.5, 0.25, 0.1, 0.05, 0.02))
    choices = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 6, 8], *steps]
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    decades = range(first, last + 1, 1 + (last - first) // 10)
    ticks: list[float] = []
    for mantissas in choices:
        ticks = [float(f"{m}e{d}") for d in decades for m in mantissas if low <= float(f"{m}e{d}") <= high]
        if len(ticks) >= 4:
            break
    return ticks


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1], in the order given, with neighbours pushed apart to `gap` and all kept in [0, 1]."""
    order, placed = np.argsort(heights, kind="stable"), np.sort(np.asarray(heights, float))
    for _ in range(200):
        overlap = np.maximum(0, gap - np.diff(placed)) / 2
        placed[:-1] -= overlap
        placed[1:] += overlap
        placed = np.clip(placed, 0, 1)
    moved = np.empty_like(placed)
    moved[order] = placed
    return moved.tolist()


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file. A character of a label that the font lacks is drawn as a box, without a warning."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing|Matplotlib currently does not support .* natively")
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _figure(height: float) -> Figure:
    """1600 pixels wide, `height` inches of 140 pixels high, on white whatever surrounds it."""
    figure = Figure(figsize=(80 / 7, height), dpi=140, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03)
    return figure


def _style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    axes.set_xlabel(xlabel, fontsize=10.5, color=INK)
    axes.set_ylabel(ylabel, fontsize=10.5, color=INK)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5, colors=INK)


def _length_ticks(axes: Axes, lengths: Sequence[int], train_lengths: Sequence[int]) -> None:
    """A log2 axis with ticks at the lengths, training lengths first, others where there is room."""
    low, high = min(lengths), max(lengths)
    room = max(np.log2(high / low), 1.0) / 8
    kept: list[int] = []
    for length in [*train_lengths, *sorted(lengths, reverse=True)]:
        if all(abs(np.log2(length / other)) >= room for other in kept):
            kept.append(length)
    unit = train_lengths[0] if len(train_lengths) == 1 else None
    labels = [f"{length:,}" + (f"\n{length / unit:.3g}x" if unit and length >= unit else "") for length in kept]
    axes.set_xscale("log", base=2)
    axes.set_xlim(low / 2**0.2, high * 2**0.2)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    for length in train_lengths:
        axes.axvline(length, color="#777777", linestyle=(0, (1, 2)), linewidth=1.3, zorder=1)


def _draw_line(axes: Axes, position: str, xs: ArrayLike, ys: ArrayLike, thin: bool, markers: bool) -> None:
    main = position == "alibi"
    axes.plot(
        xs,
        ys,
        color=COLOURS[position],
        marker=MARKERS[position] if markers else None,
        markersize=6.5 if main else 5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linewidth=(2.8 if main else 1.6) * (0.5 if thin else 1.0),
        zorder=4 if main else 3,
    )


class _Tip(NamedTuple):
    """Where a run's line ends, for its label."""

    name: str  # of the line
    position: str  # method
    length: int  # longest scored
    height: float


def _label_lines(axes: Axes, tips: Sequence[_Tip]) -> None:
    """Names right of the axes, once a line, tied to its end; one that ends early says up to where it was scored."""
    lines = {name: [tip for tip in tips if tip.name == name] for name in dict.fromkeys(tip.name for tip in tips)}
    longest = max(tip.length for tip in tips)
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((longest, np.mean([tip.height for tip in line]))) for line in lines.values()]
    for (name, line), (x, y), height in zip(lines.items(), ends, spread([y for _, y in ends], 0.062), strict=True):
        position, reached = line[0].position, max(tip.length for tip in line)
        style = {"color": COLOURS[position], "transform": axes.transAxes, "clip_on": False}
        if reached == longest:
            axes.plot([x, max(x, 0.985), 1.03], [y, y, height], linewidth=0.7, alpha=0.6, **style)
        text = label(name) if reached == longest else f"{label(name)} \u2264 {reached:,}"
        style |= {"fontsize": 10.5, "fontweight": "bold" if position == "alibi" else "normal"}
        axes.text(1.037, height, text, verticalalignment="center", parse_math=False, usetex=False, **style)


def _first_failure(run: Sequence[Record]) -> Record | None:
    """Of a run's records in order of length: the first past the last that can be drawn; None if there is none."""
    drawn = [number for number, record in enumerate(run) if outcome(record) == "ok"]
    beyond = run[drawn[-1] + 1 :] if drawn else ()
    return beyond[0] if beyond else None


def _draw_failure(axes: Axes, last: tuple[int, float], failed: Record) -> None:
    """A mark at the length that could not be drawn, past the line's end `last`."""
    colour, end, height = COLOURS[failed.position], failed.length, last[1]
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
        _draw_line(axes, run[0].position, lengths, heights, thin=names.count(name) > 1, markers=True)
        last = [(x, y) for x, y in zip(lengths, heights, strict=True) if math.isfinite(y)][-1]
        failed = _first_failure(run)
        if failed:
            _draw_failure(axes, last, failed)
        tips.append(_Tip(name, run[0].position, *last))
    _label_lines(axes, tips)


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
    """Perplexity (log) against evaluation length (log2, tokens), non-overlapping beside sliding, 1600 x 700 pixels.

    Both panels share their scales; a protocol of which nothing can be drawn has none. Dotted: the training length. A cross
    is the first length for which a method ran out of memory or that it refused, or whose perplexity is infinite.
    """
    stride, slid = sliding(records)
    panels = {"Non-overlapping windows": non_overlapping(records), f"Sliding window, stride {stride}": slid}
    panels = {title: some for title, some in panels.items() if any(outcome(record) == "ok" for record in some)}
    shown = [record for some in panels.values() for record in some]
    lengths = [length for some in panels.values() for length in _shown_lengths(some)]
    train_lengths = sorted({record.train_length for record in records})
    figure = _figure(height=5.0)
    if not panels:
        figure.text(0.5, 0.5, "no finite perplexity to draw", fontsize=12, color=INK, horizontalalignment="center")
        return figure
    for axes, (title, some) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _style(axes, title, "evaluation length, tokens", "perplexity (lower is better)")
        _length_ticks(axes, lengths, train_lengths)
        _perplexity_ticks(axes, [record.statistics["perplexity"] for record in shown if outcome(record) == "ok"])
        _draw_protocol(axes, some)
        _failure_legend(axes, some)
    return figure


def log_bins(losses: np.ndarray, per_doubling: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Position losses [L] averaged in bins of equal width in log2: (geometric centres, means), positions from 1."""
    length = len(losses)
    wanted = np.geomspace(1, length + 1, max(2, round(per_doubling * np.log2(length + 1)) + 1))
    edges = np.unique(np.round(wanted).astype(int))
    means = np.add.reduceat(losses, edges[:-1] - 1) / np.diff(edges)
    return np.sqrt(edges[:-1] * (edges[1:] - 1.0)), means


def longest_windows(records: Sequence[Record]) -> list[Record]:
    """Of each run, the record of its longest non-overlapping window that was scored and has its nats at hand."""
    longest: dict[str, Record] = {}
    for record in sorted(non_overlapping(records), key=lambda record: record.length):
        if record.status == "ok" and locate(record.nats_file).is_file():
            longest[record.run] = record
    return [longest[run] for run in dict.fromkeys(record.run for record in records) if run in longest]


def _nats(record: Record) -> Float32[np.ndarray, " n"]:
    try:
        return load_nats(locate(record.nats_file), record)
    except ResultsError as error:
        raise ResultsError(f"{error}. Evaluate again: what is damaged is scored anew.") from error


def position_figure(records: Sequence[Record]) -> Figure | None:
    """Mean nats by position in each run's longest non-overlapping window; None when no run's nats are at hand.

    The fall on the left is the early-token curse; a line that goes on falling right of the dotted training length
    uses far context. Binned logarithmically, three bins a doubling.
    """
    chosen = longest_windows(records)
    if not chosen:
        return None
    curves = [log_bins(position_loss(_nats(record), record.length)) for record in chosen]
    figure = _figure(height=4.3)
    axes = figure.subplots()
    _style(axes, "Loss by position in the window", "inputs the target sees, tokens", "nats per token")
    longest, train_lengths = max(record.length for record in chosen), {record.train_length for record in chosen}
    powers = [2**power for power in range(longest.bit_length())]
    _length_ticks(axes, sorted({*powers, longest}), sorted(train_lengths))
    names = [line_name(record) for record in chosen]
    for record, name, (centres, means) in zip(chosen, names, curves, strict=True):
        _draw_line(axes, record.position, centres, means, thin=names.count(name) > 1, markers=False)
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)
    ends = zip(names, chosen, curves, strict=True)
    _label_lines(axes, [_Tip(name, run.position, run.length, means[-1]) for name, run, (_, means) in ends])
    return figure
