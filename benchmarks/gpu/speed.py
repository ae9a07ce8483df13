"""Speed of ALiBi attention on a GPU beside its peers: B=1, H=16, bfloat16, in turns, medians.

The most telling shapes come first, so that a run that is cut has them. Before it is timed, what a contender computes is
compared with ours on the same inputs, of peers without a bias with ours at slopes of 0; one that differs is not timed, and one
that fails leaves a row that says why.

Effective TFLOP/s count what dense causal attention would do: 2 products of L^2 / 2 pairs forward, 7 forward and backward, each
2 D operations a pair. Computed ones count the blocks of scores that are visited, of 128 x 128 pairs: `visited` is their number
over that of the causal ones, and `of_peak` the computed rate over the card's published dense bfloat16 peak. A kernel whose
blocks are smaller computes a little less than that counts.
"""

import functools
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alibi_jax.model.flops import peak_flops
from benchmarks.gpu.contenders import Bind, Call, Contender, Direction, as_jax, make_contenders, wait
from benchmarks.gpu.inputs import BLOCK, Inputs, make_inputs, visited
from benchmarks.gpu.kernels import ALL_TAKE_PART
from benchmarks.gpu.part import attempt, run_part
from benchmarks.gpu.programs import compile_each
from benchmarks.gpu.turns import in_turns

HEADS, SMALL_HEADS = 16, 1
# (length, width of a head), in the order they are timed; a compilation of FlexAttention serves all lengths of a width
ORDER = ((8192, 64), (32768, 64), (8192, 128), (32768, 128), (131072, 64), (2048, 64), (131072, 128), (2048, 128))
SMALL_ORDER = ((128, 16),)  # an interpreted call takes seconds
PRODUCTS: dict[Direction, int] = {"forward+backward": 7, "forward": 2}  # in the order they are timed
TURNS, SMALL_TURNS = 5, 1  # of each contender
SECONDS = 0.02  # of a turn, which repeats a call for so long
LARGEST_DIFFERENCE = 3e-2  # between two bfloat16 results, relative to the largest number, if that is above 1


# name of a contender -> (its program, ""), or (None, why it has none)
Programs = dict[str, tuple[Bind | None, str]]


class Setting(NamedTuple):
    """What is timed: one attention in one direction."""

    direction: Direction
    length: int
    width: int
    heads: int
    inputs: str  # random, trained


def rows(interpret: bool, without: Mapping[str, str] = ALL_TAKE_PART) -> Iterator[dict[str, Any]]:
    """Yields a row for each contender, shape, direction and kind of inputs, and one for each contender that cannot be had.

    without: kernel of ours -> why it is left out.
    """
    contenders = make_contenders(interpret, without)
    yield from ({"contender": each.name, "skipped": each.missing} for each in contenders if each.missing)
    contenders = [each for each in contenders if not each.missing]
    heads, turns = (SMALL_HEADS, SMALL_TURNS) if interpret else (HEADS, TURNS)
    for length, width in SMALL_ORDER if interpret else ORDER:
        taking_part = [each for each in contenders if each.lengths[0] <= length <= each.lengths[1]]
        shapes = jax.eval_shape(make_inputs, length, heads, width, False)
        lower = {
            (key, each.name): functools.partial(each.lower, key, shapes) for key in PRODUCTS for each in taking_part
        }
        programs = compile_each(lower)
        for direction in PRODUCTS:
            of_direction = {each.name: programs[direction, each.name] for each in taking_part}
            for name, trained in (("random", False), ("trained", True)):
                setting = Setting(direction, length, width, heads, name)
                inputs = make_inputs(length, heads, width, trained)
                yield from measure(setting, taking_part, of_direction, inputs, turns)


def measure(
    setting: Setting, contenders: list[Contender], programs: Programs, inputs: Inputs, turns: int
) -> Iterator[dict[str, Any]]:
    """Yields a row for each contender: its difference from ours and its times, or why it failed."""
    blocks = setting.length // BLOCK
    computed = {"visited": float(visited(inputs).mean()), "causal": 1.0, "all": 2 * blocks / (blocks + 1)}
    calls, results, expected = {}, {}, Expected(inputs)
    for each in contenders:
        bind, reason = programs[each.name]
        difference = None
        if not reason:
            admitted, reason = attempt(functools.partial(admit, each, bind, inputs, expected))
        if not reason:
            calls[each.name], difference = admitted
        results[each.name] = {"difference": difference, "compared_with": expected.name}
        results[each.name] |= {"passed": not reason, "reason": reason}
    times = in_turns(calls, wait, turns, SECONDS)
    for each in contenders:
        row = {"contender": each.name, **setting._asdict(), "visited": computed[each.computes], **results[each.name]}
        yield row | speeds(setting, computed[each.computes], times.get(each.name))


def admit(contender: Contender, bind: Bind, inputs: Inputs, expected: "Expected") -> tuple[Call, float]:
    """Returns a contender's call and its difference from what is expected; ValueError where that is too large."""
    call = bind(inputs)
    difference = expected.difference(contender, bind, call)
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(f"got a difference of {difference:.3g} from {expected.name}, expected {LARGEST_DIFFERENCE}")
    return call, difference


class Expected:
    """The results that others are compared with: those of the first contender whose are finite, which is one of ours."""

    def __init__(self, inputs: Inputs):
        self.name: str | None = None
        self._inputs, self._bind = inputs, None
        self._results: dict[bool, list[jax.Array]] = {}  # by whether there is a bias

    def difference(self, contender: Contender, bind: Bind, call: Call) -> float:
        """Returns the largest difference of a contender's results, relative to the largest number, if that is above 1."""
        results = as_jax(call())
        if self._bind is None:
            if not all(bool(jnp.isfinite(x).all()) for x in results):
                raise FloatingPointError("its results are not finite")
            self.name, self._bind, self._results[True] = contender.name, bind, results
        if contender.biased not in self._results:
            unbiased = self._inputs._replace(slopes=jnp.zeros_like(self._inputs.slopes))
            self._results[False] = as_jax(self._bind(unbiased)())
        pairs = zip(results, self._results[contender.biased], strict=True)
        return float(np.max([_difference(*pair) for pair in pairs]))  # NaN where one is, which Python's max may drop


@jax.jit
def _difference(actual: jax.Array, expected: jax.Array) -> jax.Array:
    actual, expected = actual.astype(jnp.float32), expected.astype(jnp.float32)
    difference = jnp.abs(actual - expected)
    largest = jnp.where(jnp.isfinite(difference).all(), difference.max(), jnp.nan)  # XLA's max on a CPU drops NaN
    return largest / jnp.maximum(jnp.abs(expected).max(), 1.0)


def speeds(setting: Setting, fraction: float, times: list[float] | None) -> dict[str, Any]:
    """Returns milliseconds a call (median, fastest, slowest), effective and computed TFLOP/s, and the fraction of the peak.

    fraction: of the causal blocks of scores, those that are computed.
    """
    names = ("milliseconds", "fastest", "slowest", "effective_tflops", "computed_tflops", "of_peak")
    if times is None:
        return dict.fromkeys(names)
    median, blocks = statistics.median(times), setting.length // BLOCK
    flops = 2 * PRODUCTS[setting.direction] * setting.heads * setting.width  # a pair of a query and a key
    pairs = fraction * BLOCK**2 * blocks * (blocks + 1) / 2
    effective, computed = (1e-12 * flops * number / median for number in (setting.length**2 / 2, pairs))
    peak = peak_flops(jax.devices()[0].device_kind)
    of_peak = 1e12 * computed / peak if peak else None
    milliseconds = [1000 * number for number in (median, min(times), max(times))]
    return dict(zip(names, (*milliseconds, effective, computed, of_peak), strict=True))


if __name__ == "__main__":
    run_part("speed", rows)
