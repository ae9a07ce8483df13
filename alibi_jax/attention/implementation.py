"""What an implementation of attention is, and the one gradient rule around all of them.

The backward pass recomputes the weights from the log-sum-exp of the forward pass. Where the residuals are those of more keys
than are at hand, it returns the gradient that is due to these keys alone: so a ring (ring.py) is built from the same two
functions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float, Float32, Int32, UInt32

from alibi_jax.positions.bias import Bias, LinearBias
from alibi_jax.sharding import Device

SAVED_NAME = "attention"  # of output and log-sum-exp, for policies of jax.checkpoint that keep them
# A row's running maximum before any score, near float32's lowest. Not -inf: a row that sees no key would get exp(-inf + inf).
LOWEST_SCORE = -3e38
# A row's sum of weights is taken to be no less, so that it can be divided by. Near float32's least normal number, 1.2e-38; the
# sum of a row that sees keys is larger.
LEAST_SUM = 1e-37


class Options(NamedTuple):
    """The settings that are fixed when attention is traced."""

    causal: bool
    dropout_rate: float
    reach_tolerance: float | None  # largest fraction of a row's softmax mass that may be skipped; None: skip nothing
    interpret: bool = False  # run a Pallas kernel step by step, on any device


class RowBounds(NamedTuple):
    """Bounds of each query's row that are known before its scores are computed."""

    scores: Float32[Array, "B H T"]  # no scaled score of the row is larger, nor smaller than minus it
    log_mass: Float32[Array, "B H T"]  # at most the log of the sum that the row's softmax divides by


class Inputs(NamedTuple):
    """The arrays attention is a function of."""

    q: Float[Array, "B T H D"]
    k: Float[Array, "B S K D"]
    v: Float[Array, "B S K D"]
    bias: Bias | None
    q_offset: Int32[Array, ""]  # the first query's position, the first key's being 0
    seeds: UInt32[Array, "B H 2"]
    row_bounds: RowBounds | None = None  # None: computed from the inputs


class Residuals(NamedTuple):
    """What the backward pass needs beside the inputs, of each query over all keys it sees."""

    d_out: Float[Array, "B T H D"]  # the gradient of the output
    logsumexp: Float32[Array, "B H T"]  # infinite for padding queries, whose weights are then 0 beside any bias
    delta: Float32[Array, "B H T"]  # sum of d_out * out


class Implementation(NamedTuple):
    """How attention is computed: two functions of `Inputs`, and what they can serve.

    forward(options, inputs) -> (output like q, log-sum-exp [B H T]).
    backward(options, inputs, residuals, wants_bias_gradient) -> (dq, dk, dv, gradient of the bias or None).
    Without them it is the definition (reference.py), which the compiler differentiates and shards.
    """

    name: str
    forward: Callable | None = None
    backward: Callable | None = None
    linear_bias_only: bool = False  # and no gradient for its slopes
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    largest_head_width: float = math.inf
    platform: str | None = None  # the only one it is compiled for; None: any
    # obstacle(device, interpret): why it cannot be had on that device of its platform, in words that follow "cannot serve" and
    # say what to do; None: it can. Called with every trace.
    obstacle: Callable[[Device, bool], str | None] = lambda device, interpret: None

    def unsupported(self, q: Array, bias: Bias | None) -> str | None:
        """Returns what the implementation cannot serve among these inputs, in words; None if it can serve them."""
        if self.linear_bias_only and not (bias is None or isinstance(bias, LinearBias)):
            return f"a {type(bias).__name__} (it supports LinearBias and None)"
        if q.dtype.name not in self.dtypes:
            return f"{q.dtype} inputs (it supports {', '.join(self.dtypes)})"
        if q.shape[-1] > self.largest_head_width:
            return f"a head width of {q.shape[-1]} (it supports up to {self.largest_head_width})"
        return None

    def refusal(self, device: Device, interpret: bool, q: Array, bias: Bias | None) -> str | None:
        """Returns why the implementation cannot serve these inputs on this device, in words; None if it can."""
        if self.platform not in (None, device.platform) and not interpret:
            return f"a computation for {device.platform}: it is compiled for {self.platform} only (or run with interpret=True)"
        return self.unsupported(q, bias) or self.obstacle(device, interpret)


def _values_and_perturbed(primals: Inputs) -> tuple[Inputs, Inputs]:
    """Returns, of the primals of a custom_vjp with symbolic zeros, the values, and whether anything asks for each gradient."""

    def pick(name: str) -> Inputs:
        return jax.tree.map(
            lambda leaf: getattr(leaf, name), primals, is_leaf=lambda leaf: isinstance(leaf, CustomVJPPrimal)
        )

    return pick("value"), pick("perturbed")


def _as_arrays(inputs: Inputs) -> Inputs:
    """Returns the inputs as jax's arrays: jax.checkpoint hands constants on as numpy's."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(implementation: Implementation, options: Options, inputs: Inputs) -> Float[Array, "B T H D"]:
    """Returns the output of an implementation, with gradients for q, k, v and, where anything asks for it, the bias."""
    return implementation.forward(options, inputs)[0]


def _forward(implementation: Implementation, options: Options, primals: Inputs) -> tuple:
    """Also returns whether anything asks for the bias's gradient, which costs a third of the backward pass."""
    inputs, perturbed = _values_and_perturbed(primals)
    inputs = _as_arrays(inputs)
    # jax keeps only pytrees of arrays between the passes: an empty one stands for True, None for False
    wants_bias_gradient = () if any(jax.tree.leaves(perturbed.bias)) else None
    if wants_bias_gradient is not None and implementation.linear_bias_only:
        raise NotImplementedError(
            f"attend: {implementation.name} cannot serve the gradient of learned slopes. Use implementation='blockwise'."
        )
    out, logsumexp = checkpoint_name(implementation.forward(options, inputs), SAVED_NAME)
    return out, (inputs, out, logsumexp, wants_bias_gradient)


def _backward(implementation: Implementation, options: Options, saved: tuple, d_out: Any) -> tuple[Inputs]:
    inputs, out, logsumexp, wants_bias_gradient = saved
    inputs = _as_arrays(inputs)
    if isinstance(d_out, SymbolicZero):
        d_out = jnp.zeros(d_out.shape, d_out.dtype)
    products = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    ones = jnp.ones(products.shape[-1], jnp.float32)
    delta = jnp.matmul(products, ones, precision="highest")  # faster than .sum(-1) on a CPU
    residuals = Residuals(d_out, logsumexp, delta.swapaxes(1, 2))
    dq, dk, dv, d_bias = implementation.backward(options, inputs, residuals, wants_bias_gradient is not None)
    return (Inputs(dq, dk, dv, d_bias, None, None, None),)


differentiable.defvjp(_forward, _backward, symbolic_zeros=True)
