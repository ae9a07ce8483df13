"""The forward pass on TPUs: a program serves one block of queries of one head, and visits the key blocks that it needs.

Keys and values stay in HBM, and a loop over exactly the visited blocks copies them: the work is linear in what is visited.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from alibi_jax.attention.ceilings import KEEP_MAXIMUM
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


class _Scratch(NamedTuple):
    """Memory on the chip; a buffer's first dimension is the two visits whose blocks it holds."""

    accumulator: Any  # [D, T]
    running_max: Any  # [1, T]
    running_sum: Any
    queries: Any  # [D, T]: keys @ queries takes a visit 30 bundles less on v6e than keys @ queries.T
    biases: Any  # [S, LANES], of keys counted from a block's first: a number a key in every lane, as scores want it
    keys: Any  # [2, S, D]
    values: Any
    arrived: Any  # semaphores [2, 2]
    buffer: Any  # [1]


def _scratch(kernel: Kernel, width: int, dtype: jnp.dtype) -> _Scratch:
    """Returns the shapes of a program's memory."""
    rows, blocks = pltpu.VMEM((1, kernel.block_q), jnp.float32), pltpu.VMEM((2, kernel.block_k, width), dtype)
    accumulator, queries = (pltpu.VMEM((width, kernel.block_q), each) for each in (jnp.float32, dtype))
    biases = pltpu.VMEM((kernel.block_k, LANES), jnp.float32)
    arrived, buffer = pltpu.SemaphoreType.DMA((2, 2)), pltpu.SMEM((1,), jnp.int32)
    return _Scratch(accumulator, rows, rows, queries, biases, blocks, blocks, arrived, buffer)


def _visits(kernel: Kernel, scratch: _Scratch, q_offset: Array, first: Any, k: Any, v: Any) -> Visits:
    """Returns the visits of a block of queries, named by their key block."""
    b, h, i = (pl.program_id(axis) for axis in range(3))

    def of_program(i: Array) -> tuple[Array, Array]:
        return first[0, 0, 0, i], last_key_block(kernel, q_offset, i, k.shape[2] // kernel.block_k)

    start, last = of_program(i)
    start_before, last_before = of_program(jnp.maximum(i - 1, 0))
    start_behind, last_behind = of_program(jnp.minimum(i + 1, pl.num_programs(2) - 1))
    some_behind = (i + 1 < pl.num_programs(2)) & (start_behind <= last_behind)

    def after(j: Array) -> tuple:
        here = j < last
        return jnp.where(here, j + 1, start_behind), here, here | some_behind

    def copies(j: Array, number: Array) -> list:
        rows = b, h // kernel.group, pl.ds(j * kernel.block_k, kernel.block_k)
        pairs = (k, scratch.keys), (v, scratch.values)
        return [copy_to(x.at[rows], y.at[number], scratch.arrived.at[n, number]) for n, (x, y) in enumerate(pairs)]

    return Visits(start, start <= last, (i > 0) & (start_before <= last_before), after, copies)


def _add(kernel: Kernel, scratch: _Scratch, block: Block, number: Array, masked: bool, ceiling: Array | None) -> None:
    """Adds a visit's weights and weighted values to a row's sums; with a ceiling the running maximum stays as it is."""
    width = scratch.queries.shape[0]
    scores = dot(scratch.keys[number], scratch.queries[...], (1, 0)) * scale(width)
    least = 0.0 if ceiling is None else ceiling
    biases = None
    if kernel.bias_by_key:
        biases = scratch.biases[...] + (first_bias(kernel, block) - least)  # the ceiling costs a score nothing here
        biases = jnp.concatenate([biases] * (kernel.block_q // LANES), axis=1)
    scores = biased(kernel, block, scores, biases, masked)
    if ceiling is None:
        new_max = jnp.maximum(scratch.running_max[...], scores.max(0, keepdims=True))
        rescale = jnp.exp2(scratch.running_max[...] - new_max)
        scratch.running_max[...] = new_max
        scratch.running_sum[...] *= rescale
        scratch.accumulator[...] *= rescale
        weights = jnp.exp2(scores - new_max)
    else:
        weights = jnp.exp2(scores if kernel.bias_by_key else scores - ceiling)
    scratch.running_sum[...] += weights.sum(0, keepdims=True)
    if kernel.options.dropout_rate > 0:
        weights = weights * keep(kernel, block)
    scratch.accumulator[...] += dot(scratch.values[number], weights.astype(scratch.values.dtype), (0, 0))


def _forward_kernel(kernel: Kernel, q_offset, slopes, seeds, first, ceilings, q, k, v, out, logsumexp, *scratch):
    """Serves one block of queries of one head."""
    scratch = _Scratch(*scratch)
    h, i = pl.program_id(1), pl.program_id(2)
    head = Head(slopes[h], q_offset[0], (seeds[0, 0, 0, 0].astype(jnp.uint32), seeds[0, 0, 0, 1].astype(jnp.uint32)))
    ceiling = ceilings[0, 0, 0, i]
    bounded = ceiling > KEEP_MAXIMUM

    @pl.when(i == 0)
    def _first_program():
        scratch.buffer[0] = 0
        scratch.biases[...] = key_biases(head, jax.lax.broadcasted_iota(jnp.int32, scratch.biases.shape, 0))

    visits = _visits(kernel, scratch, head.q_offset, first, k, v)
    scratch.queries[...] = q[0, 0].T
    scratch.accumulator[...] = jnp.zeros_like(scratch.accumulator)
    scratch.running_sum[...] = jnp.zeros_like(scratch.running_sum)
    start = jnp.where(visits.any, ceiling, LOWEST_SCORE)
    scratch.running_max[...] = jnp.full_like(scratch.running_max, start)

    def visit(j: Array, number: Array) -> None:
        block = block_of(kernel, head, i, j)
        masking = needs_mask(kernel, block)
        for masked in (False, True):
            add = partial(_add, kernel, scratch, block, number, masked)
            if q.dtype == jnp.float32:  # which always keeps its maximum
                pl.when(masking == masked)(partial(add, None))
            else:
                pl.when((masking == masked) & ~bounded)(partial(add, None))
                pl.when((masking == masked) & bounded)(partial(add, ceiling))

    visit_all(visits, scratch.buffer, visit)
    total = jnp.maximum(scratch.running_sum[...], LEAST_SUM)  # 0 where a row needs none of these keys
    out[0, 0] = (scratch.accumulator[...] / total).T.astype(out.dtype)
    shift = row_shift(kernel, block_of(kernel, head, i, jnp.int32(0)))
    logsumexp[0, 0] = (scratch.running_max[...] + jnp.log2(total) - shift) / LOG2E


def run_forward(kernel: Kernel, q, k, v, q_offset, slopes, seeds, first, ceilings) -> Sequence[Array]:
    """Returns (output like q, log-sum-exp [B H 1 T])."""
    batch, heads, queries, width = q.shape

    def of_head(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, h, i, *_: (b, h, 0, 0), memory_space=pltpu.SMEM)

    of_queries = pl.BlockSpec((1, 1, kernel.block_q, width), lambda b, h, i, *_: (b, h, i, 0))
    of_rows = pl.BlockSpec((1, 1, 1, kernel.block_q), lambda b, h, i, *_: (b, h, 0, i))
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(batch, heads, queries // kernel.block_q),
        in_specs=[of_head(seeds), of_head(first), of_head(ceilings), of_queries, in_hbm, in_hbm],
        out_specs=[of_queries, of_rows],
        scratch_shapes=_scratch(kernel, width, q.dtype),
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
