"""A model's parameters before they are there: their shapes, and where they and their moments will lie.

The names of the dimensions of each say it, which sharding.RULES split.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from alibi_jax.config import ModelConfig
from alibi_jax.errors import ConfigError
from alibi_jax.model.transformer import TransformerLM
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.sharding import kv_dimension, sharding_of, token_shards

# By the end of a parameter's path. An optimizer moment's path ends in its parameter's, so the same rows place both.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "embedding/table": ("vocab", "width"),  # of cluster b: table_b
    "embedding/projection": ("cluster_width", "width"),
    "attention/out": ("heads", "head_width", "width"),
    "attention/out_bias": ("channels",),
    "mlp/up": ("width", "mlp"),
    "mlp/up_bias": ("mlp",),
    "mlp/gate": ("width", "mlp"),
    "mlp/gate_bias": ("mlp",),
    "mlp/down": ("mlp", "width"),
    "mlp/down_bias": ("channels",),
    "norm/scale": ("channels",),
    "norm/bias": ("channels",),
    "softmax/table": ("vocab", "width"),
    "softmax/projection": ("cluster_width", "width"),
    "softmax/classes": ("rows", "width"),
}


def parameter_shapes(model: ModelConfig) -> Any:
    """Returns the tree of shapes and types of a model's parameters. On a mesh it is called inside `jax.set_mesh(mesh)`."""
    tokens = jnp.zeros(token_shards(), jnp.int32)  # what divides over the mesh; no parameter depends on length
    return jax.eval_shape(TransformerLM(model).init, jax.random.key(0), tokens)["params"]


def dimensions_of(model: ModelConfig, mesh: Mesh) -> dict[str, tuple[str, ...]]:
    """Returns DIMENSIONS with the rows that depend on the model or the mesh: queries, keys, values, and the position method."""
    kv_heads = kv_dimension(model.kv_heads, mesh)
    rows = {}
    for name, heads in (("query", "heads"), ("key", kv_heads), ("value", kv_heads)):
        rows |= {f"attention/{name}": ("width", heads, "head_width"), f"attention/{name}_bias": (heads, "head_width")}
        of_norm = ("head_width",) if model.qk_norm == "head" else (heads, "head_width")
        rows |= {f"{name}_norm/scale": of_norm, f"{name}_norm/bias": of_norm}
    parameters = POSITIONS[model.position].from_config(model).parameters()
    rows |= {f"position/{name}": parameter.dimensions for name, parameter in parameters.items()}
    return rows | DIMENSIONS


def _row(path: tuple, rows: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the names of the dimensions of the parameter, or moment, at a path."""
    name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path[-2:])
    names = name, re.sub(r"_\d+$", "", name)  # without the number of a cluster
    # the first: query_norm/scale has a row of its own, before that of all norms
    known = [row for each in names for row in rows if each == row or each.endswith("_" + row)]
    if not known:
        raise ConfigError(f"sharding: got a parameter {name!r}, expected a row for it in DIMENSIONS. Add one.")
    return rows[known[0]]


def tree_shardings(model: ModelConfig, tree: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every parameter, moment or count in a tree of a model's arrays or shapes."""
    rows = dimensions_of(model, mesh)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        if np.ndim(leaf) == 0:
            return sharding_of(mesh, ())
        dimensions = _row(path, rows)
        stacked = np.ndim(leaf) - len(dimensions)  # one more in front when layers are scanned
        return sharding_of(mesh, ("layers",) * stacked + dimensions)

    return jax.tree_util.tree_map_with_path(place, tree)
