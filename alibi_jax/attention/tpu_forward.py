"""The forward pass on TPUs: a program serves one block of queries of one head, and visits the key blocks that it needs.

Keys and values stay in HBM, and a loop over exactly the visited blocks copies them: the work is linear in what is visited.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from alibi_jax.attention.implementation import LEAST_SUM, LOWEST_SCORE
from alibi_jax.attention.tpu_blocks import LANES, Kernel
from alibi_jax.attention.tpu_scores import (
    LOG2E,
    Block,
    Head,
    Visits,
    biased,
    block_of,
    copy_to,
    dot,
    first_bias,
    keep,
    key_biases,
    last_key_block,
    needs_mask,
    row_shift,
    scale,
    visit_all,
)


def _visits(kernel: Kernel, key_blocks: int, q_offset, first, k, v, keys, values, arrived) -> Visits:
    """Returns the visits of a block of queries, named by their key block."""
    b, h, i = (pl.program_id(axis) for axis in range(3))
    last = last_key_block(kernel, q_offset[0], i, key_blocks)
    before, behind = jnp.maximum(i - 1, 0), jnp.minimum(i + 1, pl.num_programs(2) - 1)
    begun = (i > 0) & (first[0, 0, 0, before] <= last_key_block(kernel, q_offset[0], before, key_blocks))
    start_behind = first[0, 0, 0, behind]
    visits_behind = (behind > i) & (start_behind <= last_key_block(kernel, q_offset[0], behind, key_blocks))

    def after(j: Array) -> tuple:
        here = j < last
        return jnp.where(here, j + 1, start_behind), here, here | visits_behind

    def copies(j: Array, number: Array) -> list:
        rows = b, h // kernel.group, pl.ds(j * kernel.block_k, kernel.block_k)
        pairs = (k, keys), (v, values)
        return [copy_to(x.at[rows], y.at[number], arrived.at[n, number]) for n, (x, y) in enumerate(pairs)]

    start = first[0, 0, 0, i]
    return Visits(start, start <= last, begun, after, copies)


def _forward_kernel(
    kernel, q_offset, slopes, seeds, first, ceilings, q, k, v, out, logsumexp, accumulator, running_max, running_sum,
    queries, biases, keys, values, arrived, buffer
):  # fmt: skip
    """Serves one block of queries of one head; the accumulator is [D, T], a row's running maximum and sum [1, T]."""
    h, i = pl.program_id(1), pl.program_id(2)
    head = Head(slopes[h], q_offset[0], (seeds[0, 0, 0, 0].astype(jnp.uint32), seeds[0, 0, 0, 1].astype(jnp.uint32)))
    ceiling = ceilings[0, 0, 0, i]
    bounded = ceiling >= 0

    @pl.when(i == 0)
    def _first_program():
        buffer[0] = 0
        biases[...] = key_biases(head, jax.lax.broadcasted_iota(jnp.int32, biases.shape, 0))

    visits = _visits(kernel, k.shape[2] // kernel.block_k, q_offset, first, k, v, keys, values, arrived)
    queries[...] = q[
        0, 0
    ].T  # once: with keys @ queries a visit takes 30 bundles less on v6e than with keys @ queries.T
    accumulator[...] = jnp.zeros_like(accumulator)
    running_sum[...] = jnp.zeros_like(running_sum)
    running_max[...] = jnp.full_like(running_max, jnp.where(bounded & visits.any, ceiling, LOWEST_SCORE))

    def add(block: Block, number: Array, masked: bool, bound: bool) -> None:
        by_key = None
        if kernel.bias_by_key:
            by_key = biases[...] + (first_bias(kernel, block) - (ceiling if bound else 0.0))
            by_key = jnp.concatenate([by_key] * (kernel.block_q // LANES), axis=1)
        scores = biased(kernel, block, dot(keys[number], queries[...], (1, 0)) * scale(q.shape[3]), by_key, masked)
        if bound:
            weights = jnp.exp2(scores if kernel.bias_by_key else scores - ceiling)
        else:
            new_max = jnp.maximum(running_max[...], scores.max(0, keepdims=True))
            weights = jnp.exp2(scores - new_max)
            rescale = jnp.exp2(running_max[...] - new_max)
            running_max[...] = new_max
            running_sum[...] *= rescale
            accumulator[...] *= rescale
        running_sum[...] += weights.sum(0, keepdims=True)
        if kernel.options.dropout_rate > 0:
            weights = weights * keep(kernel, block)
        accumulator[...] += dot(values[number], weights.astype(v.dtype), (0, 0))

    def visit(j: Array, number: Array) -> None:
        block = block_of(kernel, head, i, j)
        masking = needs_mask(kernel, block)
        for masked in (False, True):
            if v.dtype == jnp.float32:  # whose ceilings all say so
                pl.when(masking == masked)(partial(add, block, number, masked, False))
                continue
            for bound in (False, True):
                pl.when((masking == masked) & (bounded == bound))(partial(add, block, number, masked, bound))

    visit_all(visits, buffer, visit)
    total = jnp.maximum(running_sum[...], LEAST_SUM)  # 0 where a row needs none of these keys
    out[0, 0] = (accumulator[...] / total).T.astype(out.dtype)
    shift = row_shift(kernel, block_of(kernel, head, i, jnp.int32(0)))
    logsumexp[0, 0] = (running_max[...] + jnp.log2(total) - shift) / LOG2E


def run_forward(kernel: Kernel, q, k, v, q_offset, slopes, seeds, first, ceilings) -> Sequence[Array]:
    """Returns (output like q, log-sum-exp [B H 1 T])."""
    batch, heads, queries, width = q.shape

    def of_head(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, h, i, *_: (b, h, 0, 0), memory_space=pltpu.SMEM)

    of_queries = pl.BlockSpec((1, 1, kernel.block_q, width), lambda b, h, i, *_: (b, h, i, 0))
    of_rows = pl.BlockSpec((1, 1, 1, kernel.block_q), lambda b, h, i, *_: (b, h, 0, i))
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    numbers = pltpu.VMEM((1, kernel.block_q), jnp.float32)
    blocks = pltpu.VMEM((2, kernel.block_k, width), k.dtype)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(batch, heads, queries // kernel.block_q),
        in_specs=[of_head(seeds), of_head(first), of_head(ceilings), of_queries, in_hbm, in_hbm],
        out_specs=[of_queries, of_rows],
        scratch_shapes=[
            pltpu.VMEM((width, kernel.block_q), jnp.float32),
            numbers,
            numbers,
            pltpu.VMEM((width, kernel.block_q), q.dtype),
            pltpu.VMEM((kernel.block_k, LANES), jnp.float32),  # a number a key, in every lane as products want it
            blocks,
            blocks,
            pltpu.SemaphoreType.DMA((2, 2)),
            pltpu.SMEM((1,), jnp.int32),
        ],
    )
    return pl.pallas_call(
        partial(_forward_kernel, kernel),
        grid_spec=spec,
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=pltpu.InterpretParams() if kernel.options.interpret else False,
        name="alibi_forward",
    )(q_offset, slopes, seeds, first, ceilings, q, k, v)
