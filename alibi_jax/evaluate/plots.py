"""The two figures of a report, drawn from the records of a sweep without matplotlib's global state.

Runs whose labels differ only in a last "-s0", "-s1" ... are seeds of one line: each is drawn thinly, labelled once.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from alibi_jax.evaluate.statistics import position_loss

Record = dict[str, Any]

# Okabe and Ito's palette, told apart under the common kinds of colour blindness; one fixed colour and marker a method.
COLOURS = {
    "alibi": "#D55E00",
    "sinusoidal": "#0072B2",
    "rotary": "#009E73",
    "t5": "#CC79A7",
    "learned": "#B8860B",
    "none": "#555555",
}
MARKERS = {"alibi": "o", "sinusoidal": "s", "rotary": "^", "t5": "D", "learned": "v", "none": "P"}
NAMES = {"alibi": "ALiBi", "t5": "T5 bias", "none": "no positions"}  # the others are called as they are written
FAILURE_MARKERS = {"out of memory": "X", "refused": "|"}
INK, FAINT = "#222222", "#D9D9D9"


def line_name(record: Record) -> str:
    """How the record's run is labelled in figures: without its seed, and by the method's name where that is all."""
    name = re.sub(r"-s\d+$", "", record["run"])
    return NAMES.get(name, name)


def non_overlapping(records: Iterable[Record]) -> list[Record]:
    """The records whose stride is their length."""
    return [record for record in records if record["stride"] == record["length"]]


def sliding(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """The one sliding protocol, "L/4" or a fixed "64", that was evaluated most, as (name, records).

    ("", []) when no protocol spans more than one length though the non-overlapping one does: a single stride at the
    training length is there to measure far context, not to be drawn.
    """
    candidates = [record for record in records if record["stride"] < record["length"]]
    families = {}
    for divisor in sorted({round(record["length"] / record["stride"]) for record in candidates}):
        same_share = [record for record in candidates if record["stride"] == max(1, record["length"] // divisor)]
        families[f"L/{divisor}"] = same_share
    for stride in sorted({record["stride"] for record in candidates}):
        families[str(stride)] = [record for record in candidates if record["stride"] == stride]
    name, chosen = max(families.items(), key=lambda family: len(family[1]), default=("", []))
    span, whole = ({record["length"] for record in some} for some in (chosen, non_overlapping(records)))
    return (name, chosen) if len(span) > 1 or len(whole) <= 1 else ("", [])


def by_line(records: Iterable[Record]) -> dict[str, list[list[Record]]]:
    """line name -> its runs -> each run's records by rising length."""
    lines: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record["length"]):
        lines.setdefault(line_name(record), {}).setdefault(record["run"], []).append(record)
    return {name: list(runs.values()) for name, runs in lines.items()}


def readable_ticks(low: float, high: float) -> list[float]:
    """Ticks for a log axis from `low` to `high`: about five or more, at round numbers."""
    choices = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], np.arange(1, 10, 0.5), np.arange(1, 10, 0.25)]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for mantissas in choices:
        ticks = [float(f"{m}e{d}") for d in decades for m in mantissas if low <= float(f"{m}e{d}") <= high]
        if len(ticks) >= 5:
            break
    return ticks


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights in the order given, neighbours pushed apart until they are `gap` from each other."""
    order, placed = np.argsort(heights, kind="stable"), np.sort(np.asarray(heights, float))
    for _ in range(200):
        overlap = np.maximum(0, gap - np.diff(placed)) / 2
        placed[:-1] -= overlap
        placed[1:] += overlap
    moved = np.empty_like(placed)
    moved[order] = placed
    return moved.tolist()


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


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


def _draw_line(axes: Axes, position: str, xs: Sequence, ys: Sequence, thin: bool, markers: bool) -> None:
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


def _label_lines(axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Names to the right of the axes, each tied to its line's end; ends: (name, position, x, y)."""
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [to_axes.transform((x, y)) for _, _, x, y in ends]
    for (name, position, _, _), (x, y), height in zip(ends, points, spread([y for _, y in points], 0.062), strict=True):
        colour = COLOURS[position]
        knee = [max(x, 0.985), 1.03]
        axes.plot([x, *knee], [y, y, height], color=colour, lw=0.7, alpha=0.6, transform=axes.transAxes, clip_on=False)
        weight = "bold" if position == "alibi" else "normal"
        text = {"fontsize": 10.5, "color": colour, "fontweight": weight, "va": "center", "clip_on": False}
        axes.text(1.035, height, name, transform=axes.transAxes, **text)


def _draw_failure(axes: Axes, scored: Sequence[Record], failed: Sequence[Record]) -> float:
    """A mark at the first length past the line that could not be scored; returns where the line now ends."""
    last = scored[-1]
    beyond = [record for record in failed if record["length"] > last["length"]]
    if not beyond:
        return last["length"]
    colour, end, height = COLOURS[last["position"]], beyond[0]["length"], last["perplexity"]
    axes.plot([last["length"], end], [height, height], color=colour, linewidth=1.2, linestyle=(0, (2, 2)))
    marker = FAILURE_MARKERS[beyond[0]["status"]]
    axes.plot([end], [height], color=colour, marker=marker, markersize=10, markeredgewidth=1.6, zorder=5)
    return end


def _draw_protocol(axes: Axes, records: Sequence[Record]) -> None:
    ends = []
    for name, runs in by_line(records).items():
        tips = []
        for run in runs:
            scored = [record for record in run if record["status"] == "ok"]
            if not scored:
                continue
            lengths, heights = ([record[key] for record in scored] for key in ("length", "perplexity"))
            _draw_line(axes, run[0]["position"], lengths, heights, thin=len(runs) > 1, markers=True)
            end = _draw_failure(axes, scored, [record for record in run if record["status"] != "ok"])
            tips.append((end, heights[-1]))
        if tips:
            x, y = np.exp(np.mean(np.log(tips), axis=0))
            ends.append((name, runs[0][0]["position"], max(x, max(tip[0] for tip in tips)), y))
    _label_lines(axes, ends)


def _failure_legend(axes: Axes, records: Sequence[Record]) -> None:
    seen = sorted({record["status"] for record in records} - {"ok"})
    marks = [
        Line2D([], [], color="#555555", linestyle="none", marker=FAILURE_MARKERS[status], markersize=9, label=status)
        for status in seen
    ]
    if marks:
        axes.legend(handles=marks, loc="upper left", fontsize=9.5, frameon=False, labelcolor=INK)


def extrapolation_figure(records: Sequence[Record]) -> Figure:
    """Perplexity (log) against evaluation length (log2, tokens), non-overlapping beside sliding, 1600 x 700 pixels.

    Both panels share their scales. Dotted: the training length. A cross is where a method ran out of memory.
    """
    stride, slid = sliding(records)
    panels = [("Non-overlapping windows", non_overlapping(records)), (f"Sliding window, stride {stride}", slid)]
    shown = [record for _, some in panels for record in some]
    scored = [record["perplexity"] for record in shown if record["status"] == "ok"]
    figure = Figure(figsize=(80 / 7, 5), dpi=140, facecolor="white")
    figure.subplots_adjust(left=0.06, right=0.905, bottom=0.155, top=0.89, wspace=0.42)
    train_lengths = sorted({record["train_length"] for record in records})
    for axes, (title, some) in zip(figure.subplots(1, 2), panels, strict=True):
        if not any(record["status"] == "ok" for record in some):
            axes.set_axis_off()
            axes.text(0.5, 0.5, f"No {title.split()[0].lower()} evaluation in these records", ha="center", color=INK)
            continue
        _style(axes, title, "evaluation length, tokens", "perplexity (lower is better)")
        low, high = min(scored) / 1.06, max(scored) * 1.1
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        _length_ticks(axes, [record["length"] for record in shown], train_lengths)
        ticks = readable_ticks(low, high)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FixedFormatter([f"{tick:,.10g}" for tick in ticks]))
        axes.yaxis.set_minor_locator(NullLocator())
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
    """Of each run, the record of its longest non-overlapping window with a whole window scored and its nats at hand."""
    longest: dict[str, Record] = {}
    for record in sorted(non_overlapping(records), key=lambda record: record["length"]):
        if (
            record["status"] == "ok"
            and record["length"] <= record["num_tokens"]
            and Path(record["nats_file"]).is_file()
        ):
            longest[record["run"]] = record
    return [longest[run] for run in dict.fromkeys(record["run"] for record in records) if run in longest]


def position_figure(records: Sequence[Record]) -> Figure | None:
    """Mean nats by position in each run's longest non-overlapping window; None when no run's nats are at hand.

    The fall on the left is the early-token curse; a line that goes on falling right of the dotted training length
    uses far context. Binned logarithmically, three bins a doubling.
    """
    chosen = longest_windows(records)
    if not chosen:
        return None
    curves = [log_bins(position_loss(np.load(record["nats_file"]), record["length"])) for record in chosen]
    figure = Figure(figsize=(80 / 7, 4.3), dpi=140, facecolor="white")
    figure.subplots_adjust(left=0.06, right=0.88, bottom=0.18, top=0.88)
    axes = figure.subplots()
    _style(axes, "Loss by position in the window", "inputs the target sees, tokens", "nats per token")
    longest, train_lengths = max(record["length"] for record in chosen), {record["train_length"] for record in chosen}
    powers = [2**power for power in range(longest.bit_length())]
    _length_ticks(axes, sorted({*powers, longest}), sorted(train_lengths))
    names = [line_name(record) for record in chosen]
    for record, name, (centres, means) in zip(chosen, names, curves, strict=True):
        _draw_line(axes, record["position"], centres, means, thin=names.count(name) > 1, markers=False)
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)
    ends = {name: (name, record["position"], *map(float, (xs[-1], ys[-1]))) for record, name, (xs, ys) in
            zip(chosen, names, curves, strict=True)}  # fmt: skip
    _label_lines(axes, list(ends.values()))
    return figure
