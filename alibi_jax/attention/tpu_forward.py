"""The forward pass on TPUs."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from alibi_jax.attention.dropout import keep_scale
from alibi_jax.attention.implementation import LEAST_SUM, LOWEST_SCORE
from alibi_jax.attention.tpu_backward import (
    Scalars,
    _call,
    _last_block,
    _positions,
    _query_major,
    _scores,
    _seed,
    _sizes,
)
from alibi_jax.attention.tpu_blocks import Kernel
from alibi_jax.attention.tpu_scores import dot


def _forward_kernel(kernel: Kernel, scalars: Scalars, q, k, v, out, logsumexp, accumulator, running_max, running_sum):
    """Serves one visit of (batch row, head, block of queries) to a block of keys; the accumulator is [D, T], a row's running
    maximum and sum [1, T]."""
    b, h, i, n = (pl.program_id(axis) for axis in range(4))
    row = b * pl.num_programs(1) + h
    j = scalars.first[row * pl.num_programs(2) + i] + n

    @pl.when(n == 0)
    def _start():
        accumulator[...] = jnp.zeros_like(accumulator)
        running_max[...] = jnp.full_like(running_max, LOWEST_SCORE)
        running_sum[...] = jnp.zeros_like(running_sum)

    @pl.when(j <= _last_block(kernel, scalars.q_offset[0], i, pl.num_programs(3)))
    def _visit():
        positions = _positions(kernel, scalars.q_offset[0], i, j)
        scores = _scores(kernel, q[0, 0], k[0, 0], scalars.slopes[h], *positions)
        new_max = jnp.maximum(running_max[...], scores.max(0, keepdims=True))
        weights = jnp.exp(scores - new_max)
        rescale = jnp.exp(running_max[...] - new_max)
        running_max[...] = new_max
        running_sum[...] = running_sum[...] * rescale + weights.sum(0, keepdims=True)
        if kernel.options.dropout_rate > 0:
            weights = weights * keep_scale(_seed(scalars, row), kernel.options.dropout_rate, *positions)
        accumulator[...] = accumulator[...] * rescale + dot(v[0, 0], weights.astype(v.dtype), (0, 0))

    @pl.when(n == pl.num_programs(3) - 1)
    def _finish():
        total = jnp.maximum(running_sum[...], LEAST_SUM)  # 0 where a row needs none of these keys
        out[0, 0] = (accumulator[...] / total).T.astype(out.dtype)
        logsumexp[0, 0] = running_max[...] + jnp.log(total)


def run_forward(kernel: Kernel, q, k, v, scalars: tuple) -> Sequence[Array]:
    """Returns (output like q, log-sum-exp [B H 1 T])."""
    heads, query_blocks, key_blocks, width = _sizes(kernel, q, k)
    blocks = _query_major(kernel, heads, query_blocks, key_blocks, width)
    return _call(
        kernel,
        _forward_kernel,
        (q.shape[0], heads, query_blocks, key_blocks),
        Scalars(*scalars),
        [(q, *blocks.query), (k, *blocks.key), (v, *blocks.key)],
        [(q.shape, q.dtype, *blocks.query), ((*q.shape[:2], 1, q.shape[2]), jnp.float32, *blocks.row)],
        [(width, kernel.block_q), (1, kernel.block_q), (1, kernel.block_q)],
    )
