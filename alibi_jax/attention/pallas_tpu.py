"""Attention by Pallas kernels for TPUs (Mosaic): linear or no bias, forward and backward, skipping beyond the reach.

The kernels are in tpu_forward.py and tpu_backward.py; here inputs are padded to whole blocks and laid out as they read them,
and which blocks see each other is computed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from alibi_jax.attention.ceilings import KEEP_MAXIMUM, ceilings
from alibi_jax.attention.implementation import LOWEST_SCORE, Implementation, Inputs, Options, Residuals
from alibi_jax.attention.padded import skips, with_row_bounds
from alibi_jax.attention.reach import first_key_blocks, last_query_blocks, score_bounds
from alibi_jax.attention.tpu_blocks import Kernel, kernel_of


def _first(kernel: Kernel, inputs: Inputs) -> Int32[Array, "B H N"]:
    """Returns the first key block each block of queries visits."""
    batch, queries, heads, _ = inputs.q.shape
    if not skips(kernel.options, inputs):
        return jnp.zeros((batch, heads, -(-queries // kernel.block_q)), jnp.int32)
    sizes = kernel.options.reach_tolerance, kernel.block_q, kernel.block_k
    return first_key_blocks(inputs.q, inputs.k, inputs.bias.slopes, inputs.q_offset, *sizes, inputs.row_bounds)


def _slopes(inputs: Inputs) -> Float32[Array, " H"]:
    return jnp.zeros(inputs.q.shape[2], jnp.float32) if inputs.bias is None else inputs.bias.slopes


def _ceilings(kernel: Kernel, inputs: Inputs) -> Float32[Array, "B H N"]:
    """Returns the bounds of the scores of each block of queries that needs no running maximum."""
    if inputs.q.dtype == jnp.float32:
        return jnp.full((*inputs.seeds.shape[:2], -(-inputs.q.shape[1] // kernel.block_q)), KEEP_MAXIMUM)
    if inputs.row_bounds is None:
        scores = score_bounds(inputs.q, inputs.k, inputs.q_offset, kernel.options.causal)
    else:
        scores = inputs.row_bounds.scores
    starts = inputs.q_offset + jnp.arange(0, inputs.q.shape[1], kernel.block_q)
    last, last_key = starts + kernel.block_q - 1, inputs.k.shape[1] - 1
    if kernel.bias_by_key:
        gaps = jnp.minimum(last, last_key) - jnp.minimum(starts, last_key)
    else:
        gaps = jnp.maximum(last - last_key, 0)
    return ceilings(scores, _slopes(inputs), gaps, kernel.block_q)


def _arrange(x: Float[Array, "B L H D"], block: int) -> Float[Array, "B H l D"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0))).swapaxes(1, 2)


def _arrays(kernel: Kernel, inputs: Inputs) -> tuple[Array, Array, Array]:
    return _arrange(inputs.q, kernel.block_q), _arrange(inputs.k, kernel.block_k), _arrange(inputs.v, kernel.block_k)


def _forward(options: Options, inputs: Inputs) -> tuple[Float[Array, "B T H D"], Float32[Array, "B H T"]]:
    # here, for Pallas's interface to TPUs takes longer to import than all of attention
    from alibi_jax.attention.tpu_forward import run_forward

    inputs = with_row_bounds(options, inputs)
    kernel = kernel_of(options, inputs)
    length = inputs.q.shape[1]
    seeds = jax.lax.bitcast_convert_type(inputs.seeds, jnp.int32)
    of_blocks = [x[:, :, None] for x in (seeds, _first(kernel, inputs), _ceilings(kernel, inputs))]
    arrays = *_arrays(kernel, inputs), inputs.q_offset[None], _slopes(inputs)
    out, logsumexp = run_forward(kernel, *arrays, *of_blocks)
    return out.swapaxes(1, 2)[:, :length], logsumexp[:, :, 0, :length]


def _rows(kernel: Kernel, residuals: Residuals) -> Float32[Array, "B H 2 t"]:
    """Returns log-sum-exp and delta, padded so that padding queries have weights of 0.

    A row that saw no key has none either: to the base 2 its log-sum-exp would overflow.
    """
    logsumexp = jnp.where(residuals.logsumexp < LOWEST_SCORE / 2, jnp.inf, residuals.logsumexp)
    padding = (0, 0), (0, 0), (0, -logsumexp.shape[2] % kernel.block_q)
    return jnp.stack([jnp.pad(logsumexp, padding, constant_values=jnp.inf), jnp.pad(residuals.delta, padding)], 2)


def _backward(options: Options, inputs: Inputs, residuals: Residuals, wants_bias_gradient: bool) -> tuple:
    from alibi_jax.attention.tpu_backward import Arrays, run_backward

    kernel = kernel_of(options, inputs)
    queries, keys = inputs.q.shape[1], inputs.k.shape[1]
    q, k, v = _arrays(kernel, inputs)
    seeds = jax.lax.bitcast_convert_type(inputs.seeds, jnp.int32)
    first = _first(kernel, inputs)
    last_query = last_query_blocks(first, k.shape[2] // kernel.block_k)
    of_head = [x[:, :, None] for x in (seeds, first, last_query)]
    rows = _rows(kernel, residuals)
    d_out = _arrange(residuals.d_out, kernel.block_q)
    arrays = Arrays(inputs.q_offset[None], _slopes(inputs), *of_head, k, v, q, d_out, rows)
    dq, dk, dv = run_backward(kernel, arrays)
    return dq.swapaxes(1, 2)[:, :queries], dk.swapaxes(1, 2)[:, :keys], dv.swapaxes(1, 2)[:, :keys], None


# The same function as `reference_attention`, with gradients for q, k and v.
IMPLEMENTATION = Implementation(
    "pallas_tpu",
    _forward,
    _backward,
    linear_bias_only=True,
    dtypes=("float32", "bfloat16"),
    largest_head_width=256,
    platform="tpu",
)
