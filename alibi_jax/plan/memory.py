"""What fills a device's memory, by kind, and what to change where it is too much."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alibi_jax.config import Config
from alibi_jax.model import TransformerLM
from alibi_jax.plan.compile import Compiled, Refused
from alibi_jax.plan.topology import Topology
from alibi_jax.sharding import RULES, batch_ways, local_size


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device. Parameters, moments, batch and padding are the program's arguments, all there is between steps."""

    parameters: int
    moments: int  # the optimizer's, and the counts of steps
    batch: int
    padding: int  # what the arguments' layout in tiles adds to these three
    activations: int  # kept from the forward pass for the backward pass, by JAX's own linearisation
    other: int  # whatever else is there at once: gradients, gathered weights, logits, copies
    code: int  # the program itself
    peak: int  # the most there is at once
    limit: int | None  # what a program may have; None where that is not known


def _local_bytes(tree: Any) -> int:
    """Bytes of a device's shards of arrays given as shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _local_activation(config: Config, rows: int, leaf: Any) -> int:
    """Bytes of a device's part of what the backward pass is given; 0 for what has no batch beside a length."""
    if rows not in leaf.shape or config.train.train_length not in leaf.shape[leaf.shape.index(rows) + 1 :]:
        return 0
    model, sizes = config.model, list(leaf.shape)
    at = sizes.index(rows)
    length = sizes.index(config.train.train_length, at + 1)
    named = {model.num_heads: "heads", model.mlp_width: "mlp"}
    named = {place: named[size] for place, size in enumerate(sizes) if size in named} | {at: "batch", length: "length"}
    local = (local_size(size, named[place]) if place in named else size for place, size in enumerate(sizes))
    return math.prod(local) * leaf.dtype.itemsize


def activation_bytes(config: Config, params: Any) -> int:
    """Bytes a device keeps from the forward to the backward pass: of what jax.vjp closes over, all with a batch and a length.
    Inside `jax.set_mesh(mesh)`."""
    rows = config.train.batch_size // config.train.gradient_accumulation
    tokens = jax.ShapeDtypeStruct((rows, config.train.train_length), jnp.int32)
    model = TransformerLM(config.model)

    def kept(params: Any, inputs: Any, targets: Any) -> Any:
        key = jax.random.key(config.train.seed)

        def loss(params: Any) -> Any:
            return model.apply({"params": params}, inputs, targets, True, rngs={"dropout": key}, method="nats").sum()

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    leaves = [leaf for leaf in jax.eval_shape(kept, params, tokens, tokens) if leaf.dtype != jax.dtypes.float0]
    return sum(map(functools.partial(_local_activation, config, rows), leaves))


def memory_of(config: Config, found: Topology, state: Any, step: Compiled | Refused) -> Memory:
    """By kind; of a program that was refused, `other` and `peak` are what it would have taken. Inside `jax.set_mesh(mesh)`."""
    train = config.train
    rows, length = local_size(train.batch_size, "batch"), local_size(train.train_length, "length")
    batch = 2 * 4 * rows * length  # int32 inputs and targets
    parameters, moments = _local_bytes(state.params), _local_bytes((state.step, state.optimizer))
    activations = activation_bytes(config, state.params)
    limit = round(found.chip.usable_bytes * found.share) if found.chip else None
    logical = parameters + moments + batch
    if isinstance(step, Refused):
        other = max(0, step.used - logical - activations)
        return Memory(parameters, moments, batch, 0, activations, other, 0, step.used, step.limit)
    other = max(0, step.temporary - activations)
    padding = step.arguments - logical
    return Memory(parameters, moments, batch, padding, activations, other, step.code, step.peak, limit)


def advice(config: Config, mesh: Mesh) -> list[str]:
    """What would lower a step's peak, of that which can still be changed, the cheapest first."""
    model, train, found = config.model, config.train, []
    weights, tensor, length = RULES["width"], RULES["heads"], RULES["length"]
    copies = batch_ways(mesh) // mesh.shape[weights]
    if copies > 1:
        found.append(
            f"--mesh.{weights} {mesh.shape[weights] * copies} (now {mesh.shape[weights]}): parameters, moments and gradients "
            f"are kept {copies} times"
        )
    if not model.remat:
        found.append(
            "--model.remat True: keeps one array a layer and computes the rest again, for a third more operations"
        )
    elif model.remat_saves != "inputs":
        found.append(f"--model.remat-saves inputs (now {model.remat_saves}): keeps less of each layer")
    parts = train.gradient_accumulation
    if train.batch_size % (2 * parts * batch_ways(mesh)) == 0:
        found.append(f"--train.gradient-accumulation {2 * parts} (now {parts}): half the activations at once")
    ways = mesh.shape[length]
    if train.train_length % (2 * ways) == 0 and train.train_length // ways > 1024:
        found.append(f"--mesh.{length} {2 * ways} (now {ways}): each device holds half as much of every sequence")
    if model.num_heads % (2 * mesh.shape[tensor]) == 0:
        found.append(
            f"--mesh.{tensor} {2 * mesh.shape[tensor]} (now {mesh.shape[tensor]}): splits heads, MLP and words"
        )
    return [*found, "a larger topology, or a kind of chip with more memory"]
