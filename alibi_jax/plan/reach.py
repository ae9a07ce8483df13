"""How much of causal attention a run computes: the fraction of its blocks that ALiBi's reach leaves, by the length."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from alibi_jax.errors import require

KERNELS = "(the kernels)"  # in the name of the bound that the kernels use, in experiments/reach.py
RANDOM = "random"  # the model of random inputs there
Share = Callable[[int], float]  # of a length in tokens: the fraction of the causal blocks that are visited, 0 to 1


def every_block(length: int) -> float:
    """Returns 1: all of causal attention."""
    return 1.0


def share_of(named: float | Path) -> Share:
    """Returns the share that an option names: a fraction, the same at every length, or a file (`measured`)."""
    return measured(named) if isinstance(named, Path) else lambda length: named


def at_length(share: float, measured: int, length: int) -> float:
    """Returns the share of a head at `length`, from that at the length where it was measured.

    A head that sees W keys visits 1 - (1 - W / L)^2 of the causal blocks, its W taken to be the same at every length; one that
    visits all where it was measured visits all.
    """
    if share >= 1:
        return 1.0
    width = measured * (1 - math.sqrt(1 - share))
    return 1 - max(0.0, 1 - width / length) ** 2


def measured(file: Path) -> Share:
    """Returns the share by the file reach.csv of experiments/reach.py: the mean over layers and heads, of the model that visits
    most. Between and beyond the lengths that were measured, `at_length` of the nearest one below, else of the shortest.

    ConfigError where the file is not there or has no trained model.
    """
    require(file.is_file(), "attention_share", f"{file}, which is no file", "a fraction, or a reach.csv", "Correct it.")
    models: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    columns = {"model", "length", "bound", "share_visited"}
    rows = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
    require(
        columns <= set(rows.fieldnames or ()),
        "attention_share",
        f"{file} with columns {', '.join(rows.fieldnames or ('none',))}",
        "the reach.csv that experiments/reach.py writes",
        "Name that file, or pass a fraction.",
    )
    for row in rows:
        if row["bound"].endswith(KERNELS) and row["model"] != RANDOM:
            models[row["model"]][int(row["length"])].append(float(row["share_visited"]))
    require(
        bool(models),
        "attention_share",
        f"{file} without a trained model",
        "one measured on a run",
        "Measure it: python -m experiments.reach --runs RUN.",
    )
    return lambda length: max(_mean_at(heads, length) for heads in models.values())


def _mean_at(heads: Mapping[int, list[float]], length: int) -> float:
    nearest = max((each for each in heads if each <= length), default=min(heads))
    return sum(at_length(share, nearest, length) for share in heads[nearest]) / len(heads[nearest])
