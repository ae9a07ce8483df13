"""Part a: every kernel that serves the platform against a float64 oracle, forward and gradients.

  python -m benchmarks.gpu.correctness --out runs/gpu/parts/correctness.json [--interpret]

A row is one output of one case: its largest error beside its tolerance, that of the tests (benchmarks/tolerances.py).
Errors of gradients are relative to the largest one where that is above 1, as in the tests.
`blockwise` runs those of one shape, as a control of the oracle and of the tolerances. Inputs vary more than shapes do, so that
most cases share their programs, which are compiled at once, several at a time.
"""

import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alibi_jax.attention import attend
from alibi_jax.attention.dropout import dense_keep_scale, head_seeds
from alibi_jax.positions.bias import LinearBias
from benchmarks.gpu import oracle
from benchmarks.gpu.cases import COARSE, PLAIN_NAME, Case, Inputs, cases, controlled, make_inputs
from benchmarks.gpu.kernels import KERNELS, SERVED
from benchmarks.gpu.part import attempt, run_part
from benchmarks.tolerances import TOLERANCE

CONTROL = "blockwise"
DIRECTIONS = ("out", "dq", "dk", "dv")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def outputs(
    name: str, causal: bool, dropout_rate: float, reach_tolerance: Any, interpret: bool, inputs: Inputs
) -> tuple[jax.Array, ...]:
    """Returns (out, dq, dk, dv) of an implementation, the last three the gradients of sum(out * d_out)."""

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        options = {"causal": causal, "reach_tolerance": reach_tolerance, "q_offset": inputs.q_offset}
        options |= {"dropout_rate": dropout_rate, "dropout_key": jax.random.wrap_key_data(inputs.dropout_key)}
        return attend(q, k, v, bias=LinearBias(inputs.slopes), implementation=name, interpret=interpret, **options)

    out, vjp = jax.vjp(forward, *inputs[:3])
    return out, *vjp(inputs.d_out)


def program(name: str, case: Case, interpret: bool) -> tuple:
    """Returns what `outputs` is compiled for: its arguments, arrays by their shapes. Cases of equal ones share it."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_inputs(case))
    return name, case.shape.causal, case.dropout_rate, case.reach_tolerance, interpret, shapes


def compiled(arguments: tuple) -> jax.stages.Compiled:
    """Returns `outputs` compiled for a program."""
    return outputs.lower(*arguments).compile()


def served(kernel: str, results: dict[tuple[str, Case], Any], refusal: str) -> dict[str, Any]:
    """Returns the row of how many cases a kernel served, and why it refused the last that it did."""
    each = [bool(result) for (name, _), result in results.items() if name == kernel]
    facts = {"case": SERVED, "kernel": kernel, "dtype": "all", "served": sum(each), "of": len(each)}
    return facts | {"reason": refusal, "passed": True}


def exact(case: Case) -> tuple[np.ndarray, ...]:
    """Returns the oracle's (out, dq, dk, dv) of a case."""
    q, k, v, d_out, slopes, q_offset, key = make_inputs(case)
    keep = None
    if case.dropout_rate > 0:
        seeds = head_seeds(jax.random.wrap_key_data(key), q.shape[0], q.shape[2])
        positions = q_offset + jnp.arange(q.shape[1]), jnp.arange(k.shape[1])
        keep = np.asarray(jax.jit(dense_keep_scale, static_argnums=1)(seeds, case.dropout_rate, *positions))
    options = {"q_offset": int(q_offset), "causal": case.shape.causal, "keep_scale": keep}
    return oracle.attention(q, k, v, d_out, slopes, **options)


def scale_and_tolerance(case: Case, direction: str, expected: np.ndarray) -> tuple[float, float]:
    """Returns (what an error is divided by, the largest one allowed after that)."""
    largest = float(np.abs(expected).max())
    if case.reach_tolerance == COARSE:  # what attend promises
        return 1.0, 2 * COARSE * float(np.abs(make_inputs(case).v).max()) + TOLERANCE["attention"]
    what = "attention" if direction == "out" else "attention gradient"
    what = "attention of huge scores" if case.huge else what
    what = what if case.dtype == "float32" else f"attention {case.dtype}"
    return 1.0 if direction == "out" else max(1.0, largest), TOLERANCE[what]


def _facts(kernel: str, case: Case) -> dict[str, Any]:
    return {"case": case.name, "kernel": kernel, "dtype": case.dtype}


def row(kernel: str, case: Case, direction: str, actual: np.ndarray, expected: np.ndarray, against: str) -> dict:
    """Returns the largest error of one output beside its tolerance; NaN does not pass."""
    scale, tolerance = scale_and_tolerance(case, direction, expected)
    if against == "all keys" and case.dtype == "float32":
        tolerance = TOLERANCE["skipping"]
    error = float(np.abs(actual - expected).max()) / scale
    facts = _facts(kernel, case) | {"against": against, "direction": direction}
    return facts | {"error": error, "tolerance": tolerance, "passed": error <= tolerance}


def compare(kernel: str, case: Case, results: dict, exact: tuple[np.ndarray, ...]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a case: its outputs, `results[kernel, case]`, beside the oracle's and others' of the device."""
    actual = dict(zip(DIRECTIONS, results[kernel, case], strict=True))
    directions = DIRECTIONS if case.reach_tolerance != COARSE else DIRECTIONS[:1]
    for direction, expected in zip(directions, exact, strict=False):
        yield row(kernel, case, direction, actual[direction], expected, "float64")
    skipping = results.get((kernel, case._replace(name=PLAIN_NAME, reach_tolerance="auto")))
    if case.reach_tolerance is None and skipping:
        yield row(kernel, case, "out", skipping[0], actual["out"], "all keys")
    if case.dropout_rate > 0 and kernel != CONTROL and results[CONTROL, case]:
        for direction, expected in zip(DIRECTIONS, results[CONTROL, case], strict=True):
            yield row(kernel, case, direction, actual[direction], expected, CONTROL)


def rows(interpret: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows of all cases, one implementation after the other: a kernel that hangs costs none of those before.

    A kernel that refuses a case (NotImplementedError) has not failed; how many it served is in its last row, which says that
    it is through.
    """
    wanted = cases(interpret)
    runs = {CONTROL: controlled(wanted)} | dict.fromkeys(KERNELS, wanted)
    results, refusals = {}, {}
    with ThreadPoolExecutor(os.cpu_count()) as oracles, ThreadPoolExecutor(os.cpu_count()) as compilers:
        expected = {case: oracles.submit(exact, case) for case in wanted}
        needed = dict.fromkeys(program(name, case, interpret) for name, several in runs.items() for case in several)
        programs = {each: compilers.submit(compiled, each) for each in needed}
        for name, several in runs.items():
            for case in several:
                start, compiling = time.perf_counter(), programs[program(name, case, interpret)]
                results[name, case], reason = attempt(functools.partial(_run, compiling, case))
                facts = {"seconds": time.perf_counter() - start}
                if reason.startswith("NotImplementedError"):
                    refusals[name] = reason
                elif reason:
                    yield _facts(name, case) | {"passed": False, "reason": reason} | facts
                else:
                    yield from (each | facts for each in compare(name, case, results, expected[case].result()))
            if name != CONTROL:
                yield served(name, results, refusals.get(name, ""))
    if not any(results[name, case] for name in KERNELS for case in wanted):
        facts = {"case": "any", "kernel": "any", "dtype": "all", "passed": False}
        yield facts | {"reason": "no kernel served any case"}


def _run(program: Future, case: Case) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in program.result()(make_inputs(case))]


if __name__ == "__main__":
    run_part("correctness", rows, autotuned=False)
