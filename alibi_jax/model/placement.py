"""Where a model's parameters and their moments lie: the names of the dimensions of each, which sharding.RULES split."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from alibi_jax.config import ModelConfig
from alibi_jax.errors import ConfigError
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.sharding import sharding_of

# By the end of a parameter's path. An optimizer moment's path ends in its parameter's, so the same rows place both.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "embedding/table": ("vocab", "width"),  # of cluster b: table_b
    "embedding/projection": ("cluster_width", "width"),
    "attention/query": ("width", "heads", "head_width"),
    "attention/key": ("width", "heads", "head_width"),
    "attention/value": ("width", "heads", "head_width"),
    "attention/out": ("heads", "head_width", "width"),
    "attention/query_bias": ("heads", "head_width"),
    "attention/key_bias": ("heads", "head_width"),
    "attention/value_bias": ("heads", "head_width"),
    "attention/out_bias": ("channels",),
    "mlp/up": ("width", "mlp"),
    "mlp/up_bias": ("mlp",),
    "mlp/down": ("mlp", "width"),
    "mlp/down_bias": ("channels",),
    "norm/scale": ("channels",),
    "norm/bias": ("channels",),
    "softmax/table": ("vocab", "width"),
    "softmax/projection": ("cluster_width", "width"),
    "softmax/classes": ("rows", "width"),
}


def dimensions_of(model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Returns DIMENSIONS with the rows of the model's position method."""
    parameters = POSITIONS[model.position].from_config(model).parameters()
    return DIMENSIONS | {f"position/{name}": parameter.dimensions for name, parameter in parameters.items()}


def _row(path: tuple, rows: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the names of the dimensions of the parameter, or moment, at a path."""
    name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path[-2:])
    names = name, re.sub(r"_\d+$", "", name)  # without the number of a cluster
    known = [row for each in names for row in rows if each == row or each.endswith("_" + row)]
    if not known:
        raise ConfigError(f"sharding: got a parameter {name!r}, expected a row for it in DIMENSIONS. Add one.")
    return rows[known[0]]


def tree_shardings(model: ModelConfig, tree: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every parameter, moment or count in a tree of a model's arrays or shapes."""
    rows = dimensions_of(model)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        if np.ndim(leaf) == 0:
            return sharding_of(mesh, ())
        dimensions = _row(path, rows)
        stacked = np.ndim(leaf) - len(dimensions)  # one more in front when layers are scanned
        return sharding_of(mesh, ("layers",) * stacked + dimensions)

    return jax.tree_util.tree_map_with_path(place, tree)
