"""The memory of a device by kind, and what to change where it is not enough."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from alibi_jax.config import Config, replace
from alibi_jax.config.checks import gib
from alibi_jax.model import TransformerLM
from alibi_jax.model.remat import REMAT_SAVES
from alibi_jax.plan.compile import Compiled, Overflow
from alibi_jax.plan.topology import Topology
from alibi_jax.sharding import RULES, kv_heads_of_device, local_size, num_shards
from alibi_jax.train import State, sum_nats

CERTAIN = 0.9  # of the memory: an estimate of a peak from another program's may be a little too low


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device. Parameters, moments, batch and padding are the program's arguments, and all that is held between
    steps."""

    parameters: int
    moments: int  # the optimizer's, and the counts of steps
    batch: int
    padding: int  # what the arguments' layout in tiles adds to these three
    activations: int  # residuals of the forward pass kept for the backward pass, by JAX's own linearisation
    other: int  # whatever else is held at the peak: gradients, gathered weights, logits, copies
    code: int  # the program itself, which the peak does not count
    peak: int  # the most held at once: what has to be below the limit
    side_by_side: int  # arguments, results and temporary memory added up, as if none took another's place
    limit: int | None  # that a program may have; None where it is not known


def _local_bytes(tree: Any) -> int:
    """Returns the bytes of a device's shards of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _local_activation(config: Config, rows: int, leaf: jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of a device's shard of a residual; 0 for one that has no batch dimension before a length."""
    if rows not in leaf.shape or config.train.train_length not in leaf.shape[leaf.shape.index(rows) + 1 :]:
        return 0
    model = config.model
    sizes = list(leaf.shape)
    at = sizes.index(rows)
    length = sizes.index(config.train.train_length, at + 1)
    mesh = jax.sharding.get_abstract_mesh()
    repeated = kv_heads_of_device(model.kv_heads, mesh) * num_shards(mesh, "heads")
    named = {model.num_heads: "heads", repeated: "heads", model.mlp_width: "mlp"}
    # before the batch there are layers, as many as there may be heads
    named = {place: named[size] for place, size in enumerate(sizes) if size in named and place > at}
    named |= {at: "batch", length: "length"}
    local = (local_size(size, named[place]) if place in named else size for place, size in enumerate(sizes))
    return math.prod(local) * leaf.dtype.itemsize


def activation_bytes(config: Config, params: Any) -> int:
    """Returns the bytes a device keeps from the forward to the backward pass: the residuals of jax.vjp that have a batch and a
    length. Called inside `jax.set_mesh(mesh)`."""
    rows = config.train.batch_size // config.train.gradient_accumulation
    tokens = jax.ShapeDtypeStruct((rows, config.train.train_length), jnp.int32)
    model = TransformerLM(config.model)

    def residuals(params: Any, inputs: Array, targets: Array) -> list[Array]:
        key = jax.random.key(config.train.seed)  # traced: the mesh's devices may not be here to compute it
        loss = functools.partial(sum_nats, model, inputs=inputs, targets=targets, key=key)
        return jax.tree.leaves(jax.vjp(loss, params)[1])

    leaves = jax.eval_shape(residuals, params, tokens, tokens)
    return sum(_local_activation(config, rows, leaf) for leaf in leaves if leaf.dtype != jax.dtypes.float0)


def memory_of(config: Config, topology: Topology, state: State, step: Compiled | Overflow) -> Memory:
    """Returns a device's memory by kind; of a step that does not fit, `other` and `peak` are what it would have taken.

    Called inside `jax.set_mesh(mesh)`.
    """
    train = config.train
    rows, length = local_size(train.batch_size, "batch"), local_size(train.train_length, "length")
    batch = 2 * 4 * rows * length  # int32 inputs and targets
    parameters, moments = _local_bytes(state.params), _local_bytes((state.step, state.optimizer))
    activations = activation_bytes(config, state.params)
    logical = parameters + moments + batch
    if isinstance(step, Overflow):
        other = max(0, step.used - logical - activations)
        return Memory(parameters, moments, batch, 0, activations, other, 0, step.used, step.used, step.limit)
    other = max(0, step.peak - step.arguments - activations)
    padding = step.arguments - logical
    peaks = step.peak, step.side_by_side
    return Memory(parameters, moments, batch, padding, activations, other, step.code, *peaks, topology.usable_bytes)


def cheaper_remat(config: Config, keeps: str, memory: Memory, params: Any) -> list[str]:
    """Returns a line on the choice of remat that recomputes the least of those that fit by estimate; none where it is `keeps`.

    The estimate is the compiled peak with other activations. Called inside `jax.set_mesh(mesh)`.
    """
    if keeps not in REMAT_SAVES or memory.limit is None:
        return []
    for saves in itertools.takewhile(lambda saves: saves != keeps, REMAT_SAVES):
        activations = activation_bytes(replace(config, "model", remat_saves=saves), params)
        peak = memory.peak - memory.activations + activations
        if peak <= CERTAIN * memory.limit:
            return [
                f"--model.remat-saves {saves} (now {keeps}) would recompute less and fit, by estimate: {gib(peak)} per device "
                "at the peak. Plan it to be sure."
            ]
    return []


def advice(config: Config, mesh: Mesh, keeps: str) -> list[str]:
    """Returns the changes to a recipe that would lower its step's peak and can still be made, the cheapest first.

    keeps: what each layer keeps for the backward pass, as `layers_keep` says.
    """
    model, train = config.model, config.train
    changes = []
    weights, tensor, length = RULES["width"], RULES["heads"], RULES["length"]
    copies = num_shards(mesh, "batch") // mesh.shape[weights]
    if copies > 1:
        changes.append(
            f"--mesh.{weights} {mesh.shape[weights] * copies} (now {mesh.shape[weights]}): parameters, moments and gradients "
            f"are now held {copies} times"
        )
    if not model.remat:
        changes.append(
            "--model.remat: keeps what fits of each layer and recomputes the rest, for up to a third more operations"
        )
    elif keeps != "inputs":
        changes.append(f"--model.remat-saves inputs (now {keeps}): keeps less of each layer")
    microbatches = train.gradient_accumulation
    if train.batch_size % (2 * microbatches * num_shards(mesh, "batch")) == 0:
        changes.append(
            f"--train.gradient-accumulation {2 * microbatches} (now {microbatches}): half the activations at once"
        )
    ways = mesh.shape[length]
    if train.train_length % (2 * ways) == 0 and train.train_length // ways > 1024:
        changes.append(f"--mesh.{length} {2 * ways} (now {ways}): each device holds half as much of every sequence")
    if model.num_heads % (2 * mesh.shape[tensor]) == 0:
        changes.append(
            f"--mesh.{tensor} {2 * mesh.shape[tensor]} (now {mesh.shape[tensor]}): splits heads, MLP and vocabulary"
        )
    return [*changes, "a larger topology, or a kind of chip with more memory"]
