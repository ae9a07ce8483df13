"""A search for mesh, batch and memory settings: all that divide, ordered by a cheap estimate, the best compiled and ranked."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from alibi_jax.config import Config, replace
from alibi_jax.errors import ConfigError, require
from alibi_jax.model.remat import FLOAT32, HEADROOM, estimated_peak, matrix_parameters
from alibi_jax.plan.bounds import train_flops
from alibi_jax.plan.plan import Plan, plan, with_vocabulary
from alibi_jax.plan.reach import Share, every_block
from alibi_jax.plan.topology import Topology
from alibi_jax.sharding import AXES, RULES, check_mesh, kv_heads_of_device, local_size

ACCUMULATIONS = (1, 2, 4, 8)
REMATS = ((False, "auto"), (True, "products"), (True, "attention"), (True, "inputs"))  # remat, remat_saves


class Candidate(NamedTuple):
    """A config with its estimates, each of one device."""

    config: Config
    compute: float  # seconds of a step
    sending: float  # seconds of a step
    bytes: float  # at the peak

    @property
    def order(self) -> tuple[float, float, float]:
        """Returns the sorting key: seconds per token, of compute or sending, the longer; then of sending; then memory."""
        tokens = self.config.train.batch_size * self.config.train.train_length
        return max(self.compute, self.sending) / tokens, self.sending / tokens, self.bytes


def factorisations(number: int, factors: int) -> Iterator[tuple[int, ...]]:
    """Yields all ways to write a number as an ordered product of so many factors."""
    if factors == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in factorisations(number // first, factors - 1):
                yield (first, *rest)


def _sent(config: Config, mesh: AbstractMesh) -> float:
    """Returns roughly the bytes a device sends in a step.

    Each micro-batch gathers weights twice and reduces their gradients once; gradients are summed once over the copies of the
    weights; layer outputs are summed where heads and MLP are split; keys, values and, backward, queries with
    the gradients of outputs and their own pass half of the way round a ring.
    """
    model, train = config.model, config.train
    size = jnp.dtype(model.compute_dtype).itemsize
    width, tensor, length = (mesh.shape[RULES[name]] for name in ("width", "heads", "length"))
    copies = mesh.size // (width * tensor)
    weights = matrix_parameters(model)
    gathered = 3 * weights / tensor * size * (width - 1) / width
    summed = weights / tensor / width * FLOAT32 * 2 * (copies - 1) / copies
    outputs = model.num_layers * _tokens(config) * model.width * size
    sums = (4 + model.remat) * outputs * 2 * (tensor - 1) / tensor
    keys = kv_heads_of_device(model.kv_heads, mesh) * model.head_width
    per_token = 2 * keys + 4 * model.width / tensor  # float32 gradients of queries count twice
    ring = model.num_layers * _tokens(config) * size * per_token * (length - 1) / 2
    return train.gradient_accumulation * (gathered + sums + ring) + summed


def _tokens(config: Config) -> int:
    """Returns the tokens of one micro-batch on a device."""
    rows = config.train.batch_size // config.train.gradient_accumulation
    return local_size(rows, "batch") * local_size(config.train.train_length, "length")


def estimate(config: Config, topology: Topology) -> Candidate:
    """Returns a candidate with its estimates, from sizes alone. ConfigError where a size does not divide over its mesh."""
    mesh = AbstractMesh(dataclasses.astuple(config.mesh), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    check_mesh(config, mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        flops = train_flops(config)
        compute = (flops.model + flops.recomputed) / len(topology.devices) / topology.flops
        sending = _sent(config, mesh) / topology.interconnect_rate if topology.interconnect_rate else 0.0
        rows = config.train.batch_size // config.train.gradient_accumulation
        return Candidate(config, compute, sending, estimated_peak(config.model, rows, config.train.train_length))


def candidates(config: Config, topology: Topology, batches: Sequence[int] = ()) -> list[Candidate]:
    """Returns all meshes, batch sizes, numbers of micro-batches and remat settings that divide, the quickest by estimate first
    and those that may not fit last."""
    config = with_vocabulary(config)
    divisible = []
    meshes = factorisations(len(topology.devices), len(AXES))
    choices = itertools.product(meshes, batches or (config.train.batch_size,), ACCUMULATIONS, REMATS)
    for mesh, batch, microbatches, (remat, saves) in choices:
        try:
            each = replace(config, "train", batch_size=batch, gradient_accumulation=microbatches)
            each = replace(each, "model", remat=remat, remat_saves=saves)
            each = replace(each, "mesh", **dict(zip(AXES, mesh, strict=True)))
            divisible.append(estimate(each, topology))
        except ConfigError:
            continue
    limit = topology.usable_bytes * HEADROOM
    return sorted(divisible, key=lambda each: (each.bytes > limit, each.order))


def search(
    config: Config,
    topology: Topology,
    batches: Sequence[int] = (),
    tries: int = 8,
    lengths: Sequence[int] = (),
    full: bool = False,
    share: Share = every_block,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Plan]:
    """Returns plans of the `tries` most promising candidates: those that fit, the lowest bound per token first, then those that
    do not, the nearest to fitting first.

    progress: called with a line of text before each compilation. ConfigError where nothing divides, and for devices whose
    peaks are not published.
    """
    require(
        topology.chip is not None,
        "topology",
        topology.name,
        "a TPU, whose peaks are published",
        "Name one, such as v5e:16x16.",
    )
    promising = candidates(config, topology, batches)
    require(
        bool(promising),
        "mesh",
        f"no mesh of {len(topology.devices)} devices that divides this recipe",
        "a batch, heads, widths and a vocabulary with common divisors",
        "Change --batches or the topology.",
    )
    plans = []
    for number, candidate in enumerate(promising[:tries], start=1):
        mesh = " x ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(candidate.config.mesh).items())
        progress(f"{number} of {min(tries, len(promising))} (of {len(promising)} that divide): {mesh}")
        plans.append(plan(candidate.config, topology, lengths, full, share))
    return sorted(plans, key=_rank)


def _rank(candidate: Plan) -> tuple[bool, float]:
    tokens = candidate.batch_size * candidate.train_length
    return not candidate.fits, candidate.cost.bounds.seconds / tokens if candidate.cost else candidate.excess
