"""The cases of the part `correctness`: shapes, inputs that make attention fail where it can, and what attend is asked for."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alibi_jax.positions.bias import alibi_slopes
from benchmarks.inputs import Maker, against_itself, equal_keys, far_huge_key, far_sink, normal, zero_queries
from benchmarks.shapes import Shape

PLAIN_NAME = "D 64, 12 heads"
COARSE = 1e-2  # a fraction of the softmax mass large enough that what is skipped shows
SMALLER = 4  # times, where kernels run step by step: lengths; heads, too

PLAIN = Shape(1, 1000, 1000, 12, 12, 64)
GROUPED = Shape(2, 1000, 1000, 8, 4, 128)
PADDED = Shape(1, 500, 500, 8, 8, 80)
CACHE = Shape(1, 72, 1000, 8, 8, 64, 928)
# No query comes after all keys: it would be far from each, and float32 rounds the scores of steep heads there to 1e-5, so that
# the definition itself errs by 2.9e-6. Not 128 channels, of which a float32 kernel compiles for long.
ENCODER = Shape(1, 200, 333, 12, 12, 64, 0, False)
LONG = Shape(1, 3001, 3001, 8, 8, 64)


class Case(NamedTuple):
    """Inputs, and what attend is asked for."""

    name: str
    dtype: str
    shape: Shape
    make: Maker = normal
    size: float = 1.0  # of queries and keys
    flat: bool = False  # slopes of 0 and of a millionth, which no reach ends
    huge: bool = False  # scores in the hundreds and thousands
    dropout_rate: float = 0.0
    reach_tolerance: float | Literal["auto"] | None = "auto"


def cases(interpret: bool) -> list[Case]:
    """Returns all cases; where kernels run step by step, small shapes, and most cases in float32 alone."""
    dtypes = ("float32",) if interpret else ("bfloat16", "float32")
    several = [each for dtype in dtypes for each in _cases_of(dtype)]
    several.append(Case("a coarse tolerance", "float32", PLAIN, reach_tolerance=COARSE))
    several += [Case(PLAIN_NAME, "float16", PLAIN), Case("3,001 tokens", "bfloat16", LONG)]
    return [case._replace(shape=_small(case.shape)) for case in several] if interpret else several


def controlled(cases: list[Case]) -> list[Case]:
    """Returns the cases that the control runs too: those of the first one's shape, which take few programs."""
    return [case for case in cases if case.shape == cases[0].shape and case.reach_tolerance == "auto"]


def _cases_of(dtype: str) -> list[Case]:
    case = functools.partial(Case, dtype=dtype, shape=PLAIN)
    return [
        case(PLAIN_NAME),
        case("nothing skipped", reach_tolerance=None),
        case("a huge key far away", make=far_huge_key, huge=True),
        case("all queries point at the first key", make=far_sink, huge=True),
        case("equal keys", make=equal_keys),
        case("queries of 0", make=zero_queries),
        case("the nearest keys are the worst", make=against_itself),
        case("large norms", size=10.0, huge=True),
        case("slopes of 0 and near it", flat=True),
        case("D 128, 8 heads, 4 of keys", shape=GROUPED),
        case("D 128, a huge key far away", shape=GROUPED, make=far_huge_key, huge=True),
        case("D 80", shape=PADDED),
        case("the end of a cache", shape=CACHE),
        case("not causal", shape=ENCODER),
        case("dropout", dropout_rate=0.1),
        case("dropout of equal weights", make=zero_queries, size=0.0, flat=True, dropout_rate=0.1),
    ]


def _small(shape: Shape) -> Shape:
    lengths = {name: max(1, getattr(shape, name) // SMALLER) for name in ("queries", "keys", "heads", "key_heads")}
    return shape._replace(**lengths, q_offset=shape.q_offset // SMALLER)


class Inputs(NamedTuple):
    """The arrays that a program takes."""

    q: Any
    k: Any
    v: Any
    d_out: Any
    slopes: Any
    q_offset: Any
    dropout_key: Any


@functools.cache
def make_inputs(case: Case) -> Inputs:
    """Returns the inputs of a case, q, k, v and d_out in its type."""
    q, k, v = case.make(7, case.shape, case.size)
    d_out = np.random.default_rng(8).standard_normal(q.shape, np.float32)
    slopes = alibi_slopes(case.shape.heads)
    if case.flat:
        slopes = np.where(np.arange(len(slopes)) % 2, np.float32(1e-6), np.float32(0))
    # values are halved: the tolerance of outputs is absolute, and that of bfloat16 about its spacing at 2
    arrays = [np.asarray(x).astype(jnp.dtype(case.dtype)) for x in (q, k, v / 2, d_out)]
    return Inputs(*arrays, slopes, np.int32(case.shape.q_offset), jax.random.key_data(jax.random.key(9)))
