"""A run's programs compiled for devices that this machine need not have, and the memory that the compiler counts."""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alibi_jax.config import Config, replace
from alibi_jax.evaluate.nats import window_nats
from alibi_jax.model import TransformerLM
from alibi_jax.sharding import batch_sharding, device, placed_shapes
from alibi_jax.train import State, programs

QUICK = (
    "O1"  # XLA's first level of optimization: a sixth of the time; peak memory and bytes sent stay within a few percent
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compiled(NamedTuple):
    """A program for one device, its sizes in bytes as XLA counts them (memory_analysis)."""

    text: str
    arguments: int
    code: int
    peak: int  # the most held at once; a TPU's compiler refuses a program where this is more than a device has
    # arguments, results and temporary memory added up: more than the peak where one takes another's place
    side_by_side: int
    seconds: float  # of compilation


class Overflow(NamedTuple):
    """The sizes of a program that the compiler refused, because it does not fit in a device's memory."""

    used: int  # bytes it would take
    limit: int  # bytes a device has
    seconds: float  # of compilation


@contextlib.contextmanager
def effort(full: bool) -> Iterator[None]:
    """Compiles what is inside with all of XLA's optimization, or with its first level; restores the setting afterwards."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", before if full else QUICK)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * UNITS[unit])


def overflow_of(message: str) -> tuple[int, int] | None:
    """Returns (bytes used, bytes a device has) from the compiler's message about memory; None from any other message."""
    used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    used = used or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
    return (_bytes(used[1], used[2]), _bytes(used[3], used[4])) if used else None


def compiled(lowered: jax.stages.Lowered) -> Compiled | Overflow:
    """Returns the program for one device, or by how much it does not fit; other errors of the compiler are raised.

    Called inside `jax.set_mesh(mesh)`.
    """
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        overflow = overflow_of(str(error))
        if overflow is None:
            raise
        return Overflow(*overflow, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    arguments = memory.argument_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # those not written over arguments
    side_by_side = arguments + results + memory.temp_size_in_bytes
    peak = memory.peak_memory_in_bytes if device().platform == "tpu" else side_by_side  # a CPU's omits temporary arrays
    return Compiled(program.as_text(), arguments, memory.generated_code_size_in_bytes, peak, side_by_side, seconds)


def _tokens(rows: int, length: int, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=batch_sharding(mesh))


def abstract_state(config: Config, mesh: Mesh) -> State:
    """Returns the state of a run as shapes with their shardings. Called inside `jax.set_mesh(mesh)`."""
    make_state, _, shardings = programs(config, mesh)
    return placed_shapes(jax.eval_shape(make_state), shardings)


def compile_step(config: Config, mesh: Mesh, state: State) -> Compiled | Overflow:
    """Compiles the train step of a run as `train` does. Called inside `jax.set_mesh(mesh)`."""
    tokens = _tokens(config.train.batch_size, config.train.train_length, mesh)
    return compiled(programs(config, mesh).step.lower(state, tokens, tokens))


def compile_evaluation(config: Config, mesh: Mesh, state: State, rows: int, length: int) -> Compiled | Overflow:
    """Compiles the scoring of one batch of windows as `evaluate` does. Called inside `jax.set_mesh(mesh)`."""
    model = TransformerLM(replace(config, "model", attention=config.evaluate.attention).model)
    tokens = _tokens(rows, length, mesh)
    return compiled(window_nats.lower(model, state.params, tokens, tokens))
