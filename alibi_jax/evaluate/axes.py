"""What figures are drawn of: an empty figure, its axes, a run's line, the labels of lines.

Nothing here uses matplotlib's global state.
"""

import io
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import ArrayLike

from alibi_jax.positions.methods import POSITIONS
from alibi_jax.run.display import label, multiple

# Okabe and Ito's palette, distinct under the common kinds of colour blindness: fixed colours and markers of the methods in
# published figures. Any other method takes the next of the further ones; 4 and 5 of them make 20 pairs before one returns.
FIXED_COLOURS = {
    "alibi": "#D55E00",
    "sinusoidal": "#0072B2",
    "rotary": "#009E73",
    "t5": "#CC79A7",
    "learned": "#B8860B",
    "none": "#555555",
}
FIXED_MARKERS = {"alibi": "o", "sinusoidal": "s", "rotary": "^", "t5": "D", "learned": "v", "none": "p"}
FURTHER_COLOURS = ("#56B4E9", "#8C510A", "#5E3C99", "#E69F00")
FURTHER_MARKERS = ("h", "<", "*", ">", "X")
INK, FAINT = "#222222", "#D9D9D9"


def one_for_each(names: Iterable[str], fixed: dict[str, str], further: Sequence[str]) -> dict[str, str]:
    """Returns the fixed choice of each name that has one; the others take the further ones in turn, again and again."""
    others = (name for name in names if name not in fixed)
    return fixed | dict(zip(others, itertools.cycle(further), strict=False))


COLOURS = one_for_each(POSITIONS, FIXED_COLOURS, FURTHER_COLOURS)
MARKERS = one_for_each(POSITIONS, FIXED_MARKERS, FURTHER_MARKERS)


def readable_ticks(low: float, high: float) -> list[float]:
    """Returns ticks for a log axis from `low` to `high`: four or more where they fit, at round numbers; at most some dozen."""
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
    """Returns the heights in their order, neighbours pushed apart to `gap`, all in [0, 1]."""
    order = np.argsort(heights, kind="stable")
    placed = np.sort(np.asarray(heights, float))
    for _ in range(200):
        overlap = np.maximum(0, gap - np.diff(placed)) / 2
        placed[:-1] -= overlap
        placed[1:] += overlap
        placed = np.clip(placed, 0, 1)
    moved = np.empty_like(placed)
    moved[order] = placed
    return moved.tolist()


def png_bytes(figure: Figure) -> bytes:
    """Returns the figure as a PNG file. A character of a label that the font lacks is drawn as a box, without a warning."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing|Matplotlib currently does not support .* natively")
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def new_figure(height: float) -> Figure:
    """Returns an empty figure 1600 pixels wide, `height` inches of 140 pixels high, on white whatever surrounds it."""
    figure = Figure(figsize=(80 / 7, height), dpi=140, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03)
    return figure


def style(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Sets the title, the labels and the lines of a grid."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    axes.set_xlabel(xlabel, fontsize=10.5, color=INK)
    axes.set_ylabel(ylabel, fontsize=10.5, color=INK)
    axes.grid(True, axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5, colors=INK)


def length_ticks(axes: Axes, lengths: Sequence[int], train_lengths: Sequence[int]) -> None:
    """Sets a log2 axis with ticks at the lengths, training lengths first, others where there is room."""
    low, high = min(lengths), max(lengths)
    room = max(np.log2(high / low), 1.0) / 8
    kept: list[int] = []
    for length in [*train_lengths, *sorted(lengths, reverse=True)]:
        if all(abs(np.log2(length / other)) >= room for other in kept):
            kept.append(length)
    unit = train_lengths[0] if len(train_lengths) == 1 else None
    labels = [f"{length:,}" + (f"\n{multiple(length / unit)}" if unit and length >= unit else "") for length in kept]
    axes.set_xscale("log", base=2)
    axes.set_xlim(low / 2**0.2, high * 2**0.2)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    for length in train_lengths:
        axes.axvline(length, color="#777777", linestyle=(0, (1, 2)), linewidth=1.3, zorder=1)


def draw_line(axes: Axes, position: str, xs: ArrayLike, ys: ArrayLike, thin: bool, markers: bool) -> None:
    """Draws a run's line in its position method's colour; thin: one of several seeds."""
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


class Tip(NamedTuple):
    """Where a run's line ends, for its label."""

    name: str  # of the line
    position: str  # method
    length: int  # longest scored
    height: float


def label_lines(axes: Axes, tips: Sequence[Tip]) -> None:
    """Writes names right of the axes, once a line, tied to its end; one that ends early says up to where it was scored."""
    lines = {name: [tip for tip in tips if tip.name == name] for name in dict.fromkeys(tip.name for tip in tips)}
    longest = max(tip.length for tip in tips)
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((longest, np.mean([tip.height for tip in line]))) for line in lines.values()]
    for (name, line), (x, y), height in zip(lines.items(), ends, spread([y for _, y in ends], 0.062), strict=True):
        position = line[0].position
        reached = max(tip.length for tip in line)
        style = {"color": COLOURS[position], "transform": axes.transAxes, "clip_on": False}
        if reached == longest:
            axes.plot([x, max(x, 0.985), 1.03], [y, y, height], linewidth=0.7, alpha=0.6, **style)
        text = label(name) if reached == longest else f"{label(name)} \u2264 {reached:,}"
        style |= {"fontsize": 10.5, "fontweight": "bold" if position == "alibi" else "normal"}
        axes.text(1.037, height, text, verticalalignment="center", parse_math=False, usetex=False, **style)
