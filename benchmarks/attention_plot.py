"""Draws what benchmarks/attention.py measured: milliseconds against length, forward beside forward+backward.

    python -m benchmarks.attention_plot RANDOM.json [TRAINED.json] --out FIGURE.png

Of a second file, of a trained model's inputs, only our lines are drawn, dashed: what can be skipped depends on the
inputs, and so does our time alone.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from alibi_jax.evaluate.axes import FAINT, INK, png_bytes
from alibi_jax.storage import write_atomically

OURS = "blockwise"
TITLES = {"forward": "Forward", "forward+backward": "Forward and backward"}

# Ours in ALiBi's colour, the peers in others of the same palette; the widest line is the one the figure is about.
STYLES = {
    OURS: {"color": "#D55E00", "marker": "o", "linewidth": 2.8, "markersize": 6.5, "zorder": 5},
    f"{OURS}, nothing skipped": {"color": "#B8860B", "marker": "v"},
    "SDPA + bias": {"color": "#0072B2", "marker": "s"},
    "FlexAttention": {"color": "#009E73", "marker": "^"},
}
NAMES = {OURS: "alibi_jax", f"{OURS}, nothing skipped": "alibi_jax, nothing skipped"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Milliseconds of ALiBi attention against length, from one or two results of benchmarks/attention.py."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]  # random inputs; and, if there is one, trained inputs
    out: Path = Path("attention.png")  # the figure, 1600 pixels wide


def read(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    """The records; ValueError unless they are one or two, of the same number of heads and width."""
    records = [json.loads(path.read_text()) for path in paths]
    sizes = [record["heads_and_width"] for record in records]
    if len(records) not in (1, 2) or sizes[0] != sizes[-1]:
        raise ValueError(
            f"results: got {len(records)} files of [heads, head width] {sizes}, expected one, or two of the same. "
            "Draw others in figures of their own."
        )
    return records


def draw_line(axes: Axes, rows: list[dict[str, Any]], name: str, label: str, **changes: Any) -> None:
    """One contender's milliseconds at the lengths it was timed at."""
    timed = sorted((row["length"], row["milliseconds"][name]) for row in rows if name in row["milliseconds"])
    if timed:
        look = {"linewidth": 1.6, "markersize": 5, "zorder": 3, "markeredgecolor": "white", "markeredgewidth": 0.8}
        axes.plot(*zip(*timed, strict=True), label=label, **(look | STYLES[name] | changes))


def style(axes: Axes, title: str, lengths: list[int]) -> None:
    """Log scales, lengths labelled where they are, and the house's look."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=12)
    axes.set_xlabel("length, tokens", fontsize=10.5, color=INK)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis, locator in ((axes.xaxis, FixedLocator(lengths)), (axes.yaxis, LogLocator(10, subs=(1, 3)))):
        axis.set_major_locator(locator)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(True, axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5, colors=INK)


def attention_figure(records: list[dict[str, Any]]) -> Figure:
    """Milliseconds (log) against length (log2, tokens), both panels on one scale, 1600 x 700 pixels."""
    figure = Figure(figsize=(80 / 7, 5), dpi=140, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03)
    inputs = ["trained" if record["options"]["inputs"] else "random" for record in records]
    for axes, (direction, title) in zip(figure.subplots(1, 2, sharey=True), TITLES.items(), strict=True):
        parts = [[row for row in record["results"] if row["direction"] == direction] for record in records]
        for name in STYLES:
            label, both = NAMES.get(name, name), name == OURS and len(records) > 1
            draw_line(axes, parts[0], name, f"{label}, {inputs[0]} inputs" if both else label)
            if both:
                draw_line(axes, parts[1], name, f"{label}, {inputs[1]} inputs", linestyle=(0, (3, 1.5)), linewidth=2)
        style(axes, title, sorted({row["length"] for part in parts for row in part}))
        look = {"fontsize": 10, "labelcolor": "linecolor", "edgecolor": "none", "framealpha": 1.0}
        legend = axes.legend(loc="upper left", handlelength=2.6, **look)  # its white ground hides the grid behind it
        legend.get_texts()[0].set_fontweight("bold")
    figure.axes[0].set_ylabel("milliseconds (lower is better)", fontsize=10.5, color=INK)
    figure.axes[0].set_ylim(top=1.5 * figure.axes[0].get_ylim()[1])
    return figure


def main(options: Options) -> None:
    """Writes the figure."""
    write_atomically(options.out, png_bytes(attention_figure(read(options.results))))


if __name__ == "__main__":
    main(tyro.cli(Options))
