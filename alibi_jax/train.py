"""Training: one pure step, and `train`, which checks, opens and restores a run before its first step."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32

from alibi_jax.config import Config, replace
from alibi_jax.config.checks import gib
from alibi_jax.config.sizes import parameter_count
from alibi_jax.data.batches import Batches
from alibi_jax.data.corpus import Corpus, open_corpus
from alibi_jax.data.vocabulary import check_ids
from alibi_jax.errors import ConfigError, require
from alibi_jax.evaluate.memory import free_memory
from alibi_jax.init_from import check_init_from, initial_params, keep_init_from
from alibi_jax.loop import open_outputs, placed_batches, run_steps, unfilled_lengths
from alibi_jax.model import TransformerLM
from alibi_jax.model.placement import tree_shardings
from alibi_jax.model.served import check_served
from alibi_jax.optimizer import learning_rate, make_optimizer
from alibi_jax.run.agreement import check_same
from alibi_jax.run.checkpoint import Checkpoints, check_path, open_run
from alibi_jax.run.child import is_supervised
from alibi_jax.run.exchange import first_host_first, from_first_host
from alibi_jax.run.hosts import is_first
from alibi_jax.run.profile import parse_steps
from alibi_jax.run.signals import stop_requested
from alibi_jax.run.workdir import check_not_imported, trained_on
from alibi_jax.sharding import check_mesh, host_shard, make_mesh, num_shards, placed_shapes, token_shards
from alibi_jax.storage import Location, locate

logger = logging.getLogger("alibi_jax")


class State(NamedTuple):
    """Everything that training changes. Batches and dropout are functions of (seed, step), so nothing else is saved."""

    step: Int32[Array, ""]
    params: Any
    optimizer: Any


def init_state(config: Config, model: nn.Module, optimizer: optax.GradientTransformation) -> State:
    """Returns the state before the first step: parameters from the seed, moments at zero."""
    tokens = jnp.zeros(token_shards(), jnp.int32)  # what divides over the mesh; no parameter depends on length
    params = model.init(jax.random.key(config.train.seed), tokens)["params"]
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def sum_nats(
    model: nn.Module, params: Any, inputs: Int[Array, "B L"], targets: Int[Array, "B L"], key: Array
) -> Float32[Array, ""]:
    """Returns the loss of training: the sum of -log p over all targets, in nats, with dropout drawn from `key`."""
    return model.apply({"params": params}, inputs, targets, train=True, rngs={"dropout": key}, method="nats").sum()


def _gradients(model: nn.Module, params: Any, inputs: Array, targets: Array, key: Array, microbatches: int) -> tuple:
    """Returns (sum of nats, its gradients) over the batch, computed in micro-batches one after the other: number i holds rows
    i, i + microbatches ..., so that every device keeps its own rows."""
    gradient = jax.value_and_grad(functools.partial(sum_nats, model))
    if microbatches == 1:
        return gradient(params, inputs, targets, key)

    def add(total: tuple, microbatch: tuple) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, gradient(params, *microbatch)), None

    split = (jnp.moveaxis(x.reshape(-1, microbatches, x.shape[-1]), 1, 0) for x in (inputs, targets))
    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (*split, jax.random.split(key, microbatches)))[0]


def train_step(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state: State,
    inputs: Int[Array, "B L"],
    targets: Int[Array, "B L"],
) -> tuple[State, dict[str, Float32[Array, ""]]]:
    """Returns the state after one update from one global batch, and the update's metrics: loss (mean nats per token),
    grad_norm, learning_rate, parameter_norm (after the update)."""
    key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
    total, gradients = _gradients(model, state.params, inputs, targets, key, config.train.gradient_accumulation)
    gradients = jax.tree.map(lambda gradient: gradient / targets.size, gradients)
    updates, moments = optimizer.update(gradients, state.optimizer, state.params)
    metrics = {
        "loss": total / targets.size,
        "grad_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(learning_rate(config.optimizer, config.train.steps)(state.step), jnp.float32),
    }
    params = optax.apply_updates(state.params, updates)
    metrics["parameter_norm"] = optax.tree.norm(params)  # a checkpoint of these is saved only if it is finite
    return State(state.step + 1, params, moments), metrics


def resolve(config: Config, corpus: Corpus) -> Config:
    """Returns the config with the corpus's vocabulary size filled in; ConfigError if it names a smaller one."""
    size = corpus.tokenizer.vocab_size
    if config.model.vocab_size is None:
        return replace(config, "model", vocab_size=size)
    if config.model.vocab_size < size:
        raise ConfigError(
            f"model.vocab_size: got {config.model.vocab_size}, expected at least the tokenizer's {size}. "
            "Raise it or leave it out."
        )
    return config


def train(
    config: Config,
    workdir: str | os.PathLike,
    label: str = "train",
    profile: str = "",
    init_from: str | os.PathLike | None = None,
) -> Config:
    """Trains `config` in `workdir`, going on from the checkpoint there if there is one; returns the config as resolved.

    workdir: a folder or gs://BUCKET/FOLDER. label: what the bar is called. profile: steps to trace for TensorBoard, such as
    "10-12". init_from: the folder of a trained run or an imported model: a new run begins with its best parameters, as float32.
    Several hosts (hosts.connect) all call it alike. Writes config.json, checkpoints/, metrics.jsonl and tensorboard/.
    Errors before any work: ConfigError (fields, mesh, a workdir of another config), HeldError (another run is at work there),
    DataError. While training: Diverged (a loss that is not finite; nothing after it is saved), Interrupted (SIGTERM, Ctrl-C;
    the state is saved), CheckpointError and MetricsError (a full disk, a damaged file).
    """
    workdir = locate(workdir)
    traced = parse_steps(profile)
    check_same(**dataclasses.asdict(config), label=label, profile=profile, init_from=bool(init_from))
    source = locate(init_from) if init_from else None
    if source:
        config = replace(config, "model", parameter_dtype="float32")
    check_path(workdir)
    check_not_imported(workdir)
    config.model.check_trainable()
    mesh = make_mesh(config.mesh)
    check_mesh(config, mesh)  # before a corpus is prepared, which may take long
    with first_host_first():
        check_memory(config, mesh)
    corpus = open_same_corpus(config, trained_on(workdir))
    config = resolve(config, corpus)
    recipe = config.train
    tokens = corpus.tokens("train")
    shard = host_shard((recipe.batch_size, recipe.train_length), mesh)
    # DataError for a text that is too short
    batches = Batches(tokens, recipe.train_length, recipe.batch_size, recipe.seed, shard.rows, shard.columns)
    check_run(config, corpus, mesh)
    with contextlib.ExitStack() as held:
        checkpoints = held.enter_context(open_run(workdir, config, corpus.fingerprint))
        stop = held.enter_context(stop_requested(is_supervised()))
        held.enter_context(jax.set_mesh(mesh))
        if checkpoints.latest() is not None:
            check_init_from(workdir, source)
        if checkpoints.latest() == recipe.steps:
            checkpoints.check(recipe.steps)
            return config
        make_state, step, shardings = programs(config, mesh)
        if checkpoints.latest() is None:
            state = first_state(make_state, shardings, config, workdir, source)
        else:
            state = restore_or(make_state, checkpoints, shardings)
        first = int(state.step)
        for warning in unfilled_lengths(recipe, len(corpus.tokens("valid"))) if is_first() else ():
            logger.warning(warning)
        outputs = held.enter_context(open_outputs(config, workdir, checkpoints, first, label, traced))
        placed = held.enter_context(contextlib.closing(placed_batches(batches, shard, first, recipe.steps)))
        run_steps(config, corpus, outputs, step, state, placed, stop)
    return config


def first_state(
    make_state: Callable[[], State], shardings: State, config: Config, workdir: Location, source: Location | None
) -> State:
    """Returns the state before the first step, with the parameters of the folder `source` unless None."""
    facts, params = initial_params(source, config, shardings.params) if source else (None, None)
    keep_init_from(workdir, facts)
    state = make_state()
    return state._replace(params=params) if source else state


def open_same_corpus(config: Config, fingerprint: str) -> Corpus:
    """Returns the corpus of a run, or of a new one where `fingerprint` is empty. All hosts take the first host's: where their
    paths differ, or the text is on the first one alone, the others find the corpus by its fingerprint."""
    with first_host_first():
        corpus = open_corpus(config.data, fingerprint) if is_first() else None
    fingerprint = from_first_host(corpus.fingerprint if corpus else "")
    with first_host_first():
        return corpus or open_corpus(config.data, fingerprint)


def check_run(config: Config, corpus: Corpus, mesh: Mesh) -> None:
    """Raises ConfigError where mesh, attention or memory cannot serve the run with its vocabulary, DataError for tokens outside
    it."""
    check_mesh(config, mesh)
    with jax.set_mesh(mesh):
        check_served("model.attention", config.model, (config.train.train_length,), trained=True)
        check_served("model.attention", config.model, config.train.validate_lengths, trained=False)
    for split in ("train", "valid"):
        check_ids(f"{split} split of {corpus.folder}", corpus.tokens(split), corpus.tokenizer.vocab_size, sampled=True)
    with first_host_first():
        check_memory(config, mesh)


def check_memory(config: Config, mesh: Mesh) -> None:
    """Raises ConfigError where a device has too little memory for parameters, gradients, moments and layer inputs alone."""
    model, train = config.model, config.train
    floats = 4 if config.optimizer.name == "adamw" else 3  # of each parameter: itself, its gradient, one moment or two
    state = 4 * floats * parameter_count(model) // num_shards(mesh, "width", "mlp")  # at least: some are split less
    tokens = train.batch_size * train.train_length // (train.gradient_accumulation * num_shards(mesh, "tokens"))
    needed = state + model.num_layers * model.width * jnp.dtype(model.compute_dtype).itemsize * tokens
    free = free_memory()
    require(
        needed <= free,
        "memory",
        f"{gib(needed)} at least for {parameter_count(model):,} parameters and {tokens:,} tokens per device",
        f"at most {gib(free)}, which a device has free here",
        "Lower train.batch_size or the model's sizes, raise train.gradient_accumulation or mesh.fsdp, or see what `plan` says.",
    )


class Programs(NamedTuple):
    """What a run compiles, and where it leaves the state."""

    make_state: Callable[[], State]
    step: jax.stages.Wrapped  # step(state, inputs, targets) -> (state, metrics); the state passed in is consumed
    shardings: State


def programs(config: Config, mesh: Mesh) -> Programs:
    """Returns the programs of a run, jitted. Called inside `jax.set_mesh(mesh)`."""
    model = TransformerLM(config.model)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    make_state = functools.partial(init_state, config, model, optimizer)
    shardings = tree_shardings(config.model, jax.eval_shape(make_state), mesh)
    step = functools.partial(train_step, config, model, optimizer)
    return Programs(
        jax.jit(make_state, out_shardings=shardings),
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        shardings,
    )


def restore_or(make: Callable[[], State], checkpoints: Checkpoints, shardings: State) -> State:
    """Returns the latest checkpoint's state placed as `shardings` say, or a new one from `make()` if there is none."""
    step = checkpoints.latest()
    if step is None:
        return make()
    shapes = placed_shapes(jax.eval_shape(make), shardings)
    rest = {"step": shapes.step, "moments": shapes.optimizer}
    restored = checkpoints.restore(step, params=shapes.params, optimizer=rest)
    return State(restored["optimizer"]["step"], restored["params"], restored["optimizer"]["moments"])
