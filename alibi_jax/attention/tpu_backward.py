"""The backward pass on TPUs: one kernel for the gradient of the queries, one for those of keys and values.

Grids run over all pairs of blocks, but the index of a skipped block is clamped to the last one visited, so that nothing is
fetched for it, and `pl.when` leaves out its arithmetic.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int32

from alibi_jax.attention.dropout import keep_scale
from alibi_jax.attention.tpu_blocks import Kernel
from alibi_jax.attention.tpu_scores import dot


class Scalars(NamedTuple):
    """The arrays the kernels read from SMEM, flat (a scalar memory pads the last dimension)."""

    first: Int32[Array, " BHNq"]  # the first key block a block of queries visits
    last_query: Int32[Array, " BHNk"]  # the last block of queries that visits a key block
    q_offset: Int32[Array, " 1"]
    slopes: Float32[Array, " H"]
    seeds: Int32[Array, " BH2"]


def _last_block(kernel: Kernel, q_offset: Array, i: Array, key_blocks: int) -> Array:
    """Returns the last key block that queries of block i may see; negative where they stand before all keys."""
    if not kernel.options.causal:
        return jnp.int32(key_blocks - 1)
    return jnp.minimum((q_offset + (i + 1) * kernel.block_q - 1) // kernel.block_k, key_blocks - 1)


def _first_query_block(kernel: Kernel, q_offset: Array, j: Array) -> Array:
    """Returns the first block of queries that may see keys of block j."""
    if not kernel.options.causal:
        return jnp.int32(0)
    return jnp.maximum(j * kernel.block_k - q_offset, 0) // kernel.block_q


def _positions(kernel: Kernel, q_offset: Array, i: Array, j: Array) -> tuple[Array, Array]:
    """Returns the positions of a block's queries and keys, both [S, T]."""
    shape = kernel.block_k, kernel.block_q
    q_positions = q_offset + i * kernel.block_q + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return q_positions, j * kernel.block_k + jax.lax.broadcasted_iota(jnp.int32, shape, 0)


def _scores(kernel: Kernel, q: Array, k: Array, slope: Array, q_positions: Array, k_positions: Array) -> Array:
    """Returns scaled and biased scores, float32 [S, T]; -inf where a key is padding or after the query."""
    distances = q_positions - k_positions
    biases = -slope * jnp.abs(distances).astype(jnp.float32)
    scores = dot(k, q, (1, 1)) * q.shape[-1] ** -0.5 + biases
    seen = k_positions < kernel.num_keys
    if kernel.options.causal:
        seen = seen & (distances >= 0)
    return jnp.where(seen, scores, -jnp.inf)


def _seed(scalars: Scalars, row: Array) -> tuple[Array, Array]:
    """Returns the two numbers of a (batch row, head)'s seed."""
    return scalars.seeds[2 * row].astype(jnp.uint32), scalars.seeds[2 * row + 1].astype(jnp.uint32)


def _weights_and_gradients(kernel, scalars, row, h, i, j, q, k, v, d_out, logsumexp, delta):
    """Returns (weights after dropout, gradient of the scaled scores), float32 [S, T]."""
    positions = _positions(kernel, scalars.q_offset[0], i, j)
    weights = jnp.exp(_scores(kernel, q, k, scalars.slopes[h], *positions) - logsumexp)
    d_weights = dot(v, d_out, (1, 1))
    dropped = weights
    if kernel.options.dropout_rate > 0:
        keep = keep_scale(_seed(scalars, row), kernel.options.dropout_rate, *positions)
        d_weights, dropped = d_weights * keep, weights * keep
    return dropped, weights * (d_weights - delta) * q.shape[-1] ** -0.5


def _dq_kernel(kernel: Kernel, scalars: Scalars, q, k, v, d_out, logsumexp, delta, dq, sum_dq):
    """Serves one visit of a block of queries to a block of keys."""
    b, h, i, n = (pl.program_id(axis) for axis in range(4))
    row = b * pl.num_programs(1) + h
    j = scalars.first[row * pl.num_programs(2) + i] + n

    @pl.when(n == 0)
    def _start():
        sum_dq[...] = jnp.zeros_like(sum_dq)

    @pl.when(j <= _last_block(kernel, scalars.q_offset[0], i, pl.num_programs(3)))
    def _visit():
        blocks = [ref[0, 0] for ref in (q, k, v, d_out, logsumexp, delta)]
        _, d_scores = _weights_and_gradients(kernel, scalars, row, h, i, j, *blocks)
        sum_dq[...] += dot(d_scores.astype(k.dtype), k[0, 0], (0, 0))

    @pl.when(n == pl.num_programs(3) - 1)
    def _finish():
        dq[0, 0] = sum_dq[...].astype(dq.dtype)


def _dkv_kernel(kernel: Kernel, scalars: Scalars, q, k, v, d_out, logsumexp, delta, dk, dv, sum_dk, sum_dv):
    """Serves one visit of a key block to a block of queries, for each query head that shares the key head in turn."""
    b, key_head, j, g, n = (pl.program_id(axis) for axis in range(5))
    h = key_head * kernel.group + g
    row = b * pl.num_programs(1) * kernel.group + h
    i = _first_query_block(kernel, scalars.q_offset[0], j) + n

    @pl.when((g == 0) & (n == 0))
    def _start():
        sum_dk[...] = jnp.zeros_like(sum_dk)
        sum_dv[...] = jnp.zeros_like(sum_dv)

    last = scalars.last_query[row * pl.num_programs(2) + j]
    first = scalars.first[row * pl.num_programs(4) + jnp.minimum(i, pl.num_programs(4) - 1)]

    @pl.when((i <= last) & (first <= j))
    def _visit():
        blocks = [ref[0, 0] for ref in (q, k, v, d_out, logsumexp, delta)]
        dropped, d_scores = _weights_and_gradients(kernel, scalars, row, h, i, j, *blocks)
        sum_dv[...] += dot(dropped.astype(d_out.dtype), blocks[3], (1, 0))
        sum_dk[...] += dot(d_scores.astype(q.dtype), blocks[0], (1, 0))

    @pl.when((g == pl.num_programs(3) - 1) & (n == pl.num_programs(4) - 1))
    def _finish():
        dk[0, 0] = sum_dk[...].astype(dk.dtype)
        dv[0, 0] = sum_dv[...].astype(dv.dtype)


def _call(
    kernel: Kernel, body: Callable, grid: tuple, scalars: Scalars, inputs: list, outputs: list, scratch: list
) -> Sequence[Array]:
    """Returns the outputs of `body` on a grid; inputs are (array, block shape, index map), outputs (shape, dtype, block shape,
    index map)."""

    def run(*refs):
        body(kernel, Scalars(*refs[: len(scalars)]), *refs[len(scalars) :])

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(scalars),
        grid=grid,
        in_specs=[pl.BlockSpec(block, index) for _, block, index in inputs],
        out_specs=[pl.BlockSpec(block, index) for *_, block, index in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    )
    serial = 1 if len(grid) == 4 else 2
    order = ("parallel",) * (len(grid) - serial) + ("arbitrary",) * serial
    return pl.pallas_call(
        run,
        grid_spec=spec,
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, *_ in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
        interpret=pltpu.InterpretParams() if kernel.options.interpret else False,
        name=f"alibi{body.__name__}",
    )(*scalars, *(array for array, *_ in inputs))


class _Blocks(NamedTuple):
    """Shapes of blocks and their index maps, of arrays [B H L D] and [B H 1 L]: a block's last two dimensions are tiled."""

    query: tuple
    key: tuple
    row: tuple


def _blocks(kernel: Kernel, width: int, queries: Callable, rows: Callable, keys: Callable) -> _Blocks:
    shapes = (1, 1, kernel.block_q, width), (1, 1, kernel.block_k, width), (1, 1, 1, kernel.block_q)
    return _Blocks((shapes[0], queries), (shapes[1], keys), (shapes[2], rows))


def _query_major(kernel: Kernel, heads: int, query_blocks: int, key_blocks: int, width: int) -> _Blocks:
    """Returns the blocks on the grid (batch row, head, block of queries, visit)."""

    def queries(b, h, i, n, *scalars):
        return b, h, i, 0

    def rows(b, h, i, n, *scalars):
        return b, h, 0, i

    def keys(b, h, i, n, *refs):
        scalars = Scalars(*refs)
        last = _last_block(kernel, scalars.q_offset[0], i, key_blocks)
        first = scalars.first[(b * heads + h) * query_blocks + i]
        return b, h // kernel.group, jnp.maximum(jnp.minimum(first + n, last), 0), 0

    return _blocks(kernel, width, queries, rows, keys)


def _key_major(kernel: Kernel, heads: int, key_blocks: int, width: int) -> _Blocks:
    """Returns the blocks on the grid (batch row, key head, block of keys, query head of the group, visit)."""

    def visited(b, key_head, j, g, n, scalars):
        h = key_head * kernel.group + g
        last = scalars.last_query[(b * heads + h) * key_blocks + j]
        return h, jnp.maximum(jnp.minimum(_first_query_block(kernel, scalars.q_offset[0], j) + n, last), 0)

    def queries(b, key_head, j, g, n, *refs):
        h, i = visited(b, key_head, j, g, n, Scalars(*refs))
        return b, h, i, 0

    def rows(b, key_head, j, g, n, *refs):
        h, i = visited(b, key_head, j, g, n, Scalars(*refs))
        return b, h, 0, i

    def keys(b, key_head, j, g, n, *scalars):
        return b, key_head, j, 0

    return _blocks(kernel, width, queries, rows, keys)


def _sizes(kernel: Kernel, q: Array, k: Array) -> tuple[int, int, int, int]:
    """Returns (heads, blocks of queries, blocks of keys, head width)."""
    return q.shape[1], q.shape[2] // kernel.block_q, k.shape[2] // kernel.block_k, q.shape[3]


def run_backward(kernel: Kernel, q, k, v, scalars: tuple, d_out, logsumexp, delta) -> tuple[Array, Array, Array]:
    """Returns (dq, dk, dv); log-sum-exp and delta [B H 1 T]."""
    scalars = Scalars(*scalars)
    heads, query_blocks, key_blocks, width = _sizes(kernel, q, k)

    def inputs(blocks: _Blocks) -> list:
        specs = [blocks.query, blocks.key, blocks.key, blocks.query, blocks.row, blocks.row]
        return [(x, *spec) for x, spec in zip((q, k, v, d_out, logsumexp, delta), specs, strict=True)]

    grid = q.shape[0], heads, query_blocks, key_blocks
    blocks = _query_major(kernel, heads, query_blocks, key_blocks, width)
    queries = [(q.shape, q.dtype, *blocks.query)]
    dq = _call(kernel, _dq_kernel, grid, scalars, inputs(blocks), queries, [(kernel.block_q, width)])[0]
    grid = q.shape[0], k.shape[1], key_blocks, kernel.group, query_blocks
    blocks = _key_major(kernel, heads, key_blocks, width)
    keys = [(k.shape, k.dtype, *blocks.key)] * 2
    dk, dv = _call(kernel, _dkv_kernel, grid, scalars, inputs(blocks), keys, [(kernel.block_k, width)] * 2)
    return dq, dk, dv
