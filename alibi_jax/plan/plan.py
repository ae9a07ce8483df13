"""What a recipe will cost on devices that are not here: its whole step compiled for them, and read."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from alibi_jax.config import Config, replace
from alibi_jax.data.tokenizer import TOKENIZERS
from alibi_jax.errors import require
from alibi_jax.plan.bounds import Bounds, Flops, bounds_of, evaluation_flops, train_flops
from alibi_jax.plan.collectives import Collective, collectives
from alibi_jax.plan.compile import (
    Compiled,
    Refused,
    abstract_state,
    compile_evaluation,
    compile_step,
    effort,
)
from alibi_jax.plan.hlo import Program
from alibi_jax.plan.memory import Memory, advice, memory_of
from alibi_jax.plan.topology import Topology, mesh_on
from alibi_jax.plan.traffic import hbm_bytes
from alibi_jax.sharding import batch_ways, check_divides, check_mesh


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does in one call of a program."""

    flops: Flops  # of all devices
    hbm_bytes: int  # moved between the chip and its memory, estimated from the program's text
    data_dependent_bytes: int  # the same for one pass of every loop as long as the data ask, counted in no bound
    collectives: tuple[Collective, ...]
    bounds: Bounds | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scoring windows of one length."""

    length: int
    rows: int  # windows at once, over all devices
    peak: int  # bytes a device
    limit: int | None
    fits: bool
    cost: Cost | None
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe on a topology. `cost` is None, and `advice` says what to change, where it does not fit."""

    topology: str
    slices: int
    chips: int
    devices: int
    device_kind: str
    mesh: dict[str, int]
    train_length: int
    batch_size: int
    gradient_accumulation: int
    remat: str  # what is kept of each layer for the backward pass: all, products, attention, inputs
    compute_dtype: str
    parameters: int
    fits: bool
    memory: Memory
    cost: Cost | None
    advice: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    full_effort: bool  # of the compiler
    compile_seconds: float

    @property
    def excess(self) -> int:
        """Bytes a device is short of; 0 where it fits."""
        return 0 if self.fits or self.memory.limit is None else self.memory.peak - self.memory.limit


def with_vocabulary(config: Config) -> Config:
    """The config with the vocabulary that its tokenizer will have; ConfigError for words, which are counted in the text."""
    if config.model.vocab_size is not None:
        return config
    size = TOKENIZERS[config.data.tokenizer].configured_size(config.data)
    require(
        size is not None,
        "model.vocab_size",
        f"None with data.tokenizer {config.data.tokenizer!r}",
        "a number: how many tokens there are is not known before the text is read",
        "Pass --model.vocab-size, such as 267744 for WikiText-103.",
    )
    return replace(config, "model", vocab_size=size)


def _cost(found: Topology, mesh: Mesh, program: Compiled, flops: Flops) -> Cost:
    read = Program(program.text)
    slice_of = [getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat]
    sent = collectives(read, dict(mesh.shape), slice_of if found.slices > 1 else ())
    moved, more = hbm_bytes(read)
    return Cost(flops, moved, more, tuple(sent), bounds_of(found, flops, moved, sent))


def _evaluation(config: Config, found: Topology, mesh: Mesh, state: Any, length: int) -> Evaluation:
    ways = batch_ways(mesh)
    rows = -(-max(1, config.evaluate.batch_tokens // length) // ways) * ways
    limit = round(found.chip.usable_bytes * found.share) if found.chip else None
    program = compile_evaluation(config, mesh, state, rows, length)
    if isinstance(program, Refused):
        return Evaluation(length, rows, program.used, program.limit, False, None, program.seconds)
    cost = _cost(found, mesh, program, evaluation_flops(config, rows, length))
    return Evaluation(length, rows, program.peak, limit, True, cost, program.seconds)


def plan(config: Config, found: Topology, lengths: Sequence[int] = (), full: bool = False) -> Plan:
    """Compiles a recipe's train step for a topology, and its evaluation at `lengths`, and says what they will cost.

    full: with all of XLA's optimization, as a run will be; otherwise its first level, some 4 times as fast to compile.
    ConfigError where a size does not divide over the mesh, or the vocabulary is not known.
    """
    config, mesh = with_vocabulary(config), mesh_on(config.mesh, found)
    check_mesh(config, mesh)
    check_divides(lengths, mesh)
    with jax.set_mesh(mesh), effort(full):
        state = abstract_state(config, mesh)
        step = compile_step(config, mesh, state)
        fits = isinstance(step, Compiled)
        cost = _cost(found, mesh, step, train_flops(config)) if fits else None
        evaluations = tuple(_evaluation(config, found, mesh, state, length) for length in lengths)
        memory = memory_of(config, found, state, step)
    return Plan(
        topology=found.name,
        slices=found.slices,
        chips=found.chips,
        devices=len(found.devices),
        device_kind=found.devices[0].device_kind,
        mesh=dict(mesh.shape),
        train_length=config.train.train_length,
        batch_size=config.train.batch_size,
        gradient_accumulation=config.train.gradient_accumulation,
        remat=config.model.remat_saves if config.model.remat else "all",
        compute_dtype=config.model.compute_dtype,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        fits=fits,
        memory=memory,
        cost=cost,
        advice=() if fits else tuple(advice(config, mesh)),
        evaluations=evaluations,
        full_effort=full,
        compile_seconds=step.seconds,
    )
