"""Which mesh, batch and memory settings: every one that divides, ordered by a cheap estimate, the best compiled and ranked."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from alibi_jax.config import Config, replace
from alibi_jax.errors import ConfigError, require
from alibi_jax.plan.bounds import train_flops
from alibi_jax.plan.plan import Plan, plan, with_vocabulary
from alibi_jax.plan.topology import Topology
from alibi_jax.sharding import AXES, RULES, check_mesh, local_size

ACCUMULATIONS = (1, 2, 4, 8)
REMATS = ((False, "inputs"), (True, "products"), (True, "attention"), (True, "inputs"))  # remat, remat_saves
FLOAT32 = 4  # bytes of a parameter, a moment, a gradient
ROOM = 0.75  # of the memory: an estimate may be a third too low (13.9 GiB for 18.3, without remat), and such come last
WIDE, NARROW = 10, 2  # arrays of the model's width, and of the MLP's, that a layer keeps for its backward pass


class Candidate(NamedTuple):
    """A config with its estimates."""

    config: Config
    compute: float  # seconds of a step
    sending: float
    bytes: float  # of a device, at the peak

    @property
    def order(self) -> tuple[float, float, float]:
        """The quicker first, by a token's time at the longer of compute and interconnect; of equals the one that sends less."""
        tokens = self.config.train.batch_size * self.config.train.train_length
        return max(self.compute, self.sending) / tokens, self.sending / tokens, self.bytes


def factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as an ordered product of so many."""
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in factorisations(number // first, parts - 1):
                yield (first, *rest)


def _sent(config: Config, mesh: AbstractMesh) -> float:
    """Bytes a device sends in a step, roughly: weights gathered twice a part and their gradients once, summed over what of the
    batch and length they are not split by; a layer's outputs where heads and MLP are split; keys, values and their like, and
    queries backward, half of the way round a ring."""
    model, train = config.model, config.train
    size = jnp.dtype(model.compute_dtype).itemsize
    width, tensor, length = (mesh.shape[RULES[name]] for name in ("width", "heads", "length"))
    copies = mesh.size // (width * tensor)
    weights = (
        model.num_layers * (4 * model.width**2 + 2 * model.width * model.mlp_width) + model.vocab_size * model.width
    )
    gathered = 3 * weights / tensor * size * (width - 1) / width
    summed = weights / tensor / width * FLOAT32 * 2 * (copies - 1) / copies
    outputs = model.num_layers * _tokens(config) * model.width * size
    sums = (4 + model.remat) * outputs * 2 * (tensor - 1) / tensor
    ring = 6 * outputs / tensor * (length - 1) / 2
    return train.gradient_accumulation * (gathered + sums + ring) + summed


def _tokens(config: Config) -> int:
    """Tokens a device holds in one part of a batch."""
    rows = config.train.batch_size // config.train.gradient_accumulation
    return local_size(rows, "batch") * local_size(config.train.train_length, "length")


def _memory(config: Config, mesh: AbstractMesh) -> float:
    """Bytes of a device at the peak, roughly."""
    model, tokens = config.model, _tokens(config)
    size = jnp.dtype(model.compute_dtype).itemsize
    tensor = mesh.shape[RULES["heads"]]
    table = model.vocab_size * model.width
    weights = model.num_layers * (4 * model.width**2 + 2 * model.width * model.mlp_width) + table
    state = 4 * FLOAT32 * weights / tensor / mesh.shape[RULES["width"]]
    layer = tokens * (WIDE * model.width + NARROW * model.mlp_width / tensor) * size
    of_layer = {"inputs": 1, "attention": 2, "products": 6}[model.remat_saves] * model.width  # channels kept of a token
    of_layer += model.mlp_width / tensor if model.remat_saves == "products" else 0
    kept = model.num_layers * tokens * of_layer * size + 2 * layer if model.remat else (model.num_layers + 1) * layer
    logits = 3 * min(model.logits_mib * 2**20, FLOAT32 * tokens * model.vocab_size / tensor)
    return state + kept + logits + (FLOAT32 + size) * table / tensor


def estimate(config: Config, found: Topology) -> Candidate:
    """A candidate with its estimates, from sizes alone. ConfigError where a size does not divide over its mesh."""
    mesh = AbstractMesh(dataclasses.astuple(config.mesh), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    check_mesh(config, mesh)
    chip = found.chip
    with jax.sharding.use_abstract_mesh(mesh):
        flops = train_flops(config)
        compute = (flops.model + flops.recomputed) / len(found.devices) / (chip.flops * found.share)
        links = chip.link_rate * found.links * found.share
        sending = _sent(config, mesh) / links if links else 0.0
        return Candidate(config, compute, sending, _memory(config, mesh))


def candidates(config: Config, found: Topology, batches: Sequence[int] = ()) -> list[Candidate]:
    """All meshes, batches, accumulations, with and without remat, that divide; the quickest by estimate first, those that are
    estimated to overflow last."""
    config, made = with_vocabulary(config), []
    sizes = list(factorisations(len(found.devices), len(AXES)))
    choices = itertools.product(sizes, batches or (config.train.batch_size,), ACCUMULATIONS, REMATS)
    for mesh, batch, parts, (remat, saves) in choices:
        try:
            each = replace(config, "train", batch_size=batch, gradient_accumulation=parts)
            each = replace(
                replace(each, "model", remat=remat, remat_saves=saves), "mesh", **dict(zip(AXES, mesh, strict=True))
            )
            made.append(estimate(each, found))
        except ConfigError:
            continue
    limit = found.chip.usable_bytes * found.share * ROOM
    return sorted(made, key=lambda each: (each.bytes > limit, each.order))


def search(
    config: Config,
    found: Topology,
    batches: Sequence[int] = (),
    tries: int = 8,
    lengths: Sequence[int] = (),
    full: bool = False,
    said: Callable[[str], None] = lambda line: None,
) -> list[Plan]:
    """Plans of the most promising candidates: those that fit, the least bound on a token's time first, then those that do not,
    the nearest first. ConfigError where nothing divides, and for devices whose peaks are not known."""
    require(
        found.chip is not None, "topology", found.name, "a TPU, whose speed is published", "Name one, as v5e:16x16."
    )
    promising = candidates(config, found, batches)
    require(
        bool(promising),
        "mesh",
        f"no mesh of {len(found.devices)} devices that divides this recipe",
        "a batch, heads, widths and a vocabulary with common divisors",
        "Change --batches or the topology.",
    )
    made = []
    for at, candidate in enumerate(promising[:tries]):
        mesh = " x ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(candidate.config.mesh).items())
        said(f"{at + 1} of {min(tries, len(promising))} (of {len(promising)} that divide): {mesh}")
        made.append(plan(candidate.config, found, lengths, full))
    return sorted(made, key=_rank)


def _rank(made: Plan) -> tuple:
    tokens = made.batch_size * made.train_length
    return (not made.fits, made.cost.bounds.seconds / tokens if made.cost else made.excess)
