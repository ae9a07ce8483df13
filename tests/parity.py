"""The parity table: how far the log-probabilities of imported models are from those of their families' own code.

Tests add its rows with `compare`; `pytest --parity runs/parity` writes those of its session to runs/parity.md and .json.
"""

import importlib.metadata
import importlib.util
import json
import platform
from pathlib import Path

import numpy as np

from benchmarks.tolerances import TOLERANCE

ROWS: list[dict] = []
PACKAGES = ("jax", "numpy", "safetensors", "torch", "transformers")
HEADER = "| family | heads | options | compared with | tokens | largest difference |\n|---|---|---|---|---|---|\n"


def compare(family: str, heads: int, options: str, oracle: str, pairs: dict[int, tuple]) -> None:
    """Adds a row, and asserts that log-probabilities [..., V] are within the tolerance, natural logarithms.

    options: what the model has that others of its family lack; oracle: whose code, such as "transformers, sdpa". pairs:
    length in tokens -> (ours, theirs); the first length is the one that the model was trained at.
    """
    differences = {}
    for length, (ours, theirs) in pairs.items():
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert ours.shape == theirs.shape, f"shapes {ours.shape} and {theirs.shape}"
        differences[length] = float(np.abs(ours - theirs).max())
    names = {"family": family, "heads": heads, "options": options, "oracle": oracle}
    ROWS.append(names | {"differences": {str(length): difference for length, difference in differences.items()}})
    for length, difference in differences.items():
        assert difference <= TOLERANCE["imported"], f"{family}: {difference:.3g} at {length} tokens"


def write_table(path: str) -> None:
    """Writes the session's rows as PATH.md and PATH.json, with the versions that made them."""
    rows = sorted(ROWS, key=lambda row: (row["family"], row["heads"], row["options"]))
    installed = [name for name in PACKAGES if importlib.util.find_spec(name)]
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in installed}
    table = {"tolerance": TOLERANCE["imported"], "versions": versions, "rows": rows}
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.json").write_text(json.dumps(table, indent=2) + "\n")
    Path(f"{path}.md").write_text(markdown(table))


def markdown(table: dict) -> str:
    """Returns the table as text."""
    versions = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    return (
        "Imported models with random weights beside their families' own code: largest difference of a log-probability (nats), "
        f"float32, at the training length and four times it. Allowed: {table['tolerance']:g}. Made by `make test-peers` on a "
        f"CPU ({versions}).\n\n{HEADER}{''.join(map(_line, table['rows']))}"
    )


def _line(row: dict) -> str:
    lengths, largest = ", ".join(row["differences"]), max(row["differences"].values())
    cells = row["family"], row["heads"], row["options"], row["oracle"], lengths, f"{largest:.1e}"
    return f"| {' | '.join(map(str, cells))} |\n"
