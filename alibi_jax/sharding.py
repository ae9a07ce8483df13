"""Logical dimension -> mesh axis: the only file that knows a mesh axis by name.

RULES says over which mesh axes a dimension is sharded. Parameters and their moments are placed by the names of their dimensions
(model/placement.py), activations and batches by `shard(x, "batch", "length", ...)`, a bias by the names it gives itself.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from alibi_jax.errors import require

if TYPE_CHECKING:  # names for type checkers alone: attention imports this file, and the config is more than it needs
    import alibi_jax.config

AXES = ("data", "fsdp", "tensor", "sequence")  # the fields of MeshConfig

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
    "seed": None,  # of a head's dropout mask
    "replicated": None,  # on every device, whatever else changes here
}


def make_mesh(config: "alibi_jax.config.MeshConfig", devices: list | None = None) -> Mesh:
    """Returns a mesh of `data` x `fsdp` x `tensor` x `sequence` devices; a size of -1 takes the rest. ConfigError if they do
    not multiply to the number of devices.

    Its axes are Auto (the compiler propagates shardings), which Linen needs; jax.make_mesh's own default is Explicit.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = list(dataclasses.astuple(config))
    text = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    named = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // named if size == -1 else size for size in sizes]
    require(
        math.prod(sizes) == len(devices),
        "mesh",
        f"{text} on {len(devices)} devices",
        "sizes that multiply to the number of devices (-1: the rest)",
        "Change the sizes of the mesh.",
    )
    return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(sizes: Sequence[int], devices: list) -> np.ndarray:
    """Returns the devices with neighbours in an axis near each other. Several slices of TPUs split the first axes that they
    divide, so that most communication stays within a slice. jax.make_mesh refuses some of these meshes."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    across = []
    left = slices
    for size in sizes:
        across.append(math.gcd(size, left))
        left //= across[-1]
    require(left == 1, "mesh", f"{list(sizes)} over {slices} slices", "axes that the slices divide", "Change the mesh.")
    inside = [size // count for size, count in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)


def check_mesh(config: "alibi_jax.config.Config", mesh: Mesh | AbstractMesh) -> None:
    """Raises ConfigError, with the numbers, where a dimension of the run does not divide over its mesh axes."""
    train, model = config.train, config.model
    microbatch = train.batch_size // train.gradient_accumulation
    sizes = [
        ("train.batch_size / train.gradient_accumulation", microbatch, "batch"),
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
    """Raises ConfigError where an input's length in tokens does not divide over the mesh."""
    for length in lengths:
        _check_size("length", length, "length", mesh)


def _check_size(field: str, size: int, dimension: str, mesh: Mesh | AbstractMesh) -> None:
    shards = num_shards(mesh, dimension)
    expected = f"a multiple of {shards}, the devices along {RULES[dimension]}"
    require(size % shards == 0, field, size, expected, f"Use {-(-size // shards) * shards}, or change the mesh.")


def _axes(dimension: str) -> tuple[str, ...]:
    axes = RULES[dimension] or ()
    return (axes,) if isinstance(axes, str) else axes


def num_shards(mesh: Mesh | AbstractMesh, *dimensions: str) -> int:
    """Returns into how many shards a mesh splits an array of these dimensions; 1 without a mesh."""
    return math.prod(mesh.shape.get(axis, 1) for dimension in dimensions for axis in _axes(dimension))


def kv_dimension(kv_heads: int, mesh: Mesh | AbstractMesh) -> str:
    """Returns the dimension of key and value heads: "heads" where they divide over those devices, else "replicated"."""
    return "heads" if kv_heads % num_shards(mesh, "heads") == 0 else "replicated"


def kv_heads_of_device(kv_heads: int, mesh: Mesh | AbstractMesh) -> int:
    """Returns how many key and value heads a device attends with: its own, or where they do not divide, some that others have
    too. Their number and the devices' both divide the number of attention heads, and so does their least common multiple."""
    return kv_heads // math.gcd(kv_heads, num_shards(mesh, "heads"))


def local_size(size: int, dimension: str) -> int:
    """Returns a device's shard of a dimension under the mesh of `jax.set_mesh`, rounded up; all of it without a mesh."""
    return -(-size // num_shards(jax.sharding.get_abstract_mesh(), dimension))


def token_shards() -> tuple[int, int]:
    """Returns the shards of batch and length under the mesh of `jax.set_mesh`: the shape of the smallest [B, L] it takes."""
    mesh = jax.sharding.get_abstract_mesh()
    return num_shards(mesh, "batch"), num_shards(mesh, "length")


def _spec(dimensions: tuple[str, ...]) -> PartitionSpec:
    unknown = [dimension for dimension in dimensions if dimension not in RULES]
    if unknown:
        raise ValueError(
            f"sharding: got a dimension {unknown[0]!r}, expected one of {', '.join(RULES)}. Correct it where the dimensions of "
            "the array are named, or give it a row in RULES."
        )
    return PartitionSpec(*(RULES[dimension] for dimension in dimensions))


def shard(x: jax.Array, *dimensions: str) -> jax.Array:
    """Constrains an activation inside jit to the mesh of `jax.set_mesh`; without a mesh it is the identity."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, _spec(dimensions))


class Device(NamedTuple):
    """What is known of the devices that are traced for."""

    platform: str  # "cpu", "gpu" or "tpu"
    kind: str
    # NVIDIA's compute capability; None: no such card, or none of its kind is here
    capability: tuple[int, int] | None = None


def device() -> Device:
    """Returns the devices that are traced for: those of the mesh of `jax.set_mesh`, else the default device.

    Of a mesh a trace sees platform and kind: the compute capability is that of a local device of the same kind.
    """
    default = jax.sharding.get_abstract_mesh().abstract_device or jax.config.jax_default_device
    if default is None or isinstance(default, str):
        default = jax.devices(default)[0]
    here = [default, *jax.local_devices()] if default.platform == "gpu" else []
    names = [getattr(each, "compute_capability", "") for each in here if each.device_kind == default.device_kind]
    versions = [re.fullmatch(r"(\d+)\.(\d+)", name) for name in names]  # of AMD's cards "gfx90a"
    capability = next(((int(version[1]), int(version[2])) for version in versions if version), None)
    return Device(default.platform, default.device_kind, capability)


def _local_spec(dimensions: tuple[str, ...], mesh: AbstractMesh) -> PartitionSpec:
    """Returns `_spec` with only those axes the mesh has."""
    return PartitionSpec(*(tuple(axis for axis in _axes(name) if axis in mesh.shape) or None for name in dimensions))


def on_each_device(function: Callable, inputs: tuple, dimensions: tuple, output: tuple[str, ...]) -> jax.Array:
    """Returns function(*inputs), each device of the mesh of `jax.set_mesh` computing its own shard alone (shard_map).

    dimensions: for each array of the inputs, in the order of the pytree's leaves, the names of its dimensions, as in RULES.
    Without a mesh, or one whose axes split nothing here, a plain call. ConfigError where a dimension does not divide over its
    axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or all(num_shards(mesh, *names) == 1 for names in dimensions):
        return function(*inputs)
    if AxisType.Explicit in mesh.axis_types:
        raise ValueError(
            f"mesh: got {mesh}, expected axes of AxisType.Auto. Make it with "
            f"axis_types=(AxisType.Auto,) * {len(mesh.axis_names)}."
        )
    arrays, tree = jax.tree.flatten(inputs)
    for array, names in zip(arrays, dimensions, strict=True):
        for size, name in zip(array.shape, names, strict=True):
            _check_size(name, size, name, mesh)
    specs = tree.unflatten([_local_spec(names, mesh) for names in dimensions])
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=_local_spec(output, mesh), check_vma=False)
    return mapped(*inputs)


def sharding_of(mesh: Mesh, dimensions: tuple[str, ...]) -> NamedSharding:
    """Returns where an array of these dimensions lies on a mesh."""
    return NamedSharding(mesh, _spec(dimensions))


def placed_shapes(shapes: Any, shardings: Any) -> Any:
    """Returns a tree of shapes, types and shardings: what a checkpoint is restored into, or a step compiled for."""

    def placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(placed, shapes, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch [B, L] of tokens."""
    return sharding_of(mesh, ("batch", "length"))


class HostShard(NamedTuple):
    """The shard of every batch [B, L] that one host's devices hold, and so all of it that the host reads."""

    shape: tuple[int, int]  # of the whole batch
    sharding: NamedSharding
    rows: np.ndarray  # which, ascending
    columns: slice


def host_shard(shape: tuple[int, int], mesh: Mesh) -> HostShard:
    """Returns this host's shard of batches of `shape` on a mesh; several hosts may hold the same rows."""
    sharding = batch_sharding(mesh)
    held = sharding.addressable_devices_indices_map(shape).values()
    rows = np.unique(np.concatenate([np.arange(shape[0])[index[0]] for index in held]))
    bounds = [index[1].indices(shape[1]) for index in held]
    columns = slice(min(start for start, *_ in bounds), max(stop for _, stop, _ in bounds))
    return HostShard(shape, sharding, rows, columns)


def put_batch(tokens: np.ndarray, local: HostShard) -> jax.Array:
    """Returns the global batch, placed over the mesh, from the tokens of this host's shard."""

    def of_device(index: tuple[slice, slice]) -> np.ndarray:
        rows = np.searchsorted(local.rows, np.arange(local.shape[0])[index[0]])
        start, stop, _ = index[1].indices(local.shape[1])
        return tokens[rows, start - local.columns.start : stop - local.columns.start]

    return jax.make_array_from_callback(local.shape, local.sharding, of_device)


def of_any_host(flag: bool, mesh: Mesh) -> jax.Array:
    """Returns whether `flag` is true on any host; all hosts must call it equally often. Reading the answer waits for them."""
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    flags = jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.array([flag]))
    return _any(flags, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=1)
def _any(flags: jax.Array, replicated: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(flags.any(), replicated)


def place_rows(rows: np.ndarray) -> jax.Array:
    """Returns a batch [B, L] that every host holds whole, sharded over the mesh of `jax.set_mesh`; one device without a mesh.

    ConfigError where it does not divide over the mesh.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(rows)
    for size, name in zip(rows.shape, ("batch", "length"), strict=True):
        _check_size(name, size, name, mesh)
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda index: rows[index])
