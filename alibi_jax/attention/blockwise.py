"""Attention block by block in plain JAX: O(T + S) memory forward and backward, any bias, any device.

A block of queries visits its blocks of keys from the nearest to the farthest, and stops where the reach (reach.py) proves that
the rest weighs less than the tolerance, for by then it knows the sum of what it has seen. The backward pass recomputes the
weights of every block from the saved log-sum-exp, which also says how far it must go. Nothing of size T x S is ever held.

The bound of the scores has a second use: where it is below MODEST, exp(score) can neither overflow nor vanish in float32, and
the softmax needs no running maximum (which would cost a fifth of the time on a CPU). Elsewhere the rows' maxima come first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, UInt32

from alibi_jax.attention import passes
from alibi_jax.attention.dropout import dense_keep_scale
from alibi_jax.attention.implementation import (
    LEAST_SUM,
    LOWEST_SCORE,
    Implementation,
    Inputs,
    Options,
    Residuals,
    RowBounds,
)
from alibi_jax.attention.passes import GroupedInputs, Layout, Offsets
from alibi_jax.attention.reach import excess_within, first_key_block, reach
from alibi_jax.positions.bias import Bias
from alibi_jax.sharding import device

MODEST = 50.0  # exp(50) summed over 1e6 keys and values of 1e9 is below 1e37; exp(-50 - 17) is still a normal number
# float32 inputs are multiplied as float32 (accelerators would round them to TF32 or bfloat16); bfloat16 ones are exact anyway
EXACT = {"preferred_element_type": jnp.float32, "precision": "highest"}


class PassInputs(NamedTuple):
    """The arrays of one pass; r and g as in passes.py."""

    q: Float[Array, "r g T D"]
    k: Float[Array, "r S D"]
    v: Float[Array, "r S D"]
    k_columns: Float[Array, "r D S"]  # transposed once, not in every product
    v_columns: Float[Array, "r D S"]
    row_bounds: RowBounds  # [r g T]
    bias: Bias | None  # of the pass's query heads
    seeds: UInt32[Array, "r g 2"]


class Gradients(NamedTuple):
    """The gradients a pass sums for its keys, transposed, so that no product needs a transposed matrix of weights."""

    k: Float32[Array, "r D S"]
    v: Float32[Array, "r D S"]
    bias: Any  # like the bias, None where nothing asks for it


def _block(x: Array, index: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _positions(layout: Layout, q_offset: Array, i: Array, j: Array) -> tuple[Int[Array, " t"], Int[Array, " s"]]:
    """Returns the positions of a block's queries and keys; queries that are padding have the last one's."""
    index = jnp.minimum(i * layout.block_q + jnp.arange(layout.block_q), layout.num_queries - 1)
    return q_offset + index, j * layout.block_k + jnp.arange(layout.block_k)


def _scores(
    layout: Layout, q: Array, k_columns: Array, biases: Array | None, positions: tuple
) -> Float32[Array, "r g t s"]:
    """Returns scaled scores plus the bias [heads t s]; -inf where a key is padding or after the query."""
    scores = jnp.einsum("rgtd,rds->rgts", q, k_columns, **EXACT) * q.shape[-1] ** -0.5
    if biases is not None:
        scores = (passes.by_heads(layout, scores) + biases[None]).reshape(scores.shape)
    q_positions, k_positions = positions
    seen = k_positions[None, :] < layout.num_keys
    if layout.options.causal:
        seen = seen & (k_positions[None, :] <= q_positions[:, None])
    return jnp.where(seen[None, None], scores, -jnp.inf)


def _last_key_block(layout: Layout, start: Array, key_blocks: int) -> Int[Array, ""]:
    """Returns the index of the last block with a key that queries from position `start` on may see."""
    if not layout.options.causal:
        return jnp.int32(key_blocks - 1)
    return jnp.minimum((start + layout.block_q - 1) // layout.block_k, key_blocks - 1).astype(jnp.int32)


def _first_key_block(layout: Layout, inputs: PassInputs, i: Array, start: Array, log_mass: Array) -> Int[Array, ""]:
    """Returns the first block of keys that the queries of block i need, from the log of the sum over some keys of each row."""
    options = layout.options
    one_block = inputs.k.shape[1] == layout.block_k
    may_skip = options.causal and options.reach_tolerance is not None and inputs.bias is not None and not one_block
    slopes = inputs.bias.decay() if may_skip else None
    if slopes is None:
        return jnp.int32(0)
    bounds = RowBounds(*(_block(x, i, layout.block_q, 2) for x in inputs.row_bounds))
    slopes = passes.for_heads(layout, slopes)
    margin = bounds.scores - jnp.maximum(log_mass, bounds.log_mass)
    tokens = reach(excess_within(margin, slopes), slopes, options.reach_tolerance)
    return first_key_block(tokens.max(), start, layout.block_k)


def _nearest_first(layout: Layout, inputs: PassInputs, i: Array, start: Array, visit: Callable, state: Any) -> Any:
    """Visits blocks of keys, from the last a query may see, while they are needed; visit(j, state) -> (state, log mass).

    The blocks that hold the queries' own positions are always visited: before them a row may have seen nothing.
    """
    last = _last_key_block(layout, start, inputs.k.shape[1] // layout.block_k)
    own = jnp.minimum(start // layout.block_k, last)

    def is_needed(carry: tuple) -> Bool[Array, ""]:
        j, first, _ = carry
        return (j >= 0) & ((j >= own) | (j >= first))

    def step(carry: tuple) -> tuple:
        j, _, state = carry
        state, log_mass = visit(j, state)
        return j - 1, _first_key_block(layout, inputs, i, start, log_mass), state

    return jax.lax.while_loop(is_needed, step, (last, jnp.int32(0), state))[2]


def _is_modest(layout: Layout, inputs: PassInputs, i: Array, q_offset: Array) -> Bool[Array, ""]:
    """Returns whether exp(score) needs no shift: all scores are small, and each query's own key is here or known of, so that
    not all weights vanish beside it."""
    if inputs.v.dtype == jnp.float16:  # its largest number is exp(11)
        return jnp.bool_(False)
    bounds = RowBounds(*(_block(x, i, layout.block_q, 2) for x in inputs.row_bounds))
    largest = bounds.scores.max(-1)
    if inputs.bias is not None:
        largest = largest + passes.for_heads(layout, inputs.bias.largest())
    own_key = (q_offset + layout.num_queries <= layout.num_keys) | (bounds.log_mass.min() >= -MODEST)
    return (largest.max() <= MODEST) & own_key


def _forward_block(layout: Layout, inputs: PassInputs, q_offset: Array, i: Array) -> tuple[Array, Array]:
    """Returns (output [r g t D] float32, log-sum-exp [r g t]) of block i of queries."""
    q = _block(inputs.q, i, layout.block_q, 2)
    start = q_offset + i * layout.block_q

    def scores_of(j: Array) -> tuple:
        positions = _positions(layout, q_offset, i, j)
        biases = None if inputs.bias is None else inputs.bias.block(*positions)
        return _scores(layout, q, _block(inputs.k_columns, j, layout.block_k, 2), biases, positions), positions

    def visit_for_maxima(j: Array, maxima: Array) -> tuple:
        maxima = jnp.maximum(maxima, scores_of(j)[0].max(-1))
        return maxima, maxima

    def visit(j: Array, state: tuple) -> tuple:
        out, total = state
        scores, positions = scores_of(j)
        weights = jnp.exp(scores - shift[..., None])
        total = total + weights.sum(-1)
        if layout.options.dropout_rate > 0:
            weights = weights * dense_keep_scale(inputs.seeds, layout.options.dropout_rate, *positions)
        values = _block(inputs.v, j, layout.block_k, 1)
        out = out + jnp.einsum("rgts,rsd->rgtd", weights.astype(values.dtype), values, **EXACT)
        return (out, total), shift + jnp.log(total)

    walk = functools.partial(_nearest_first, layout, inputs, i, start)
    zeros = jnp.zeros(q.shape[:-1], jnp.float32)
    is_modest = _is_modest(layout, inputs, i, q_offset)
    shift = jax.lax.cond(is_modest, lambda: zeros, lambda: walk(visit_for_maxima, zeros + LOWEST_SCORE))
    out, total = walk(visit, (jnp.zeros(q.shape, jnp.float32), zeros))
    # 0 in rows that see no key here, or none that counts beside keys elsewhere
    total = jnp.maximum(total, LEAST_SUM)
    return out / total[..., None], shift + jnp.log(total)


def _backward_visit(
    layout: Layout,
    inputs: PassInputs,
    q: Array,
    residuals: Residuals,
    positions: tuple,
    j: Array,
    wants_bias_gradient: bool,
) -> tuple[Gradients, Float32[Array, "r g t D"]]:
    """Returns what one pair of blocks adds: (gradients of its keys, dq)."""
    k_columns, v_columns = (_block(x, j, layout.block_k, 2) for x in (inputs.k_columns, inputs.v_columns))
    biases, bias_vjp = None, None
    if inputs.bias is not None:
        biases, bias_vjp = jax.vjp(lambda bias: bias.block(*positions), inputs.bias)
    weights = jnp.exp(_scores(layout, q, k_columns, biases, positions) - residuals.logsumexp[..., None])
    d_weights = jnp.einsum("rgtd,rds->rgts", residuals.d_out, v_columns, **EXACT)
    dropped = weights
    if layout.options.dropout_rate > 0:
        keep = dense_keep_scale(inputs.seeds, layout.options.dropout_rate, *positions)
        d_weights, dropped = d_weights * keep, weights * keep
    d_scores = weights * (d_weights - residuals.delta[..., None])
    d_bias = bias_vjp(passes.by_heads(layout, d_scores).sum(0))[0] if wants_bias_gradient else None
    d_scores = (d_scores * q.shape[-1] ** -0.5).astype(q.dtype)
    dk = jnp.einsum("rgdt,rgts->rds", q.swapaxes(2, 3), d_scores, **EXACT)
    dv = jnp.einsum("rgdt,rgts->rds", residuals.d_out.swapaxes(2, 3), dropped.astype(q.dtype), **EXACT)
    dq = jnp.einsum("rgts,rsd->rgtd", d_scores, _block(inputs.k, j, layout.block_k, 1), **EXACT)
    return Gradients(dk, dv, d_bias), dq


def _backward_block(
    layout: Layout, inputs: PassInputs, residuals: Residuals, gradients: Gradients, q_offset: Array, i: Array
) -> tuple[Gradients, Float32[Array, "r g t D"]]:
    """Returns (gradients with those of block i of queries added, the block's dq)."""
    start = q_offset + i * layout.block_q
    q = _block(inputs.q, i, layout.block_q, 2)
    residuals = Residuals(*(_block(x, i, layout.block_q, 2) for x in residuals))

    def add(whole: Array, more: Array, j: Array) -> Array:
        summed = _block(whole, j, layout.block_k, 2) + more
        return jax.lax.dynamic_update_slice_in_dim(whole, summed, j * layout.block_k, 2)

    def visit(j: Array, carry: tuple) -> tuple:
        gradients, dq = carry
        positions = _positions(layout, q_offset, i, j)
        more, more_dq = _backward_visit(layout, inputs, q, residuals, positions, j, gradients.bias is not None)
        bias = jax.tree.map(jnp.add, gradients.bias, more.bias)
        return Gradients(add(gradients.k, more.k, j), add(gradients.v, more.v, j), bias), dq + more_dq

    first = _first_key_block(layout, inputs, i, start, residuals.logsumexp)
    stop = _last_key_block(layout, start, inputs.k.shape[1] // layout.block_k) + 1
    return jax.lax.fori_loop(first, stop, visit, (gradients, jnp.zeros(q.shape, jnp.float32)))


def _pass_inputs(layout: Layout, offsets: Offsets, inputs: GroupedInputs) -> PassInputs:
    k, v = (passes.cut_keys(layout, offsets, x) for x in (inputs.k, inputs.v))
    return PassInputs(
        passes.cut_queries(layout, offsets, inputs.q),
        k,
        v,
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        RowBounds(*(passes.cut_numbers(layout, offsets, x) for x in inputs.row_bounds)),
        passes.cut_bias(layout, offsets, inputs.bias, inputs.q.shape[3]),
        passes.cut_numbers(layout, offsets, inputs.seeds),
    )


def _forward_passes(
    layout: Layout, grouped: GroupedInputs
) -> tuple[Float[Array, "B T K G D"], Float32[Array, "B K G T"]]:
    """Returns (output, log-sum-exp)."""

    def serve(whole: tuple, offsets: Offsets) -> tuple:
        inputs = _pass_inputs(layout, offsets, grouped)

        def row(whole: tuple, i: Array) -> tuple:
            out, logsumexp = _forward_block(layout, inputs, grouped.q_offset, i)
            start = i * layout.block_q
            outs = passes.put_queries(layout, offsets, whole[0], out, start)
            return (outs, passes.put_numbers(layout, offsets, whole[1], logsumexp, start)), None

        return jax.lax.scan(row, whole, jnp.arange(grouped.q.shape[1] // layout.block_q))

    zeros = jnp.zeros_like(grouped.q), jnp.zeros_like(grouped.row_bounds.scores)
    return jax.lax.scan(serve, zeros, passes.pass_offsets(layout, grouped.q.shape))[0]


def _backward_passes(layout: Layout, grouped: GroupedInputs, residuals: Residuals, wants_bias_gradient: bool) -> tuple:
    """Returns (dq [B T K G D], dk and dv [B S K D] float32, gradient of the bias or None); residuals grouped like queries."""
    num_groups = grouped.q.shape[3]

    def serve(whole: tuple, offsets: Offsets) -> tuple:
        inputs = _pass_inputs(layout, offsets, grouped)
        numbers = (passes.cut_numbers(layout, offsets, x) for x in residuals[1:])
        of_pass = Residuals(passes.cut_queries(layout, offsets, residuals.d_out), *numbers)

        def row(carry: tuple, i: Array) -> tuple:
            gradients, whole = carry
            gradients, dq = _backward_block(layout, inputs, of_pass, gradients, grouped.q_offset, i)
            return (gradients, passes.put_queries(layout, offsets, whole, dq, i * layout.block_q)), None

        zeros = jnp.zeros(inputs.k.swapaxes(1, 2).shape, jnp.float32)
        start = Gradients(zeros, zeros, jax.tree.map(jnp.zeros_like, inputs.bias) if wants_bias_gradient else None)
        dq, dk, dv, d_bias = whole
        (more, dq), _ = jax.lax.scan(row, (start, dq), jnp.arange(grouped.q.shape[1] // layout.block_q))
        dk = passes.add_keys(layout, offsets, dk, more.k)
        dv = passes.add_keys(layout, offsets, dv, more.v)
        return (dq, dk, dv, passes.add_bias(layout, offsets, d_bias, more.bias, grouped.bias, num_groups)), None

    keys = jnp.zeros(grouped.k.shape, jnp.float32)
    dq = jnp.zeros_like(grouped.q)
    start = dq, keys, keys, jax.tree.map(jnp.zeros_like, grouped.bias) if wants_bias_gradient else None
    return jax.lax.scan(serve, start, passes.pass_offsets(layout, grouped.q.shape))[0]


def _forward(options: Options, inputs: Inputs) -> tuple[Float[Array, "B T H D"], Float32[Array, "B H T"]]:
    layout = passes.layout_of(options, inputs, device().platform)
    batch, length, heads, width = inputs.q.shape
    out, logsumexp = _forward_passes(layout, passes.grouped_inputs(layout, inputs))
    return out.reshape(batch, -1, heads, width)[:, :length], logsumexp.reshape(batch, heads, -1)[:, :, :length]


def _backward(options: Options, inputs: Inputs, residuals: Residuals, wants_bias_gradient: bool) -> tuple:
    layout = passes.layout_of(options, inputs, device().platform)
    batch, length, heads, width = inputs.q.shape
    keys, key_heads = inputs.k.shape[1:3]
    logsumexp = passes.group_numbers(layout, key_heads, residuals.logsumexp, jnp.inf)
    delta = passes.group_numbers(layout, key_heads, residuals.delta)
    residuals = Residuals(passes.group_queries(layout, key_heads, residuals.d_out), logsumexp, delta)
    grouped = passes.grouped_inputs(layout, inputs)
    dq, dk, dv, d_bias = _backward_passes(layout, grouped, residuals, wants_bias_gradient)
    dk, dv = (x[:, :keys].astype(inputs.k.dtype) for x in (dk, dv))
    return dq.reshape(batch, -1, heads, width)[:, :length], dk, dv, d_bias


# The same function as `reference_attention`, in O(T + S) memory.
IMPLEMENTATION = Implementation("blockwise", _forward, _backward)
