"""What attend() accepts: checked before any work, with what was got, what is expected, and what to do."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alibi_jax.attention.reach import DEFAULT_TOLERANCE, POSITIONS
from alibi_jax.positions.bias import Bias, concrete


def check_arrays(q: Any, k: Any, v: Any) -> None:
    """Raises ValueError where q, k and v are not arrays of shapes and one type that fit."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, jax.Array | np.ndarray):
            raise ValueError(f"attend: got {name} of type {type(x).__name__}, expected an array. Convert it.")
    fits = q.ndim == 4 and k.ndim == 4 and k.shape == v.shape and 0 not in q.shape and 0 not in k.shape
    if not fits or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]) or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attend: got q {q.shape}, k {k.shape}, v {v.shape}, expected q [B, T, H, D] and k, v [B, S, K, D], none "
            "of them 0. Reshape them; the number of heads of q is a multiple of that of k and v."
        )
    if {k.dtype, v.dtype} != {q.dtype} or q.dtype.name not in DEFAULT_TOLERANCE:
        raise ValueError(
            f"attend: got q {q.dtype}, k {k.dtype}, v {v.dtype}, expected all one of {', '.join(DEFAULT_TOLERANCE)}. Cast them."
        )


def checked_offset(q_offset: Any, queries: int) -> Array:
    """Returns q_offset as an int32 scalar; ValueError for any other value. The value of a traced one cannot be checked."""
    value = q_offset if isinstance(q_offset, jax.Array) else np.asarray(q_offset)
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(
            f"attend: got q_offset {_shown(q_offset)}, expected one integer, the position of the first query. Pass an int."
        )
    number = concrete(value)
    if number is not None and not 0 <= int(number) <= POSITIONS - queries:
        raise ValueError(
            f"attend: got q_offset {int(number)} for {queries} queries, expected positions from 0 to 2^30 - 1. Count "
            "positions from the first key, which is at 0."
        )
    return jnp.asarray(value, jnp.int32)


def checked_bias(bias: Any, heads: int) -> Bias | None:
    """Returns the bias with its arrays in float32; ValueError where it is no bias, or not one of these heads."""
    if bias is None:
        return None
    if not isinstance(bias, Bias):
        raise ValueError(
            f"attend: got a bias of type {type(bias).__name__}, expected a Bias, such as LinearBias, or "
            "None. Pass LinearBias(slopes) for slopes."
        )
    name = type(bias).__name__
    if jax.tree_util.all_leaves([bias]):
        raise ValueError(
            f"attend: got a {name} whose class is no pytree, expected a registered one. Decorate it with "
            "@jax.tree_util.register_dataclass."
        )
    arrays = bias.arrays()
    if len(arrays) != len(bias.dimensions) or any(np.ndim(array) != len(names) for names, array in arrays):
        expected = ", ".join(f"{field} [{', '.join(names)}]" for field, names in bias.dimensions.items())
        shapes = [np.shape(array) for _, array in arrays]
        raise ValueError(
            f"attend: got a {name} of arrays of shapes {shapes}, expected {expected}. Pass arrays of such shapes."
        )
    sizes = {np.shape(array)[names.index("heads")] for names, array in arrays if "heads" in names}
    if sizes != {heads}:
        raise ValueError(
            f"attend: got a {name} of {' and '.join(map(str, sizes)) or 'no'} heads for q of {heads}, expected as many. "
            "Make it for the heads of q, not those of k."
        )
    for _, array in arrays:
        _check_numbers(name, array, bias.may_hide)
    queries, keys = (jax.ShapeDtypeStruct((count,), jnp.int32) for count in (2, 3))
    shape = jax.eval_shape(bias.block, queries, keys).shape
    if shape != (heads, 2, 3):
        raise ValueError(
            f"attend: got a {name} whose block for 2 queries and 3 keys has shape {list(shape)}, expected {[heads, 2, 3]}, a "
            "number for each head, query and key. Correct its block()."
        )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), bias)


def _check_numbers(name: str, array: Any, may_hide: bool) -> None:
    """Raises ValueError where numbers are known and not finite: a slope of infinity would make NaN of distance 0. -inf is
    allowed where it hides keys."""
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"attend: got a {name} of {array.dtype}, expected real numbers. Cast its array to float32.")
    values = concrete(array)
    if values is None:
        return
    values = values.astype(np.float32)
    bad = np.isnan(values) | np.isposinf(values) if may_hide else ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"attend: got a {name} that holds {values[bad][0]}, expected finite numbers. Look at how its array is computed."
        )


def checked_dropout(rate: Any, key: Any) -> float:
    """Returns the rate as a float; ValueError for one outside [0, 1), and for one above 0 without a key."""
    number = _number("dropout_rate", rate, "a rate in [0, 1)")
    if not (number >= 0 and round(number * 2**32) < 2**32):  # as dropout.py counts; NaN is refused as well
        raise ValueError(f"attend: got dropout_rate {rate}, expected a rate in [0, 1). Pass one, such as 0.1.")
    if number > 0 and not _is_key(key):
        raise ValueError(
            f"attend: got dropout_key {_shown(key)} with dropout_rate {rate}, expected a key. Pass "
            "dropout_key=jax.random.key(...)."
        )
    return number


def _is_key(key: Any) -> bool:
    if not isinstance(key, jax.Array | np.ndarray):
        return False
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == 0 if typed else key.dtype == jnp.uint32 and key.ndim == 1


def checked_tolerance(tolerance: Any, dtype: jnp.dtype) -> float | None:
    """Returns the tolerance as a float, "auto" as that of the type; ValueError for one outside (0, 1)."""
    if tolerance is None:
        return None
    if isinstance(tolerance, str) and tolerance == "auto":
        return DEFAULT_TOLERANCE[dtype.name]
    expected = "a fraction of the softmax mass in (0, 1), 'auto', or None to skip nothing"
    number = _number("reach_tolerance", tolerance, expected)
    if not 0 < number < 1:
        raise ValueError(f"attend: got reach_tolerance {tolerance!r}, expected {expected}. Pass one of these.")
    return number


def check_causal(causal: Any) -> None:
    """Raises ValueError where `causal` is not True or False, as a traced value is not."""
    if not isinstance(causal, bool | np.bool_):
        raise ValueError(
            f"attend: got causal {_shown(causal)}, expected True or False, known when it is traced. Pass one of these."
        )


def _number(name: str, x: Any, expected: str) -> float:
    """Returns a real number as a float; ValueError where it is none, or not known when the function is traced."""
    value = concrete(x) if isinstance(x, int | float | np.number | np.ndarray | jax.Array) else None
    real = value is not None and value.ndim == 0 and value.dtype != np.bool_ and not np.iscomplexobj(value)
    if not real:
        raise ValueError(
            f"attend: got {name} {_shown(x)}, expected {expected}, known when the function is traced. Pass a Python number."
        )
    return float(value) if math.isfinite(value) else math.nan


def _shown(x: Any) -> str:
    """Returns the text of an argument in a message: an array's type and shape, or the repr."""
    return f"{x.dtype}{list(x.shape)}" if isinstance(x, jax.Array | np.ndarray) else repr(x)
