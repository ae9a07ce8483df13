"""Logical dimension -> mesh axis: the only file that knows a mesh axis by name.

Two tables. DIMENSIONS names the dimensions of every parameter by the end of its path; an optimizer moment's path ends in
its parameter's, so the same rows place both. RULES says over which mesh axes a dimension is split. Activations and
batches are placed by `shard(x, "batch", "length", ...)` with the same RULES.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from alibi_jax.config import Config, MeshConfig
from alibi_jax.errors import ConfigError, require

AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": "sequence",  # of activations and batches: attention goes round a ring (attention/ring.py)
    "tokens": ("data", "fsdp", "sequence"),  # of batch and length, one after the other
    "channels": None,  # of activations: every device holds whole tokens
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "width": "fsdp",  # of parameters: gathered layer by layer where they are used
    "head_width": None,
    "layers": None,
    "rows": None,  # of small tables
    "cluster_width": None,  # of a projection of the adaptive input and softmax
    "words": None,  # of a seed
    "replicated": None,  # on every device, whatever else changes here
}

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "embedding/table": ("vocab", "width"),  # of cluster b: table_b
    "embedding/projection": ("cluster_width", "width"),
    "position/position_table": ("rows", "width"),
    "position/bucket_table": ("rows", "heads"),
    "position/log_slopes": ("heads",),
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


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` x `tensor` x `sequence` devices; a size of -1 takes the rest. ConfigError if they do not
    multiply out.

    Its axes are Auto (the compiler propagates shardings), which Linen needs; jax.make_mesh's own default is Explicit.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = list(dataclasses.astuple(config))
    said = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    named = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // named if size == -1 else size for size in sizes]
    require(
        math.prod(sizes) == len(devices),
        "mesh",
        f"{said} on {len(devices)} devices",
        "sizes that multiply to the number of devices (-1: the rest)",
        "Change the sizes of the mesh.",
    )
    return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(sizes: Sequence[int], devices: list) -> np.ndarray:
    """Neighbours in an axis near each other; several slices of TPUs split the first axes that they divide, so that most of what
    is sent stays within a slice. jax.make_mesh refuses some of these meshes."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    across, left = [], slices
    for size in sizes:
        across.append(math.gcd(size, left))
        left //= across[-1]
    require(left == 1, "mesh", f"{list(sizes)} over {slices} slices", "axes that the slices divide", "Change the mesh.")
    inside = [size // ways for size, ways in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def check_mesh(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """ConfigError, with the numbers, where a dimension of the run does not divide over its mesh axes."""
    train, model = config.train, config.model
    part = train.batch_size // train.gradient_accumulation
    sizes = [
        ("train.batch_size / train.gradient_accumulation", part, "batch"),
        ("model.num_heads", model.num_heads, "heads"),
        ("model.mlp_width", model.mlp_width, "mlp"),
        ("model.width", model.width, "width"),
    ]
    for cluster in model.clusters if model.vocab_size else []:
        tokens = f"tokens {cluster.first:,} to {cluster.end:,}"
        field = f"model.adaptive_cutoffs, {tokens}" if model.adaptive_cutoffs else "model.vocab_size"
        sizes += [(field, cluster.size, "vocab"), (f"width of the vectors of {tokens}", cluster.width, "width")]
    for field, size, dimension in sizes:
        _check_size(field, size, dimension, mesh)
    check_divides((train.train_length, *train.validate_lengths), mesh)


def check_divides(lengths: Sequence[int], mesh: Mesh | AbstractMesh) -> None:
    """ConfigError where an input's length in tokens does not divide over the mesh."""
    for length in lengths:
        _check_size("length", length, "length", mesh)


def _check_size(field: str, size: int, dimension: str, mesh: Mesh | AbstractMesh) -> None:
    ways = _ways(mesh, dimension)
    expected = f"a multiple of {ways}, the devices along {RULES[dimension]}"
    require(size % ways == 0, field, size, expected, f"Use {-(-size // ways) * ways}, or change the mesh.")


def _ways(mesh: Mesh | AbstractMesh, dimension: str) -> int:
    axes = RULES[dimension] or ()
    return math.prod(mesh.shape.get(axis, 1) for axis in ((axes,) if isinstance(axes, str) else axes))


def local_size(size: int, dimension: str) -> int:
    """A device's share of a dimension under the mesh of `jax.set_mesh`, rounded up; all of it without a mesh."""
    return -(-size // _ways(jax.sharding.get_abstract_mesh(), dimension))


def ways(mesh: Mesh | AbstractMesh, *dimensions: str) -> int:
    """Into how many parts an array of these dimensions is split."""
    return math.prod(_ways(mesh, dimension) for dimension in dimensions)


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split; 1 without a mesh."""
    return _ways(mesh, "batch")


def token_ways() -> tuple[int, int]:
    """Into how many parts the batch and the length are split under the mesh of `jax.set_mesh`: the smallest [B, L] it takes."""
    mesh = jax.sharding.get_abstract_mesh()
    return _ways(mesh, "batch"), _ways(mesh, "length")


def _spec(dimensions: tuple[str, ...]) -> PartitionSpec:
    return PartitionSpec(*(RULES[dimension] for dimension in dimensions))


def shard(x: jax.Array, *dimensions: str) -> jax.Array:
    """Constrains an activation inside jit to the mesh of `jax.set_mesh`; without a mesh it is the identity."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, _spec(dimensions))


def device() -> tuple[str, str]:
    """(platform: "cpu", "gpu" or "tpu"; kind) of what is traced: the mesh of `jax.set_mesh`, or else the default device."""
    found = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device
    if found is None or isinstance(found, str):
        found = jax.devices(found)[0]
    return found.platform, found.device_kind


def _local_spec(dimensions: tuple[str, ...], mesh: AbstractMesh) -> PartitionSpec:
    """Like `_spec`, with only those axes the mesh has."""
    parts = [(axes,) if isinstance(axes := RULES[dimension] or (), str) else axes for dimension in dimensions]
    return PartitionSpec(*(tuple(axis for axis in axes if axis in mesh.shape) or None for axes in parts))


def on_each_device(function: Callable, inputs: tuple, dimensions: tuple, output: tuple[str, ...]) -> jax.Array:
    """function(*inputs) of the mesh of `jax.set_mesh`, each device working alone on its part of every input (shard_map).

    dimensions: for each array of the inputs, in the order of the pytree's leaves, the names of its dimensions, as in RULES.
    Without a mesh, or one whose axes split nothing here, a plain call. ValueError where a dimension does not divide over its
    axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or all(_ways(mesh, name) == 1 for names in dimensions for name in names):
        return function(*inputs)
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            f"mesh: got {mesh}, expected axes of AxisType.Auto. Make it with "
            f"axis_types=(AxisType.Auto,) * {len(mesh.axis_names)}."
        )
    arrays, tree = jax.tree.flatten(inputs)
    for array, names in zip(arrays, dimensions, strict=True):
        for size, name in zip(array.shape, names, strict=True):
            if size % _ways(mesh, name):
                raise ValueError(
                    f"{name}: got {size}, expected a multiple of {_ways(mesh, name)}, the devices along {RULES[name]}. "
                    "Change the size or the mesh."
                )
    specs = tree.unflatten([_local_spec(names, mesh) for names in dimensions])
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=_local_spec(output, mesh), check_vma=False)
    return mapped(*inputs)


def ring_size() -> int:
    """Into how many parts a sequence is split under the mesh of `jax.set_mesh`; 1 inside a shard_map, where it is whole."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.manual_axes else _ways(mesh, "length")


def ring_index() -> jax.Array:
    """Which part of the sequence this device holds, inside `on_each_device`."""
    return jax.lax.axis_index(RULES["length"])


def from_earlier(tree: Any, steps: int) -> Any:
    """What the device `steps` parts earlier in the sequence holds (later, where negative), the last before the first."""
    size = jax.lax.axis_size(RULES["length"])
    pairs = [(source, (source + steps) % size) for source in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, RULES["length"], pairs), tree)


def largest_in_sequence(x: jax.Array) -> jax.Array:
    """The maximum over the devices that hold parts of the same sequence; of NaN infinity."""
    return jax.lax.pmax(jnp.where(jnp.isnan(x), jnp.inf, x), RULES["length"])  # pmax itself would drop NaN


def largest_of_all(x: jax.Array) -> jax.Array:
    """The maximum over all devices: what they have to agree on before a collective that not every step needs."""
    return jax.lax.pmax(x, jax.sharding.get_abstract_mesh().axis_names)


def _leaf_spec(path: tuple, leaf: Any) -> PartitionSpec:
    if np.ndim(leaf) == 0:
        return PartitionSpec()
    name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path[-2:])
    name = re.sub(r"_\d+$", "", name)  # of a cluster
    known = [row for row in DIMENSIONS if name == row or name.endswith("_" + row)]
    if not known:
        raise ConfigError(f"sharding: got a parameter {name!r}, expected a row for it in DIMENSIONS. Add one.")
    dimensions = DIMENSIONS[known[0]]
    stacked = np.ndim(leaf) - len(dimensions)  # one more in front when layers are scanned
    return _spec(("layers",) * stacked + dimensions)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """NamedSharding of every parameter, moment or count in a tree of arrays or shapes, after DIMENSIONS and RULES."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, _leaf_spec(path, leaf)), tree)


def placed_shapes(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes and types with where each array is to lie: what a checkpoint is restored into, or compiled for."""
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of a batch [B, L] of tokens."""
    return NamedSharding(mesh, _spec(("batch", "length")))


class Share(NamedTuple):
    """What one host's devices hold of every batch [B, L], and so all that it reads."""

    shape: tuple[int, int]  # of the whole batch
    sharding: NamedSharding
    rows: np.ndarray  # which, ascending
    columns: slice


def host_share(shape: tuple[int, int], mesh: Mesh) -> Share:
    """This host's share of batches of `shape` on a mesh; several hosts may hold the same rows."""
    sharding = batch_sharding(mesh)
    held = sharding.addressable_devices_indices_map(shape).values()
    rows = np.unique(np.concatenate([np.arange(shape[0])[index[0]] for index in held]))
    bounds = [index[1].indices(shape[1]) for index in held]
    return Share(shape, sharding, rows, slice(min(start for start, *_ in bounds), max(stop for _, stop, _ in bounds)))


def put_batch(part: np.ndarray, share: Share) -> jax.Array:
    """This host's share of a batch as one global array, split over the mesh."""

    def of_device(index: tuple[slice, slice]) -> np.ndarray:
        rows = np.searchsorted(share.rows, np.arange(share.shape[0])[index[0]])
        start, stop, _ = index[1].indices(share.shape[1])
        return part[rows, start - share.columns.start : stop - share.columns.start]

    return jax.make_array_from_callback(share.shape, share.sharding, of_device)


def of_any_host(flag: bool, mesh: Mesh) -> jax.Array:
    """Whether `flag` is true on any host; every host calls it as often. Reading the answer waits for all of them."""
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    flags = jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.array([flag]))
    return _any(flags, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=1)
def _any(flags: jax.Array, replicated: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(flags.any(), replicated)


def place_rows(rows: np.ndarray) -> jax.Array:
    """A batch [B, L] every host holds whole, split over the batch axes of `jax.set_mesh`; one device without a mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(rows)
    for size, name in zip(rows.shape, ("batch", "length"), strict=True):
        if size % _ways(mesh, name):
            raise ValueError(
                f"{name}: got {size}, expected a multiple of {_ways(mesh, name)} devices. Change it or the mesh."
            )
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda index: rows[index])
