"""Attention kernels for GPUs (Pallas, Triton): linear or no bias, forward and backward, skipping beyond the reach.

One program serves a block of queries of one head and loops over just the blocks of keys it needs: those the reach keeps, the
ones that need a mask last. The bias is computed inside, in float32, from integer positions and the head's slope. Exponentials
are powers of two, which the hardware has; the scores are scaled for it.

Why "auto" takes these kernels before those of mosaic_gpu.py, where a card could run both: on an H200 a model of 110 million
parameters trains 1 to 3% faster with them (experiments/results/gpu). Attention alone, forward and backward, takes the same time
within 6% with heads of 64 channels; with 128 channels 5 to 9% more up to 8,192 tokens, and 6 to 9% less from 32,768 on. Triton
is deprecated in Pallas from jax 0.11: when it goes, mosaic_gpu serves Hopper, blockwise the other cards, and this file goes
with triton_backend.py.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32

from alibi_jax.attention.dropout import keep_scale
from alibi_jax.attention.implementation import LEAST_SUM, LOWEST_SCORE, Implementation, Inputs, Options, Residuals
from alibi_jax.attention.padded import PaddedInputs, key_range, padded_inputs, padded_residuals, with_row_bounds
from alibi_jax.attention.tiles import PassTiles, Tiles, choose_tiles
from alibi_jax.attention.triton_backend import expect_deprecation, obstacle
from alibi_jax.sharding import device

LOG2E = math.log2(math.e)  # exp(x) = exp2(LOG2E x), and the hardware has exp2
LEAST_WIDTH = 16  # channels: Triton's products are at least so wide


class Kernel(NamedTuple):
    """The sizes that are fixed when a kernel is traced."""

    options: Options
    num_keys: int  # before padding
    width: int  # of a head, before padding
    tiles: Tiles


def _dot(a: Array, b: Array, transposed_a: bool = False, transposed_b: bool = False) -> Float32[Array, "rows columns"]:
    precision = "highest" if a.dtype == jnp.float32 else None
    dims = (((0 if transposed_a else 1,), (1 if transposed_b else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _instruction(name: str, *operands: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Returns what one instruction of PTX, NVIDIA's assembly language, makes of each element of its operands."""
    from jax.experimental.pallas.triton import elementwise_inline_asm

    registers = ", ".join(f"${i}" for i in range(1 + len(operands)))
    constraints = ",".join(["=f", *["f"] * len(operands)])
    shape = [jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)]
    (result,) = elementwise_inline_asm(
        f"{name} {registers};", args=[*operands], constraints=constraints, pack=1, result_shape_dtypes=shape
    )
    return result


def _exp2(kernel: Kernel, x: Array) -> Array:
    """Returns 2^x by the instruction alone, which gives 0 below float32's least normal number, 1e-38.

    For jnp.exp2 the compiler adds three instructions that keep subnormal numbers: a fifth of all those of the forward pass.
    """
    return jnp.exp2(x) if kernel.options.interpret else _instruction("ex2.approx.ftz.f32", x)


def _multiply_add(kernel: Kernel, x: Array, factor: float, terms: Array) -> Array:
    """Returns x factor + terms, terms broadcast to x: XLA makes two instructions of it, a tenth of the forward pass more."""
    if kernel.options.interpret:
        return x * factor + terms
    return _instruction("fma.rn.f32", x, jnp.full(x.shape, factor, x.dtype), jnp.broadcast_to(terms, x.shape))


def _scores(
    kernel: Kernel, q: Array, k: Array, slope: Array, start: Array, j_start: Array, masked: bool, of_first: bool = False
) -> tuple:
    """Returns (scores to the base 2 [T, S], positions [T, 1], [1, S]); masked: -inf where a key is padding or after the
    query. of_first: all rows have the bias of the first query, which is too large by slope x row where causal."""
    q_positions = start + jnp.arange(q.shape[0])[:, None]
    k_positions = j_start + jnp.arange(k.shape[0])[None, :]
    distances = (start if of_first else q_positions) - k_positions
    if not kernel.options.causal:
        distances = jnp.abs(distances)
    bias = (-LOG2E * slope) * distances.astype(jnp.float32)
    scores = _multiply_add(kernel, _dot(q, k, transposed_b=True), LOG2E * kernel.width**-0.5, bias)
    if masked:
        seen = k_positions < kernel.num_keys
        seen = seen & (q_positions - k_positions >= 0) if kernel.options.causal else seen
        scores = jnp.where(seen, scores, -jnp.inf)
    return scores, q_positions, k_positions


def _loop(kernel: Kernel, start: Array, first: Array, key_blocks: int, visit: Callable, carry: Any) -> Any:
    """Folds visit(masked, j, carry) over the key blocks of a block of queries, those that need a mask last."""
    unmasked_end, end = key_range(kernel.options.causal, kernel.num_keys, kernel.tiles, start, first, key_blocks)
    carry = jax.lax.fori_loop(first, unmasked_end, functools.partial(visit, False), carry)
    return jax.lax.fori_loop(unmasked_end, end, functools.partial(visit, True), carry)


def _forward_kernel(
    kernel: Kernel, key_blocks: int, q_ref, k_ref, v_ref, slope, q_offset, seeds, first, out, logsumexp
):
    """Serves one block of queries of one head."""
    tiles = kernel.tiles
    start = q_offset[0] + pl.program_id(0) * tiles.block_q
    q, slope = q_ref[...], slope[0]
    # The softmax does not see what is added to a whole row. So all rows of a causal pass take the bias of the first: a number a
    # key, not a score. On Hopper a score of 64 channels then takes 9.7 instructions, not 10.5. Backward it would save 0.2 of
    # 10.7 (dq), and cost registers: one block fewer at once (dk, dv). Not in float32: its last bits would pay for 1 in 175.
    of_first = kernel.options.causal and q.dtype != jnp.float32

    def visit(masked, j, carry):
        accumulator, running_max, running_sum = carry
        rows = pl.ds(j * tiles.block_k, tiles.block_k)
        scores, *positions = _scores(kernel, q, k_ref[rows, :], slope, start, j * tiles.block_k, masked, of_first)
        new_max = jnp.maximum(running_max, scores.max(1))
        weights = _exp2(kernel, scores - new_max[:, None])
        rescale = _exp2(kernel, running_max - new_max)
        running_sum = running_sum * rescale + weights.sum(1)
        if kernel.options.dropout_rate > 0:
            weights = weights * keep_scale((seeds[0], seeds[1]), kernel.options.dropout_rate, *positions)
        accumulator = accumulator * rescale[:, None] + _dot(weights.astype(q.dtype), v_ref[rows, :])
        return accumulator, new_max, running_sum

    zeros = jnp.zeros(tiles.block_q, jnp.float32)
    carry = jnp.zeros(q.shape, jnp.float32), zeros + LOWEST_SCORE, zeros
    accumulator, running_max, running_sum = _loop(kernel, start, first[0], key_blocks, visit, carry)
    total = jnp.maximum(running_sum, LEAST_SUM)  # 0 where a row needs none of these keys
    out[...] = (accumulator / total[:, None]).astype(out.dtype)
    excess = slope * jnp.arange(tiles.block_q).astype(jnp.float32) if of_first else 0.0  # of the scores, by row
    logsumexp[...] = (running_max + jnp.log2(total)) / LOG2E - excess


def _gradient_scales(kernel: Kernel, dtype: jnp.dtype) -> tuple[float, float]:
    """Returns the factors of the scores' gradients and of their sums over blocks, together width^-0.5.

    A factor of the sums saves a multiplication a score. But float16, whose numbers end at 65,504, would overflow without it.
    """
    scale = kernel.width**-0.5
    return (scale, 1.0) if dtype == jnp.float16 else (1.0, scale)


def _weights_and_gradients(kernel, q, k, v, d_out, logsumexp, delta, slope, seed, start, j_start, masked):
    """Returns (weights after dropout, gradient of q k^T but for the factor of its sums), float32 [T, S]."""
    scores, *positions = _scores(kernel, q, k, slope, start, j_start, masked)
    weights = _exp2(kernel, scores - (LOG2E * logsumexp)[:, None])
    d_weights = _dot(d_out, v, transposed_b=True)
    dropped = weights
    if kernel.options.dropout_rate > 0:
        keep = keep_scale(seed, kernel.options.dropout_rate, *positions)
        d_weights, dropped = d_weights * keep, weights * keep
    return dropped, weights * (d_weights - delta[:, None]) * _gradient_scales(kernel, q.dtype)[0]


def _dq_kernel(
    kernel: Kernel, key_blocks: int, q, k_ref, v_ref, d_out, logsumexp, delta, slope, q_offset, seeds, first, dq
):
    """Serves one block of queries of one head: the blocks of keys it visits."""
    tiles = kernel.tiles
    start = q_offset[0] + pl.program_id(0) * tiles.block_q
    q, d_out, logsumexp, delta, slope = q[...], d_out[...], logsumexp[...], delta[...], slope[0]

    def visit(masked, j, total):
        rows = pl.ds(j * tiles.block_k, tiles.block_k)
        k, v = k_ref[rows, :], v_ref[rows, :]
        _, d_scores = _weights_and_gradients(
            kernel, q, k, v, d_out, logsumexp, delta, slope, (seeds[0], seeds[1]), start, j * tiles.block_k, masked
        )
        return total + _dot(d_scores.astype(k.dtype), k)

    total = _loop(kernel, start, first[0], key_blocks, visit, jnp.zeros(q.shape, jnp.float32))
    dq[...] = (total * _gradient_scales(kernel, q.dtype)[1]).astype(dq.dtype)


def _dkv_kernel(
    kernel: Kernel,
    query_blocks: int,
    q_ref,
    k,
    v,
    d_out_ref,
    logsumexp,
    delta,
    slopes,
    q_offset,
    seeds,
    last_query,
    dk,
    dv,
):
    """Serves one block of keys: the blocks of queries that visit it, of each query head that shares the key head in turn."""
    tiles = kernel.tiles
    j_start = pl.program_id(0) * tiles.block_k
    k, v = k[...], v[...]
    first = jnp.maximum(j_start - q_offset[0], 0) // tiles.block_q if kernel.options.causal else jnp.int32(0)

    def serve(g, carry):
        def visit(i, carry):
            rows = pl.ds(i * tiles.block_q, tiles.block_q)
            q, d_out = q_ref[rows, g, :], d_out_ref[rows, g, :]
            dropped, d_scores = _weights_and_gradients(
                kernel,
                *(q, k, v, d_out, logsumexp[g, rows], delta[g, rows], slopes[g], (seeds[g, 0], seeds[g, 1])),
                *(q_offset[0] + i * tiles.block_q, j_start, True),
            )
            return carry[0] + _dot(d_scores.astype(q.dtype), q, True), carry[1] + _dot(
                dropped.astype(q.dtype), d_out, True
            )

        return jax.lax.fori_loop(first, last_query[g, 0] + 1, visit, carry)

    zeros = jnp.zeros(k.shape, jnp.float32)
    sum_dk, sum_dv = jax.lax.fori_loop(0, q_ref.shape[1], serve, (zeros, zeros))
    dk[...] = (sum_dk * _gradient_scales(kernel, k.dtype)[1]).astype(dk.dtype)
    dv[...] = sum_dv.astype(dv.dtype)


def _compiler_params(kernel: Kernel) -> Any:
    """Returns what tells Pallas to take Triton; the interpreter needs nothing."""
    if kernel.options.interpret:
        return None
    from jax.experimental.pallas.triton import CompilerParams  # here, for some day it will be gone

    expect_deprecation()
    return CompilerParams(num_warps=kernel.tiles.num_warps, num_stages=kernel.tiles.num_stages)


def _call(kernel: Kernel, body: Callable, blocks: int, grid: tuple, inputs: list, outputs: list) -> Sequence[Array]:
    """Returns the outputs of `body` on a grid; inputs are (array, block spec), outputs (shape, dtype, block spec)."""
    return pl.pallas_call(
        functools.partial(body, kernel, blocks),
        grid=grid,
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for *_, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
        compiler_params=_compiler_params(kernel),
        interpret=kernel.options.interpret,
        name=f"alibi{body.__name__}",
    )(*(array for array, _ in inputs))


def _query_major(x: PaddedInputs, tiles: Tiles) -> dict[str, pl.BlockSpec]:
    """Returns the block specs on the grid (block of queries, batch row, head)."""
    group = x.q.shape[2] // x.k.shape[2]
    return {
        "queries": pl.BlockSpec((None, tiles.block_q, None, x.q.shape[3]), lambda i, b, h: (b, i, h, 0)),
        "keys": pl.BlockSpec((None, x.k.shape[1], None, x.k.shape[3]), lambda i, b, h: (b, 0, h // group, 0)),
        "numbers": pl.BlockSpec((None, None, tiles.block_q), lambda i, b, h: (b, h, i)),
        "slopes": pl.BlockSpec((1,), lambda i, b, h: (h,)),
        "offset": pl.BlockSpec((1,), lambda i, b, h: (0,)),
        "seeds": pl.BlockSpec((None, None, 2), lambda i, b, h: (b, h, 0)),
        "first": pl.BlockSpec((None, None, 1), lambda i, b, h: (b, h, i)),
    }


def _key_major(x: PaddedInputs, tiles: Tiles) -> dict[str, pl.BlockSpec]:
    """Returns the block specs on the grid (block of keys, batch row, key head); a program sees all its query heads."""
    group = x.q.shape[2] // x.k.shape[2]
    length = x.q.shape[1]
    return {
        "queries": pl.BlockSpec((None, length, group, x.q.shape[3]), lambda j, b, h: (b, 0, h, 0)),
        "keys": pl.BlockSpec((None, tiles.block_k, None, x.k.shape[3]), lambda j, b, h: (b, j, h, 0)),
        "numbers": pl.BlockSpec((None, group, length), lambda j, b, h: (b, h, 0)),
        "slopes": pl.BlockSpec((group,), lambda j, b, h: (h,)),
        "offset": pl.BlockSpec((1,), lambda j, b, h: (0,)),
        "seeds": pl.BlockSpec((None, group, 2), lambda j, b, h: (b, h, 0)),
        "last_query": pl.BlockSpec((None, group, 1), lambda j, b, h: (b, h, j)),
    }


def _run_forward(kernel: Kernel, x: PaddedInputs) -> Sequence[Array]:
    """Returns (output [B T H D], log-sum-exp [B H T])."""
    block_q, block_k, *_ = kernel.tiles
    specs = _query_major(x, kernel.tiles)
    grid = x.q.shape[1] // block_q, x.q.shape[0], x.q.shape[2]
    arrays = [(x.q, "queries"), (x.k, "keys"), (x.v, "keys"), (x.slopes, "slopes"), (x.q_offset, "offset")]
    inputs = [(array, specs[name]) for array, name in [*arrays, (x.seeds, "seeds"), (x.first, "first")]]
    rows = x.q.shape[0], x.q.shape[2], x.q.shape[1]
    outputs = [(x.q.shape, x.q.dtype, specs["queries"]), (rows, jnp.float32, specs["numbers"])]
    return _call(kernel, _forward_kernel, x.k.shape[1] // block_k, grid, inputs, outputs)


def _backward_inputs(x: PaddedInputs, d_out: Array, logsumexp: Array, delta: Array, specs: dict) -> list:
    """Returns the inputs that both backward kernels begin with; log-sum-exp and delta [B H T]."""
    arrays = [(x.q, "queries"), (x.k, "keys"), (x.v, "keys"), (d_out, "queries"), (logsumexp, "numbers")]
    arrays += [(delta, "numbers"), (x.slopes, "slopes"), (x.q_offset, "offset"), (x.seeds, "seeds")]
    return [(array, specs[name]) for array, name in arrays]


def _run_dq(kernel: Kernel, x: PaddedInputs, *residuals: Array) -> Array:
    """Returns dq."""
    block_q, block_k, *_ = kernel.tiles
    specs = _query_major(x, kernel.tiles)
    inputs = [*_backward_inputs(x, *residuals, specs), (x.first, specs["first"])]
    grid = x.q.shape[1] // block_q, x.q.shape[0], x.q.shape[2]
    outputs = [(x.q.shape, x.q.dtype, specs["queries"])]
    return _call(kernel, _dq_kernel, x.k.shape[1] // block_k, grid, inputs, outputs)[0]


def _run_dkv(kernel: Kernel, x: PaddedInputs, *residuals: Array) -> Sequence[Array]:
    """Returns (dk, dv)."""
    block_q, block_k, *_ = kernel.tiles
    specs = _key_major(x, kernel.tiles)
    inputs = [*_backward_inputs(x, *residuals, specs), (x.last_query, specs["last_query"])]
    grid = x.k.shape[1] // block_k, x.k.shape[0], x.k.shape[2]
    outputs = [(x.k.shape, x.k.dtype, specs["keys"])] * 2
    return _call(kernel, _dkv_kernel, x.q.shape[1] // block_q, grid, inputs, outputs)


def _padded(kernel: Kernel, inputs: Inputs) -> PaddedInputs:
    return padded_inputs(kernel.options, inputs, kernel.tiles, LEAST_WIDTH)


def _tiles(given: PassTiles | None, inputs: Inputs) -> PassTiles:
    return given or choose_tiles(inputs.q.dtype.itemsize, inputs.q.shape[3], device().capability)


def _forward(
    tiles: PassTiles | None, options: Options, inputs: Inputs
) -> tuple[Float[Array, "B T H D"], Float32[Array, "B H T"]]:
    queries, width = inputs.q.shape[1], inputs.q.shape[3]
    kernel = Kernel(options, inputs.k.shape[1], width, _tiles(tiles, inputs).forward)
    out, logsumexp = _run_forward(kernel, _padded(kernel, inputs))
    return out[:, :queries, :, :width], logsumexp[:, :, :queries]


def _backward(
    tiles: PassTiles | None, options: Options, inputs: Inputs, residuals: Residuals, wants_bias_gradient: bool
) -> tuple:
    queries, keys, width = inputs.q.shape[1], inputs.k.shape[1], inputs.q.shape[3]
    _, *passes = _tiles(tiles, inputs)
    inputs = with_row_bounds(options, inputs)
    kernels = [Kernel(options, keys, width, each) for each in passes]
    arrays = [
        (kernel, _padded(kernel, inputs), *padded_residuals(residuals, kernel.tiles.block_q, LEAST_WIDTH))
        for kernel in kernels
    ]
    dq, (dk, dv) = _run_dq(*arrays[0]), _run_dkv(*arrays[1])
    return dq[:, :queries, :, :width], dk[:, :keys, :, :width], dv[:, :keys, :, :width], None


def implementation(tiles: PassTiles | None = None) -> Implementation:
    """Returns the same function as `reference_attention`, with gradients for q, k and v; None: the tiles that suit the card."""
    return Implementation(
        "pallas_gpu",
        functools.partial(_forward, tiles),
        functools.partial(_backward, tiles),
        linear_bias_only=True,
        largest_head_width=128,
        platform="gpu",
        obstacle=obstacle,
    )


IMPLEMENTATION = implementation()
