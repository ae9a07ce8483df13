"""The cost of a recipe on devices that this machine need not have: its whole step compiled for them, and read."""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from alibi_jax.config import Config, replace
from alibi_jax.data.tokenizer import TOKENIZERS
from alibi_jax.errors import require
from alibi_jax.evaluate.nats import windows_per_batch
from alibi_jax.model.remat import layers_keep
from alibi_jax.plan.bounds import Batch, Bounds, Flops, attention_of, bounds_of, evaluation_flops, train_flops
from alibi_jax.plan.collectives import Collective, collectives
from alibi_jax.plan.compile import Compiled, Overflow, abstract_state, compile_evaluation, compile_step, effort
from alibi_jax.plan.hlo import Program
from alibi_jax.plan.memory import Memory, advice, cheaper_remat, memory_of
from alibi_jax.plan.reach import Share, every_block
from alibi_jax.plan.topology import Topology, mesh_on
from alibi_jax.plan.traffic import hbm_bytes
from alibi_jax.sharding import check_divides, check_mesh
from alibi_jax.train import State

KERNEL = 'custom_call_target="tpu_custom_call"'  # in a program that runs Pallas's kernels, which are attention's alone


@dataclasses.dataclass(frozen=True)
class Cost:
    """The work of one device in one call of a program."""

    flops: Flops  # of all devices
    hbm_bytes: int  # moved between the chip and its memory, estimated from the program's text
    data_dependent_bytes: int  # beside them, one pass of each loop whose passes depend on the data: in no bound
    collectives: tuple[Collective, ...]
    bounds: Bounds | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The plan of scoring windows of one length."""

    length: int
    rows: int  # windows at once, over all devices
    peak: int  # bytes per device
    limit: int | None
    fits: bool
    cost: Cost | None
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a recipe on a topology. Where it does not fit, `cost` is None and `advice` says what to change; where it
    fits, `advice` says which choice of remat would recompute less."""

    topology: str
    slices: int
    chips: int
    devices: int
    device_kind: str
    mesh: dict[str, int]
    train_length: int
    batch_size: int
    gradient_accumulation: int
    remat: str  # which activations each layer keeps for the backward pass: all, products, attention, inputs
    compute_dtype: str
    parameters: int
    fits: bool
    memory: Memory
    cost: Cost | None
    advice: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    full_effort: bool  # all of XLA's optimization
    compile_seconds: float

    @property
    def excess(self) -> int:
        """Returns the bytes that a device lacks; 0 where the step fits."""
        return 0 if self.fits or self.memory.limit is None else self.memory.peak - self.memory.limit


def with_vocabulary(config: Config) -> Config:
    """Returns the config with its tokenizer's vocabulary size filled in; ConfigError where it depends on the text."""
    if config.model.vocab_size is not None:
        return config
    size = TOKENIZERS[config.data.tokenizer].configured_size(config.data)
    require(
        size is not None,
        "model.vocab_size",
        f"None with data.tokenizer {config.data.tokenizer!r}",
        "a number: the number of tokens is not known before the text is read",
        "Pass --model.vocab-size, such as 267744 for WikiText-103.",
    )
    return replace(config, "model", vocab_size=size)


def _cost(topology: Topology, mesh: Mesh, program: Compiled, batch: Batch, flops: Flops) -> Cost:
    parsed = Program(program.text)
    slice_of = [getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat]
    sent = collectives(parsed, dict(mesh.shape), slice_of if topology.slices > 1 else ())
    moved, data_dependent = hbm_bytes(parsed)
    attention = attention_of(topology, batch, flops, KERNEL in program.text)
    return Cost(flops, moved, data_dependent, tuple(sent), bounds_of(topology, flops, moved, sent, attention))


def _evaluation(config: Config, topology: Topology, mesh: Mesh, state: State, length: int, share: float) -> Evaluation:
    rows = windows_per_batch(config.evaluate.batch_tokens, length)
    program = compile_evaluation(config, mesh, state, rows, length)
    if isinstance(program, Overflow):
        return Evaluation(length, rows, program.used, program.limit, False, None, program.seconds)
    batch = Batch(config.model, rows, length, share)
    cost = _cost(topology, mesh, program, batch, evaluation_flops(config, rows, length))
    return Evaluation(length, rows, program.peak, topology.usable_bytes, True, cost, program.seconds)


def plan(
    config: Config, topology: Topology, lengths: Sequence[int] = (), full: bool = False, share: Share = every_block
) -> Plan:
    """Returns the plan of a recipe on a topology: its train step compiled for it, and its evaluation at `lengths`.

    full: with all of XLA's optimization, as a run will be; otherwise with its first level, which compiles some 4 times as fast.
    share: of the blocks of causal attention at a length, those that are visited. ConfigError where a size does not divide over
    the mesh, the vocabulary is not known, or the parameters cannot be trained.
    """
    config.model.check_trainable()
    config = with_vocabulary(config)
    mesh = mesh_on(config.mesh, topology)
    check_mesh(config, mesh)
    check_divides(lengths, mesh)
    with jax.set_mesh(mesh), effort(full):
        state = abstract_state(config, mesh)
        step = compile_step(config, mesh, state)
        fits = isinstance(step, Compiled)
        length = config.train.train_length
        batch = Batch(config.model, config.train.batch_size, length, share(length))
        cost = _cost(topology, mesh, step, batch, train_flops(config)) if fits else None
        evaluations = tuple(_evaluation(config, topology, mesh, state, each, share(each)) for each in lengths)
        memory = memory_of(config, topology, state, step)
        rows = config.train.batch_size // config.train.gradient_accumulation
        keeps = layers_keep(config.model, rows, config.train.train_length)
        changes = cheaper_remat(config, keeps, memory, state.params) if fits else advice(config, mesh, keeps)
    return Plan(
        topology=topology.name,
        slices=topology.slices,
        chips=topology.chips,
        devices=len(topology.devices),
        device_kind=topology.devices[0].device_kind,
        mesh=dict(mesh.shape),
        train_length=config.train.train_length,
        batch_size=config.train.batch_size,
        gradient_accumulation=config.train.gradient_accumulation,
        remat=keeps,
        compute_dtype=config.model.compute_dtype,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        fits=fits,
        memory=memory,
        cost=cost,
        advice=tuple(changes),
        evaluations=evaluations,
        full_effort=full,
        compile_seconds=step.seconds,
    )
