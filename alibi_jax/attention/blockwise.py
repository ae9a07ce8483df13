"""Attention block by block in plain JAX: O(T + S) memory forward and backward, any bias, any device.

A block of queries meets its blocks of keys from the nearest to the farthest, and stops where the reach (reach.py) proves that
what is left weighs less than the tolerance, for by then it knows the sum of what it has seen. The backward pass makes every
block's weights again from the saved log-sum-exp, which also says how far it must go. Nothing of size T x S is ever held.

A score's bound does a second service: where it is below MODEST, exp(score) can neither overflow nor vanish in float32, and
the softmax needs no running maximum (which would cost a fifth of the time on a CPU). Elsewhere the rows' maxima come first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.attention import passes
from alibi_jax.attention.dropout import dense_keep_scale
from alibi_jax.attention.options import LOWEST, Given, Known, Options, Part, Rules
from alibi_jax.attention.passes import Plan
from alibi_jax.attention.reach import excess_within, first_key_block, reach, score_bounds
from alibi_jax.positions.bias import Bias
from alibi_jax.sharding import device

BLOCK = 512  # queries and keys of a block: XLA's CPU backend runs products of this size on all cores, at 128 on one
MODEST = 50.0  # exp(50) summed over 1e6 keys and values of 1e9 is below 1e37; exp(-50 - 17) is still a normal number

TINY = 1e-37  # below every sum that counts
# float32 inputs are multiplied as float32 (accelerators would round them to TF32 or bfloat16); bfloat16 ones are exact anyway
EXACT = {"preferred_element_type": jnp.float32, "precision": "highest"}


class Heads(NamedTuple):
    """The arrays of one pass; r and g as in passes.py."""

    q: Any  # [r g T D]
    k: Any  # [r S D]
    v: Any
    k_columns: Any  # [r D S]: transposed once, not in every product
    v_columns: Any
    known: Known  # of each row, float32 [r g T]
    bias: Bias | None  # of its query heads
    seeds: Any  # uint32 [r g 2]


class Gradients(NamedTuple):
    """What a pass sums up for its keys; transposed, so that no product needs a transposed matrix of weights."""

    k: Any  # float32 [r D S]
    v: Any
    bias: Any  # like the bias, None where nobody asks for it


def _part(x: Array, index: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _positions(plan: Plan, q_offset: Array, i: Array, j: Array) -> tuple[Int[Array, " t"], Int[Array, " s"]]:
    """Positions of a block's queries and keys; queries that are padding stand where the last one does."""
    index = jnp.minimum(i * plan.block_q + jnp.arange(plan.block_q), plan.num_queries - 1)
    return q_offset + index, j * plan.block_k + jnp.arange(plan.block_k)


def _scores(
    plan: Plan, q: Array, k_columns: Array, biases: Array | None, positions: tuple
) -> Float32[Array, "r g t s"]:
    """Scaled scores with the bias [heads t s]; -inf where a key is padding or after the query."""
    scores = jnp.einsum("rgtd,rds->rgts", q, k_columns, **EXACT) * q.shape[-1] ** -0.5
    if biases is not None:
        scores = (passes.by_heads(plan, scores) + biases[None]).reshape(scores.shape)
    q_positions, k_positions = positions
    seen = k_positions[None, :] < plan.num_keys
    if plan.options.causal:
        seen = seen & (k_positions[None, :] <= q_positions[:, None])
    return jnp.where(seen[None, None], scores, -jnp.inf)


def _last_key_block(plan: Plan, start: Array, key_blocks: int) -> Int[Array, ""]:
    """Index of the last block with a key that queries from position `start` on may see."""
    if not plan.options.causal:
        return jnp.int32(key_blocks - 1)
    return jnp.minimum((start + plan.block_q - 1) // plan.block_k, key_blocks - 1).astype(jnp.int32)


def _first_key_block(plan: Plan, heads: Heads, i: Array, start: Array, low: Array) -> Int[Array, ""]:
    """The first block of keys that a head's queries of block i need; `low` is the log of a part of each row's sum."""
    options, one_block = plan.options, heads.k.shape[1] == plan.block_k
    wanted = options.causal and options.reach_tolerance is not None and heads.bias is not None and not one_block
    slopes = heads.bias.decay() if wanted else None
    if slopes is None:
        return jnp.int32(0)
    known = Known(*(_part(x, i, plan.block_q, 2) for x in heads.known))
    slopes, margin = passes.for_heads(plan, slopes), known.bounds - jnp.maximum(low, known.low)
    tokens = reach(excess_within(margin, slopes), slopes, options.reach_tolerance)
    return first_key_block(tokens.max(), start, plan.block_k)


def _nearest_first(plan: Plan, heads: Heads, i: Array, start: Array, visit: Callable, state: Any) -> Any:
    """Visits blocks of keys, from the last a query may see, while they are needed; visit(j, state) -> (state, low).

    The blocks that hold the queries' own positions are always visited: before them a row may have seen nothing.
    """
    last = _last_key_block(plan, start, heads.k.shape[1] // plan.block_k)
    own = jnp.minimum(start // plan.block_k, last)

    def is_needed(carry):
        j, first, _ = carry
        return (j >= 0) & ((j >= own) | (j >= first))

    def step(carry):
        j, _, state = carry
        state, low = visit(j, state)
        return j - 1, _first_key_block(plan, heads, i, start, low), state

    return jax.lax.while_loop(is_needed, step, (last, jnp.int32(0), state))[2]


def _is_modest(plan: Plan, heads: Heads, i: Array, q_offset: Array) -> Array:
    """Whether exp(score) needs no shift: all scores small, and each query's own key there or known of, so that not all
    vanish beside it."""
    if heads.v.dtype == jnp.float16:  # its largest number is exp(11)
        return jnp.bool_(False)
    bounds, low = (_part(x, i, plan.block_q, 2) for x in heads.known)
    bounds = bounds.max(-1)
    largest = bounds if heads.bias is None else bounds + passes.for_heads(plan, heads.bias.largest())
    own_key = (q_offset + plan.num_queries <= plan.num_keys) | (low.min() >= -MODEST)
    return (largest.max() <= MODEST) & own_key


def _forward_block(plan: Plan, heads: Heads, q_offset: Array, i: Array) -> tuple[Array, Array]:
    """Block i of queries: (output [r g t D] float32, log-sum-exp [r g t])."""
    q, start = _part(heads.q, i, plan.block_q, 2), q_offset + i * plan.block_q

    def scores_of(j):
        positions = _positions(plan, q_offset, i, j)
        biases = None if heads.bias is None else heads.bias.block(*positions)
        return _scores(plan, q, _part(heads.k_columns, j, plan.block_k, 2), biases, positions), positions

    def visit_for_maxima(j, maxima):
        maxima = jnp.maximum(maxima, scores_of(j)[0].max(-1))
        return maxima, maxima

    def visit(j, state):
        out, total = state
        scores, positions = scores_of(j)
        weights = jnp.exp(scores - shift[..., None])
        total = total + weights.sum(-1)
        if plan.options.dropout_rate > 0:
            weights = weights * dense_keep_scale(heads.seeds, plan.options.dropout_rate, *positions)
        values = _part(heads.v, j, plan.block_k, 1)
        out = out + jnp.einsum("rgts,rsd->rgtd", weights.astype(values.dtype), values, **EXACT)
        return (out, total), shift + jnp.log(total)

    walk = functools.partial(_nearest_first, plan, heads, i, start)
    zeros = jnp.zeros(q.shape[:-1], jnp.float32)
    shift = jax.lax.cond(
        _is_modest(plan, heads, i, q_offset), lambda: zeros, lambda: walk(visit_for_maxima, zeros + LOWEST)
    )
    out, total = walk(visit, (jnp.zeros(q.shape, jnp.float32), zeros))
    total = jnp.maximum(
        total, TINY
    )  # of rows that see no key here, or none that counts beside what is known of elsewhere
    return out / total[..., None], shift + jnp.log(total)


def _backward_visit(
    plan: Plan, heads: Heads, q: Array, given: Given, positions: tuple, j: Array, learned: bool
) -> tuple:
    """What one pair of blocks adds: (Gradients of its keys, dq [r g t D])."""
    k_columns, v_columns = (_part(x, j, plan.block_k, 2) for x in (heads.k_columns, heads.v_columns))
    biases, bias_vjp = None, None
    if heads.bias is not None:
        biases, bias_vjp = jax.vjp(lambda bias: bias.block(*positions), heads.bias)
    weights = jnp.exp(_scores(plan, q, k_columns, biases, positions) - given.logsumexp[..., None])
    d_weights, dropped = jnp.einsum("rgtd,rds->rgts", given.d_out, v_columns, **EXACT), weights
    if plan.options.dropout_rate > 0:
        keep = dense_keep_scale(heads.seeds, plan.options.dropout_rate, *positions)
        d_weights, dropped = d_weights * keep, weights * keep
    d_scores = weights * (d_weights - given.delta[..., None])
    d_bias = bias_vjp(passes.by_heads(plan, d_scores).sum(0))[0] if learned else None
    d_scores = (d_scores * q.shape[-1] ** -0.5).astype(q.dtype)
    dk = jnp.einsum("rgdt,rgts->rds", q.swapaxes(2, 3), d_scores, **EXACT)
    dv = jnp.einsum("rgdt,rgts->rds", given.d_out.swapaxes(2, 3), dropped.astype(q.dtype), **EXACT)
    dq = jnp.einsum("rgts,rsd->rgtd", d_scores, _part(heads.k, j, plan.block_k, 1), **EXACT)
    return Gradients(dk, dv, d_bias), dq


def _backward_block(plan: Plan, heads: Heads, given: Given, gradients: Gradients, q_offset: Array, i: Array) -> tuple:
    """Block i of queries: (gradients with its share added, dq [r g t D] float32)."""
    start, q = q_offset + i * plan.block_q, _part(heads.q, i, plan.block_q, 2)
    given = Given(*(_part(x, i, plan.block_q, 2) for x in given))

    def add(whole, part, j):
        part = _part(whole, j, plan.block_k, 2) + part
        return jax.lax.dynamic_update_slice_in_dim(whole, part, j * plan.block_k, 2)

    def visit(j, carry):
        gradients, dq = carry
        positions = _positions(plan, q_offset, i, j)
        more, more_dq = _backward_visit(plan, heads, q, given, positions, j, gradients.bias is not None)
        bias = jax.tree.map(jnp.add, gradients.bias, more.bias)
        return Gradients(add(gradients.k, more.k, j), add(gradients.v, more.v, j), bias), dq + more_dq

    first = _first_key_block(plan, heads, i, start, given.logsumexp)
    stop = _last_key_block(plan, start, heads.k.shape[1] // plan.block_k) + 1
    return jax.lax.fori_loop(first, stop, visit, (gradients, jnp.zeros(q.shape, jnp.float32)))


class Inputs(NamedTuple):
    """A Part padded to whole blocks, its heads in groups that share a key head."""

    q: Any  # [B T K G D]
    k: Any  # [B S K D]
    v: Any
    bias: Bias | None
    q_offset: Any
    seeds: Any  # uint32 [B K G 2]
    known: Known  # [B K G T]


def _heads_of(plan: Plan, at: passes.At, inputs: Inputs) -> Heads:
    k, v = passes.cut_keys(plan, at, inputs.k), passes.cut_keys(plan, at, inputs.v)
    return Heads(
        passes.cut_queries(plan, at, inputs.q),
        k,
        v,
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        Known(*(passes.cut_numbers(plan, at, x) for x in inputs.known)),
        passes.cut_bias(plan, at, inputs.bias, inputs.q.shape[3]),
        passes.cut_numbers(plan, at, inputs.seeds),
    )


def _forward(plan: Plan, inputs: Inputs) -> tuple[Float[Array, "B T K G D"], Float32[Array, "B K G T"]]:
    """(output, log-sum-exp)."""

    def serve(whole, at):
        heads = _heads_of(plan, at, inputs)

        def row(whole, i):
            out, logsumexp = _forward_block(plan, heads, inputs.q_offset, i)
            start = i * plan.block_q
            whole = (
                passes.put_queries(plan, at, whole[0], out, start),
                passes.put_numbers(plan, at, whole[1], logsumexp, start),
            )
            return whole, None

        return jax.lax.scan(row, whole, jnp.arange(inputs.q.shape[1] // plan.block_q))

    zeros = jnp.zeros_like(inputs.q), jnp.zeros_like(inputs.known.bounds)
    return jax.lax.scan(serve, zeros, passes.passes(plan, inputs.q.shape))[0]


def _backward(plan: Plan, inputs: Inputs, given: Given, learned: bool) -> tuple:
    """(dq [B T K G D], dk and dv [B S K D] float32, gradient of the bias or None); `given` padded like the queries."""
    num_groups = inputs.q.shape[3]

    def serve(whole, at):
        heads = _heads_of(plan, at, inputs)
        numbers = (passes.cut_numbers(plan, at, x) for x in given[1:])
        of_pass = Given(passes.cut_queries(plan, at, given.d_out), *numbers)

        def row(carry, i):
            gradients, whole = carry
            gradients, dq = _backward_block(plan, heads, of_pass, gradients, inputs.q_offset, i)
            return (gradients, passes.put_queries(plan, at, whole, dq, i * plan.block_q)), None

        zeros = jnp.zeros(heads.k.swapaxes(1, 2).shape, jnp.float32)
        start = Gradients(zeros, zeros, jax.tree.map(jnp.zeros_like, heads.bias) if learned else None)
        dq, dk, dv, d_bias = whole
        (more, dq), _ = jax.lax.scan(row, (start, dq), jnp.arange(inputs.q.shape[1] // plan.block_q))
        dk, dv = passes.add_keys(plan, at, dk, more.k), passes.add_keys(plan, at, dv, more.v)
        return (dq, dk, dv, passes.add_bias(plan, at, d_bias, more.bias, inputs.bias, num_groups)), None

    keys = jnp.zeros(inputs.k.shape, jnp.float32)
    start = jnp.zeros_like(inputs.q), keys, keys, jax.tree.map(jnp.zeros_like, inputs.bias) if learned else None
    return jax.lax.scan(serve, start, passes.passes(plan, inputs.q.shape))[0]


def _block_size(length: int) -> int:
    """At most BLOCK, and so that as little as possible is padding."""
    blocks = -(-length // BLOCK)
    return -(-length // (blocks * 16)) * 16


def _plan(options: Options, part: Part) -> Plan:
    batch, queries, heads, _ = part.q.shape
    keys, key_heads = part.k.shape[1:3]
    at_once = (1, 1, 1) if device()[0] == "cpu" else (batch, key_heads, heads // key_heads)
    return Plan(options, queries, keys, _block_size(queries), _block_size(keys), at_once)


def _pad(x: Array, block: int, axis: int, value: float = 0.0) -> Array:
    widths = [(0, -size % block if at == axis else 0) for at, size in enumerate(x.shape)]
    return jnp.pad(x, widths, constant_values=value)


def _queries(plan: Plan, part: Part, x: Float[Array, "B T H D"]) -> Float[Array, "B t K G D"]:
    return _pad(x, plan.block_q, 1).reshape(x.shape[0], -1, part.k.shape[2], x.shape[2] // part.k.shape[2], x.shape[3])


def _numbers(plan: Plan, part: Part, x: Float32[Array, "B H T"], value: float = 0.0) -> Float32[Array, "B K G t"]:
    padded = _pad(x, plan.block_q, 2, value)
    return padded.reshape(x.shape[0], part.k.shape[2], x.shape[1] // part.k.shape[2], -1)


def _arrange(plan: Plan, part: Part) -> Inputs:
    known = part.known
    if known is None:
        bounds = score_bounds(part.q, part.k, part.q_offset, plan.options.causal)
        known = Known(bounds, jnp.full_like(bounds, -jnp.inf))
    return Inputs(
        _queries(plan, part, part.q),
        *(_pad(x, plan.block_k, 1) for x in (part.k, part.v)),
        part.bias,
        part.q_offset,
        part.seeds.reshape(part.q.shape[0], part.k.shape[2], -1, 2),
        Known(*(_numbers(plan, part, x) for x in known)),
    )


def _forward_part(options: Options, part: Part) -> tuple[Float[Array, "B T H D"], Float32[Array, "B H T"]]:
    plan, (batch, length, heads, width) = _plan(options, part), part.q.shape
    out, logsumexp = _forward(plan, _arrange(plan, part))
    return out.reshape(batch, -1, heads, width)[:, :length], logsumexp.reshape(batch, heads, -1)[:, :, :length]


def _backward_part(options: Options, part: Part, given: Given, learned: bool) -> tuple:
    plan = _plan(options, part)
    numbers = _numbers(plan, part, given.logsumexp, jnp.inf), _numbers(plan, part, given.delta)
    padded = Given(_queries(plan, part, given.d_out), *numbers)
    dq, dk, dv, d_bias = _backward(plan, _arrange(plan, part), padded, learned)
    batch, length, heads, width = part.q.shape
    dk, dv = (x[:, : part.k.shape[1]].astype(part.k.dtype) for x in (dk, dv))
    return dq.reshape(batch, -1, heads, width)[:, :length], dk, dv, d_bias


# The same function as `reference_attention`, in O(T + S) memory.
RULES = Rules("blockwise", _forward_part, _backward_part, learns_bias=True)
