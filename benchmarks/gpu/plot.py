"""Draws the speed of attention on a GPU: effective TFLOP/s against length, forward beside forward and backward."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from alibi_jax.evaluate.axes import COLOURS, FURTHER_COLOURS, INK, length_ticks, new_figure, style
from alibi_jax.model.flops import peak_flops
from benchmarks.gpu.tables import contenders_of, timed

TITLES = {"forward": "Forward", "forward+backward": "Forward and backward"}
MARKERS = ("o", "s", "^", "D", "v", "p", "h", "<", ">", "X")
PALETTE = (COLOURS["alibi"], "#0072B2", "#009E73", "#CC79A7", "#555555", *FURTHER_COLOURS)
DASHED = (0, (3, 1.5))


def speed_figure(rows: list[dict[str, Any]], card: str) -> Figure:
    """Returns log-log lines, one a contender, of the head width that was timed in most settings; and the card's peak."""
    peak = peak_flops(card)
    widths = [row["width"] for row in timed(rows)]
    width = max(sorted(set(widths)), key=widths.count)
    rows = [row for row in timed(rows) if row["width"] == width]
    figure = new_figure(5.4)
    for axes, (direction, title) in zip(figure.subplots(1, 2, sharey=True), TITLES.items(), strict=True):
        style(axes, f"{title}, head width {width}", "length, tokens", "")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        length_ticks(axes, sorted({row["length"] for row in rows}), [])
        for number, name in enumerate(contenders_of(rows)):
            look = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
            draw_contender(axes, name, [row for row in rows if row["direction"] == direction], look)
        if peak is not None:
            axes.axhline(1e-12 * peak, color=INK, linestyle=(0, (1, 2)), label="the card's peak, as published")
    figure.axes[0].set_ylabel("effective TFLOP/s (higher is better)", fontsize=10.5, color=INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9.5, frameon=False, handlelength=3.2)
    figure.suptitle(
        f"{card}: causal attention, 1 x {rows[0]['heads']} heads, bfloat16", x=0.01, ha="left", fontsize=12, color=INK
    )
    return figure


def draw_contender(axes: Axes, name: str, rows: list[dict[str, Any]], look: dict[str, Any]) -> None:
    """Draws a contender's line, and of one that skips blocks a second, dashed, for inputs with a trained model's bounds.

    What may be skipped depends on the inputs; the others compute the same whatever the inputs are.
    """
    rows = [row for row in rows if row["contender"] == name]
    skips = any(row["visited"] < 1 for row in rows)
    for inputs, line in (("random", "-"), ("trained", DASHED)) if skips else (("random", "-"),):
        points = sorted((row["length"], row["effective_tflops"]) for row in rows if row["inputs"] == inputs)
        if points:
            width = {"linewidth": 2.6 if skips else 1.6, "markeredgecolor": "white", "zorder": 4 if skips else 3}
            label = f"{name}, {inputs} inputs" if skips else name
            axes.plot(*zip(*points, strict=True), label=label, linestyle=line, **width, **look)
