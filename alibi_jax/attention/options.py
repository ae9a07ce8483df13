"""What an implementation of attention is given, and the one gradient rule around all of them.

An implementation is two functions of a Part: forward(options, part) -> (output like q, log-sum-exp [B H T]), and
backward(options, part, given, learned) -> (dq, dk, dv, gradient of the bias or None). The backward pass makes every weight
again from the log-sum-exp. Where the log-sum-exp and the products of output and its gradient are those of more keys than are at
hand, it gives these keys' share: so a ring (ring.py) is made of the same two functions.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from alibi_jax.positions.bias import Bias

SAVED_NAME = "attention"  # of output and log-sum-exp, for policies of jax.checkpoint that keep them
LOWEST = (
    -3e38
)  # a row's largest score before any was seen: with -inf, the weights of a row that sees no key would be NaN


class Options(NamedTuple):
    """What is fixed when attention is traced."""

    causal: bool
    dropout_rate: float
    reach_tolerance: float | None  # largest share of a row's softmax mass that may be skipped; None: skip nothing
    interpret: bool = False  # run a Pallas kernel step by step, on any device


class Known(NamedTuple):
    """What is known of each query's row from elsewhere, float32 [B H T]."""

    bounds: Any  # no scaled score of the row is larger, nor smaller than minus it
    low: Any  # logarithm of a part of the sum that the row's softmax divides by


class Part(NamedTuple):
    """The arrays attention is a function of."""

    q: Any  # [B T H D]
    k: Any  # [B S K D]
    v: Any
    bias: Bias | None
    q_offset: Any  # int32 scalar: the first query's position, the first key's being 0
    seeds: Any  # uint32 [B H 2]
    known: Known | None = None


class Given(NamedTuple):
    """What the backward pass is given beside the Part: of each query, over all keys it sees."""

    d_out: Any  # [B T H D]: the gradient that came
    logsumexp: Any  # float32 [B H T]; infinite for queries that are padding: 0 beside a large bias is no weight of 0
    delta: Any  # float32 [B H T]: sum of d_out * out


class Rules(NamedTuple):
    """An implementation's two functions."""

    name: str
    forward: Callable
    backward: Callable
    learns_bias: bool  # whether there is a gradient for the bias's arrays


def values_and_perturbed(primals: Any) -> tuple[Any, Any]:
    """Of what a custom_vjp with symbolic zeros is given: the values, and whether anything asks for each one's gradient."""

    def is_primal(leaf: Any) -> bool:
        return isinstance(leaf, CustomVJPPrimal)

    return tuple(
        jax.tree.map(lambda leaf, name=name: getattr(leaf, name), primals, is_leaf=is_primal)
        for name in ("value", "perturbed")
    )


def _as_arrays(part: Part) -> Part:
    """jax.checkpoint hands constants on as numpy's."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), part)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(rules: Rules, options: Options, part: Part) -> jax.Array:
    """The output of an implementation, with gradients for q, k, v and, where it is learned, the bias."""
    return rules.forward(options, part)[0]


def _forward(rules: Rules, options: Options, primals: Part) -> tuple:
    """Also whether anything asks for the bias's gradient: fixed slopes have none, and it costs a third of the backward."""
    part, perturbed = values_and_perturbed(primals)
    part = _as_arrays(part)
    learned = () if any(jax.tree.leaves(perturbed.bias)) else None
    if learned is not None and not rules.learns_bias:
        raise NotImplementedError(
            f"attend: {rules.name} cannot serve the gradient of learned slopes. Use implementation='blockwise'."
        )
    out, logsumexp = checkpoint_name(rules.forward(options, part), SAVED_NAME)
    return out, (part, out, logsumexp, learned)


def _backward(rules: Rules, options: Options, residuals: tuple, d_out: Any) -> tuple[Part]:
    part, out, logsumexp, learned = residuals
    part = _as_arrays(part)
    if isinstance(d_out, SymbolicZero):
        d_out = jnp.zeros(d_out.shape, d_out.dtype)
    products = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    ones = jnp.ones(products.shape[-1], jnp.float32)
    delta = jnp.matmul(products, ones, precision="highest")  # faster than .sum(-1) on a CPU
    given = Given(d_out, logsumexp, delta.swapaxes(1, 2))
    dq, dk, dv, d_bias = rules.backward(options, part, given, learned is not None)
    return (Part(dq, dk, dv, d_bias, None, None, None),)


differentiable.defvjp(_forward, _backward, symbolic_zeros=True)
