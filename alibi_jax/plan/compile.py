"""Compiling a run's programs for devices that need not be here, and what the compiler says of their memory."""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alibi_jax.config import Config, replace
from alibi_jax.evaluate.nats import window_nats
from alibi_jax.model import TransformerLM
from alibi_jax.sharding import batch_sharding, placed_shapes
from alibi_jax.train import programs

QUICK = "O1"  # XLA's first level of effort: a sixth of the time; peak memory and what is sent stay within a few in a hundred
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compiled(NamedTuple):
    """A program for one device, bytes as XLA counts them (memory_analysis)."""

    text: str
    arguments: int
    temporary: int  # beside arguments and results, at their most
    code: int
    peak: int  # of arguments, results and what is temporary at once
    seconds: float  # to compile


class Refused(NamedTuple):
    """What the compiler says of a program that does not fit in a device's memory."""

    used: int  # bytes it would take
    limit: int  # bytes there are
    seconds: float  # until it said so


@contextlib.contextmanager
def effort(full: bool) -> Iterator[None]:
    """XLA's own optimization, or its first level, for what is compiled within; as it was before afterwards."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", before if full else QUICK)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * UNITS[unit])


def overflow_of(message: str) -> tuple[int, int] | None:
    """(bytes used, bytes there are) from the compiler's message about memory, None from any other."""
    used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    used = used or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
    return (_bytes(used[1], used[2]), _bytes(used[3], used[4])) if used else None


def compiled(lowered: Any) -> Compiled | Refused:
    """The program for one device, or that it does not fit; other errors of the compiler are raised."""
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        overflow = overflow_of(str(error))
        if overflow is None:
            raise
        return Refused(*overflow, time.perf_counter() - start)
    seconds, memory = time.perf_counter() - start, program.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.generated_code_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # those not written over arguments
    peak = max(
        memory.peak_memory_in_bytes, sizes[0] + sizes[1] + results
    )  # of a CPU XLA's own leaves out what is temporary
    return Compiled(program.as_text(), *sizes, peak, seconds)


def _tokens(rows: int, length: int, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=batch_sharding(mesh))


def abstract_state(config: Config, mesh: Mesh) -> Any:
    """The state of a run as shapes with their shardings, inside `jax.set_mesh(mesh)`."""
    make_state, _, shardings = programs(config, mesh)
    return placed_shapes(jax.eval_shape(make_state), shardings)


def compile_step(config: Config, mesh: Mesh, state: Any) -> Compiled | Refused:
    """The train step of a run, as `train` compiles it, inside `jax.set_mesh(mesh)`."""
    tokens = _tokens(config.train.batch_size, config.train.train_length, mesh)
    return compiled(programs(config, mesh).step.lower(state, tokens, tokens))


def compile_evaluation(config: Config, mesh: Mesh, state: Any, rows: int, length: int) -> Compiled | Refused:
    """What scores one batch of windows, as `evaluate` compiles it, inside `jax.set_mesh(mesh)`."""
    model = TransformerLM(replace(config, "model", attention=config.evaluate.attention).model)
    tokens = _tokens(rows, length, mesh)
    return compiled(window_nats.lower(model, state.params, tokens, tokens))
