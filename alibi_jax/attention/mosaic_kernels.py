"""The three attention kernels in Pallas's Mosaic GPU, for Hopper: tensor memory copies and warpgroup products (wgmma).

One warpgroup serves a block of 64 queries of one head (forward, dq) or of 64 keys of one key head (dk, dv), and loops over just
the blocks it needs. It begins to copy the next blocks before it computes with these. Nobody else waits at its barriers, nor
arrives there but the copies it has begun: one program cannot make another one hang. Two or more of them share a
multiprocessor, and each computes while the others wait.

Both factors of a product lie in shared memory, the weights as well: Mosaic GPU's interpreter knows no factor in registers.
This module is imported when a kernel is traced, as Mosaic GPU's interface changes between versions of jax.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32

from alibi_jax.attention.implementation import LEAST_SUM, LOWEST_SCORE
from alibi_jax.attention.mosaic_scores import (
    LOG2E,
    ROWS,
    Block,
    Head,
    Kernel,
    after_dropout,
    along_rows,
    biased_scores,
    excess,
    gradients,
    keep,
    signed_weights,
)
from alibi_jax.attention.padded import PaddedInputs, key_range

STAGES = 2  # blocks in flight: the one computed with and the next
GRID = "row", "head", "block"  # the last runs fastest: blocks that need the same keys are served at the same time


def _head(row: Array, number: Array, slopes: Any, seeds: Any) -> Head:
    return Head(row, number, slopes[number], (seeds[row, number, 0], seeds[row, number, 1]))


def _product(a: Any, b: Any) -> Float32[Array, "rows columns"]:
    """Returns a @ b of two references to shared memory."""

    def compute(total):
        plgpu.wgmma(total, a, b)
        return total[...]

    return pl.run_scoped(compute, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def _put(reference: Any, value: Array) -> None:
    """Writes a block to shared memory, where products and copies that follow see it."""
    reference[...] = value.astype(reference.dtype)
    plgpu.commit_smem()


def _loop(load: Callable, arrived: Any, visit: Callable, first: Array, spans: tuple, carry: Any) -> Any:
    """Folds visit(masked, j, slot, carry) over blocks: from `first` to before the end of each span (end, masked) in turn.

    load(j, slot) begins to copy block j to a slot: one block ahead.
    """
    end, _ = spans[-1]

    def step(masked: bool, j: Array, carry: Any) -> Any:
        slot = lax.rem(j, STAGES)
        pl.when(j + 1 < end)(lambda: load(j + 1, lax.rem(j + 1, STAGES)))
        plgpu.barrier_wait(arrived.at[slot])
        return visit(masked, j, slot, carry)

    pl.when(first < end)(lambda: load(first, lax.rem(first, STAGES)))
    for span_end, masked in spans:
        carry = lax.fori_loop(first, span_end, functools.partial(step, masked), carry)
        first = span_end
    return carry


def _rows(block: Array, size: int) -> Any:
    return pl.ds(block * size, size)


def _copy(sources: dict, scratch: dict, barrier: Any, slot: Array | None = None) -> None:
    """Begins to copy every source to the scratch of its name (of several, that of the slot); each arrives at the barrier."""
    for name, source in sources.items():
        target = scratch[name] if slot is None else scratch[name].at[slot]
        plgpu.copy_gmem_to_smem(source, target, barrier)


def _over_keys(
    kernel: Kernel, group: int, head: Head, start: Array, first: Array, k, v, scratch: dict, visit: Callable, carry: Any
) -> Any:
    """Folds visit(block, slot, carry) over the blocks of keys that a block of queries visits."""
    key_head = lax.div(head.number, group)

    def load(j: Array, slot: Array) -> None:
        keys = head.row, _rows(j, kernel.block_k), key_head
        _copy({"k": k.at[keys], "v": v.at[keys]}, scratch, scratch["arrived"].at[slot], slot)

    def visit_block(masked: bool, j: Array, slot: Array, carry: Any) -> Any:
        return visit(Block(head, start, j * kernel.block_k, masked), slot, carry)

    unmasked_end, end = key_range(
        kernel.options.causal, kernel.num_keys, kernel, start, first, k.shape[1] // kernel.block_k
    )
    return _loop(load, scratch["arrived"], visit_block, first, ((unmasked_end, False), (end, True)), carry)


def forward_kernel(kernel: Kernel, q, k, v, slopes, q_offset, seeds, first, out, logsumexp, scratch):
    """Serves one block of queries of one head."""
    row, number, i = (lax.axis_index(name) for name in GRID)
    rows = _rows(i, kernel.block_q)
    _copy({"q": q.at[row, rows, number]}, scratch, scratch["ready"])
    plgpu.barrier_wait(scratch["ready"])

    def visit(block, slot, carry):
        accumulator, running_max, running_sum = carry
        scores = biased_scores(kernel, block, _product(scratch["q"], scratch["k"].at[slot].T))
        new_max = jnp.maximum(running_max, scores.max(1))
        weights = jnp.exp2(scores - along_rows(new_max, scores))
        rescale = jnp.exp2(running_max - new_max)
        running_sum = running_sum * rescale + weights.sum(1)
        _put(scratch["weights"], weights * keep(kernel, block, weights.shape))
        products = _product(scratch["weights"], scratch["v"].at[slot])
        return accumulator * along_rows(rescale, accumulator) + products, new_max, running_sum

    zeros = plgpu.layout_cast(jnp.zeros((kernel.block_q, q.shape[3]), jnp.float32), plgpu.Layout.WGMMA)
    carry = zeros, *(plgpu.layout_cast(jnp.full(kernel.block_q, x, jnp.float32), ROWS) for x in (LOWEST_SCORE, 0.0))
    head, start = _head(row, number, slopes, seeds), q_offset[0] + i * kernel.block_q
    carry = _over_keys(
        kernel, q.shape[2] // k.shape[2], head, start, first[row, number, i], k, v, scratch, visit, carry
    )
    accumulator, running_max, running_sum = carry
    total = jnp.maximum(running_sum, LEAST_SUM)  # 0 where a row needs none of these keys
    scratch["numbers"][...] = running_max / LOG2E + jnp.log(total) - excess(kernel, head.slope)
    _put(scratch["q"], accumulator / along_rows(total, accumulator))
    plgpu.copy_smem_to_gmem(scratch["q"], out.at[row, rows, number])
    plgpu.copy_smem_to_gmem(scratch["numbers"], logsumexp.at[row, number, rows])
    plgpu.wait_smem_to_gmem(0)


def dq_kernel(kernel: Kernel, q, k, v, d_out, logsumexp, delta, slopes, q_offset, seeds, first, dq, scratch):
    """Serves one block of queries of one head: the blocks of keys it visits."""
    row, number, i = (lax.axis_index(name) for name in GRID)
    rows = _rows(i, kernel.block_q)
    matrices = {"q": q.at[row, rows, number], "d_out": d_out.at[row, rows, number]}
    numbers = {"logsumexp": logsumexp.at[row, number, rows], "delta": delta.at[row, number, rows]}
    _copy(matrices | numbers, scratch, scratch["ready"])
    plgpu.barrier_wait(scratch["ready"])
    of_rows = [plgpu.layout_cast(scratch[name][...], ROWS) for name in numbers]

    def sum_over_keys(total):
        def visit(block, slot, carry):
            keys, values = scratch["k"].at[slot], scratch["v"].at[slot]
            signed = signed_weights(kernel, block, _product(scratch["q"], keys.T), of_rows[0])
            d_weights = _product(scratch["d_out"], values.T)
            _put(scratch["d_scores"], gradients(kernel, d_weights, signed, of_rows[1]))
            plgpu.wgmma(total, scratch["d_scores"], keys)
            plgpu.wgmma_wait(0)  # before d_scores and the keys are written over
            return carry

        head, start = _head(row, number, slopes, seeds), q_offset[0] + i * kernel.block_q
        _over_keys(kernel, q.shape[2] // k.shape[2], head, start, first[row, number, i], k, v, scratch, visit, ())
        return total[...]

    _put(scratch["q"], pl.run_scoped(sum_over_keys, plgpu.ACC((kernel.block_q, q.shape[3]), jnp.float32)))
    plgpu.copy_smem_to_gmem(scratch["q"], dq.at[row, rows, number])
    plgpu.wait_smem_to_gmem(0)


def _masked_end(kernel: Kernel, j: Array, q_offset: Array, first: Array, end: Array) -> Array:
    """Returns the first block of queries from which on a block of keys needs no mask: all its keys are there, and seen."""
    last_key = (j + 1) * kernel.block_k - 1
    after = (last_key - q_offset + kernel.block_q - 1) // kernel.block_q if kernel.options.causal else first
    return jnp.where(last_key < kernel.num_keys, jnp.clip(after, first, end), end)


def _over_queries(
    kernel: Kernel, head: Head, j: Array, q_offset: Array, first: Array, end: Array, arrays: dict, scratch: dict, visit
) -> None:
    """Calls visit(block, slot) for the blocks of queries of a head that visit block j of keys: `first` to before `end`."""

    def load(i: Array, slot: Array) -> None:
        rows, arrived = _rows(i, kernel.block_q), scratch["arrived"].at[slot]
        _copy({name: arrays[name].at[head.row, rows, head.number] for name in ("q", "d_out")}, scratch, arrived, slot)
        for index, name in enumerate(("logsumexp", "delta")):
            numbers = arrays[name].at[head.row, head.number, rows]
            plgpu.copy_gmem_to_smem(numbers, scratch["numbers"].at[slot, index], arrived)

    def visit_block(masked: bool, i: Array, slot: Array, carry: tuple) -> tuple:
        visit(Block(head, q_offset + i * kernel.block_q, j * kernel.block_k, masked), slot)
        return carry

    spans = (_masked_end(kernel, j, q_offset, first, end), True), (end, False)
    _loop(load, scratch["arrived"], visit_block, first, spans, ())


def dkv_kernel(kernel: Kernel, q, k, v, d_out, logsumexp, delta, slopes, q_offset, seeds, last_query, dk, dv, scratch):
    """Serves one block of keys: the blocks of queries that visit it, of each query head that shares the key head in turn."""
    row, key_head, j = (lax.axis_index(name) for name in GRID)
    keys = row, _rows(j, kernel.block_k), key_head
    _copy({"k": k.at[keys], "v": v.at[keys]}, scratch, scratch["ready"])
    plgpu.barrier_wait(scratch["ready"])
    offset, group = q_offset[0], q.shape[2] // k.shape[2]
    first = jnp.maximum(j * kernel.block_k - offset, 0) // kernel.block_q if kernel.options.causal else jnp.int32(0)
    arrays = {"q": q, "d_out": d_out, "logsumexp": logsumexp, "delta": delta}

    def sum_over_queries(sum_dk, sum_dv):
        def visit(block, slot):
            queries, d_outputs = scratch["q"].at[slot], scratch["d_out"].at[slot]
            of_rows = [plgpu.layout_cast(scratch["numbers"][slot, index], ROWS) for index in (0, 1)]
            signed = signed_weights(kernel, block, _product(queries, scratch["k"].T), of_rows[0])
            _put(scratch["weights"], after_dropout(kernel, jnp.abs(signed), signed))
            d_weights = _product(d_outputs, scratch["v"].T)
            plgpu.wgmma(sum_dv, scratch["weights"].T, d_outputs)
            _put(scratch["d_scores"], gradients(kernel, d_weights, signed, of_rows[1]))
            plgpu.wgmma(sum_dk, scratch["d_scores"].T, queries)
            plgpu.wgmma_wait(0)  # before any of them is written over

        def serve(g, carry):
            head = _head(row, key_head * group + g, slopes, seeds)
            end = last_query[row, head.number, j] + 1
            _over_queries(kernel, head, j, offset, first, end, arrays, scratch, visit)
            return carry

        lax.fori_loop(0, group, serve, ())
        return sum_dk[...], sum_dv[...]

    sums = pl.run_scoped(sum_over_queries, *[plgpu.ACC((kernel.block_k, k.shape[3]), jnp.float32)] * 2)
    for total, out, name in zip(sums, (dk, dv), ("k", "v"), strict=True):
        _put(scratch[name], total)
        plgpu.copy_smem_to_gmem(scratch[name], out.at[keys])
    plgpu.wait_smem_to_gmem(0)


def _matrices(dtype: jnp.dtype, *shape: int) -> Any:
    """Returns room for blocks as the products want them: in tiles of 8 rows of 128 bytes, swizzled."""
    transforms = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _numbers(*shape: int) -> Any:
    return plgpu.SMEM(shape, jnp.float32)


def _call(kernel: Kernel, body: Callable, grid: tuple, scratch: dict, inputs: Sequence, outputs: Sequence) -> list:
    """Returns the outputs of `body`, of shapes and types `outputs`, on a grid as GRID names it."""
    interpret = plgpu.InterpretGPUParams(detect_races=True) if kernel.options.interpret else False
    parameters = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup)
    return plgpu.kernel(
        functools.partial(body, kernel),
        out_type=list(outputs),
        grid=grid,
        grid_names=GRID,
        scratch_types=[scratch],
        compiler_params=parameters,
        interpret=interpret,
        kernel_name=f"alibi_{body.__name__}",
    )(*inputs)


def run_forward(kernel: Kernel, x: PaddedInputs) -> list[Array]:
    """Returns (output [B T H D], log-sum-exp [B H T])."""
    batch, queries, heads, width = x.q.shape
    matrices = functools.partial(_matrices, x.q.dtype)
    scratch = {
        "q": matrices(kernel.block_q, width),
        "k": matrices(STAGES, kernel.block_k, width),
        "v": matrices(STAGES, kernel.block_k, width),
        "weights": matrices(kernel.block_q, kernel.block_k),
        "numbers": _numbers(kernel.block_q),
        "ready": plgpu.Barrier(),
        "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
    }
    inputs = x.q, x.k, x.v, x.slopes, x.q_offset, x.seeds, x.first
    outputs = jax.ShapeDtypeStruct(x.q.shape, x.q.dtype), jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    return _call(kernel, forward_kernel, (batch, heads, queries // kernel.block_q), scratch, inputs, outputs)


def run_dq(kernel: Kernel, x: PaddedInputs, d_out: Array, logsumexp: Array, delta: Array) -> Array:
    """Returns the gradient of the queries; log-sum-exp and delta [B H T]."""
    batch, queries, heads, width = x.q.shape
    matrices = functools.partial(_matrices, x.q.dtype)
    scratch = {
        "q": matrices(kernel.block_q, width),
        "d_out": matrices(kernel.block_q, width),
        "k": matrices(STAGES, kernel.block_k, width),
        "v": matrices(STAGES, kernel.block_k, width),
        "d_scores": matrices(kernel.block_q, kernel.block_k),
        "logsumexp": _numbers(kernel.block_q),
        "delta": _numbers(kernel.block_q),
        "ready": plgpu.Barrier(num_arrivals=4),
        "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
    }
    inputs = x.q, x.k, x.v, d_out, logsumexp, delta, x.slopes, x.q_offset, x.seeds, x.first
    outputs = [jax.ShapeDtypeStruct(x.q.shape, x.q.dtype)]
    return _call(kernel, dq_kernel, (batch, heads, queries // kernel.block_q), scratch, inputs, outputs)[0]


def run_dkv(kernel: Kernel, x: PaddedInputs, d_out: Array, logsumexp: Array, delta: Array) -> list[Array]:
    """Returns (dk, dv); log-sum-exp and delta [B H T]."""
    batch, keys, heads, width = x.k.shape
    matrices = functools.partial(_matrices, x.q.dtype)
    scratch = {
        "k": matrices(kernel.block_k, width),
        "v": matrices(kernel.block_k, width),
        "q": matrices(STAGES, kernel.block_q, width),
        "d_out": matrices(STAGES, kernel.block_q, width),
        "weights": matrices(kernel.block_q, kernel.block_k),
        "d_scores": matrices(kernel.block_q, kernel.block_k),
        # log-sum-exp and delta in one: each buffer begins a KiB, and one more would leave room for one block of 128 channels
        "numbers": _numbers(STAGES, 2, kernel.block_q),
        "ready": plgpu.Barrier(num_arrivals=2),
        "arrived": plgpu.Barrier(num_arrivals=4, num_barriers=STAGES),
    }
    inputs = x.q, x.k, x.v, d_out, logsumexp, delta, x.slopes, x.q_offset, x.seeds, x.last_query
    outputs = [jax.ShapeDtypeStruct(x.k.shape, x.k.dtype)] * 2
    return _call(kernel, dkv_kernel, (batch, heads, keys // kernel.block_k), scratch, inputs, outputs)
