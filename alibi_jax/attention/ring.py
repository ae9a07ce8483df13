"""Attention of a sequence that is split over devices: a ring that goes no farther than the reach.

Each of n devices holds a shard of T of the n T tokens. Forward: a device attends to its own keys; then, step after step, to
those of the device one further back, which travel forward round the ring. Outputs are joined by their log-sum-exps. Backward:
queries travel back to the keys, with their residuals, and bring home their own gradient; keys stay, because theirs are two.

The neighbour's shard is always used, all heads at once, while the device works on its own. How many more steps a head needs is
proved before they are taken (reach.py), from its largest norms and the sum over its own shard: the shard s back lies
(s - 1) T + 1 tokens and more before the first query, and is needless where that is the reach W or more. All devices agree on
each head's number, because all or none take part in a collective. With ALiBi's slopes most heads need no second step; where the
bias does not decay each takes all n - 1, as in Ring Attention (Liu et al. 2023, arXiv 2310.01889).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from alibi_jax.attention.collectives import from_earlier, max_over_devices, max_over_sequence, ring_index
from alibi_jax.attention.dropout import from_position
from alibi_jax.attention.implementation import Implementation, Inputs, Options, Residuals, RowBounds
from alibi_jax.attention.reach import bounds_from, excess_within, nearest_mass, norms, reach
from alibi_jax.positions.bias import Bias


class Ring(NamedTuple):
    """The settings that are fixed when a ring is traced."""

    implementation: Implementation  # it computes each step
    options: Options
    size: int  # n


class Traveller(NamedTuple):
    """Queries on their way to earlier keys."""

    q: Float[Array, "B T H D"]
    residuals: Residuals
    bounds: Float32[Array, "B H T"]
    dq: Float32[Array, "B T H D"]  # the gradient gathered so far


def _slopes(ring: Ring, inputs: Inputs) -> Float32[Array, " H"] | None:
    """Returns by how much the bias falls per token, None where no step can be proved needless."""
    skips = inputs.bias is not None and ring.options.reach_tolerance is not None
    return inputs.bias.decay() if skips else None


def _bias_from(bias: Bias | None, first: Int32[Array, ""]) -> Bias | None:
    return None if bias is None else bias.from_position(first)


def _bounds(inputs: Inputs) -> Float32[Array, "B H T"]:
    """Returns bounds of the scores of each row with the keys of the whole sequence."""
    return bounds_from(inputs.q, max_over_sequence(norms(inputs.k).max(1, keepdims=True)))


def _own(inputs: Inputs, slopes: Array | None, bounds: Array) -> Inputs:
    """Returns the inputs of a device's attention to its own shard."""
    if slopes is None:
        log_mass = jnp.full_like(bounds, -jnp.inf)
    else:
        log_mass = nearest_mass(inputs.q, inputs.k, slopes, inputs.q_offset)
    first = ring_index() * inputs.q.shape[1]
    own = inputs._replace(seeds=from_position(inputs.seeds, first), row_bounds=RowBounds(bounds, log_mass))
    return own._replace(bias=_bias_from(inputs.bias, first))


def _steps(ring: Ring, inputs: Inputs, slopes: Array, bounds: Array, logsumexp: Array) -> Int32[Array, " K"]:
    """Returns how many shards back the heads of each key head look, the same on all devices."""
    slopes = jnp.broadcast_to(slopes[None], bounds.shape[:2])
    tokens = reach(excess_within(bounds - logsumexp, slopes), slopes, ring.options.reach_tolerance)
    shards = jnp.ceil(jnp.minimum((tokens - 1) / inputs.q.shape[1], ring.size)).max(0)
    shards = jnp.minimum(shards.reshape(inputs.k.shape[2], -1).max(1).astype(jnp.int32), ring_index())
    return max_over_devices(shards)


def _cut(tree: Any, head: Array, count: int, axis: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, head * count, count, axis), tree)


def _put(whole: Array, heads: Array, head: Array, count: int, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, heads, head * count, axis)


def _of_head(inputs: Inputs, head: Array, k: Array, v: Array) -> Inputs:
    """Returns the queries of one key head, with keys and values of an earlier shard."""
    group = inputs.q.shape[2] // inputs.k.shape[2]
    bias = None if inputs.bias is None else inputs.bias.select_heads(head * group, group)
    bounds = None if inputs.row_bounds is None else RowBounds(*_cut(tuple(inputs.row_bounds), head, group, 1))
    q = _cut(inputs.q, head, group, 2)
    seeds = _cut(inputs.seeds, head, group, 1)
    return Inputs(q, k, v, bias, inputs.q_offset, seeds, bounds)


def _joined(out: Array, logsumexp: Array, more: tuple[Array, Array]) -> tuple[Array, Array]:
    """Returns (output, log-sum-exp) over two sets of keys, from those of each."""
    total = jnp.logaddexp(logsumexp, more[1])
    fractions = (jnp.exp(x - total).swapaxes(1, 2)[..., None] for x in (logsumexp, more[1]))
    return sum(fraction * x.astype(jnp.float32) for fraction, x in zip(fractions, (out, more[0]), strict=True)), total


def _look_back(ring: Ring, inputs: Inputs, step: Array, k: Array, v: Array, out: Array, logsumexp: Array) -> tuple:
    """Returns (out, log-sum-exp) with the keys from `step` shards back added, where there are any."""

    def look() -> tuple:
        first = (ring_index() - step) * k.shape[1]
        bounds = RowBounds(inputs.row_bounds.scores, logsumexp)
        seeds = from_position(inputs.seeds, first)
        bias = _bias_from(inputs.bias, first)
        here = Inputs(inputs.q, k, v, bias, step * k.shape[1], seeds, bounds)
        return _joined(out, logsumexp, ring.implementation.forward(ring.options, here))

    return jax.lax.cond(ring_index() >= step, look, lambda: (out, logsumexp))


def _forward_all(ring: Ring, inputs: Inputs, received: tuple, joined: tuple) -> tuple:
    """Takes steps 2 ... n - 1 for all heads at once, each transfer beside the work of the step before; `received` at step 1."""

    def step(carry, s):
        received, joined = carry
        following = from_earlier(received, 1)
        return (following, _look_back(ring, inputs, s, *received, *joined)), None

    (received, joined), _ = jax.lax.scan(step, (received, joined), jnp.arange(1, ring.size - 1))
    return _look_back(ring, inputs, jnp.int32(ring.size - 1), *received, *joined)


def _forward_heads(ring: Ring, inputs: Inputs, received: tuple, joined: tuple, steps: Int32[Array, " K"]) -> tuple:
    """Takes step 1 for all heads, and then each key head's steps 2 ... steps[head]."""
    joined = _look_back(ring, inputs, jnp.int32(1), *received, *joined)
    group = inputs.q.shape[2] // inputs.k.shape[2]

    def serve(joined, head):
        def step(carry):
            s, received, (out, logsumexp) = carry
            received = from_earlier(received, 1)
            here = _cut(out, head, group, 2), _cut(logsumexp, head, group, 1)
            more_out, more_sum = _look_back(ring, _of_head(inputs, head, *received), s, *received, *here)
            return s + 1, received, (_put(out, more_out, head, group, 2), _put(logsumexp, more_sum, head, group, 1))

        start = jnp.int32(2), _cut(received, head, 1, 2), joined
        return jax.lax.while_loop(lambda carry: carry[0] <= steps[head], step, start)[2], None

    return jax.lax.scan(serve, joined, jnp.arange(inputs.k.shape[2]))[0]


def _attend_to_own(ring: Ring, inputs: Inputs) -> tuple[Inputs, tuple[Array, Array], Array | None]:
    """Returns a device's inputs of its own shard, (output float32, log-sum-exp), and how many shards back each key head looks
    (None: all)."""
    slopes = _slopes(ring, inputs)
    bounds = _bounds(inputs)
    own = _own(inputs, slopes, bounds)
    out, logsumexp = ring.implementation.forward(ring.options, own)
    steps = None if slopes is None else _steps(ring, inputs, slopes, bounds, logsumexp)
    return own, (out.astype(jnp.float32), logsumexp), steps


def steps_taken(implementation: Implementation, size: int, options: Options, inputs: Inputs) -> Int32[Array, " K"]:
    """Returns how many shards back each key head looks in the forward pass, the same on all devices."""
    steps = _attend_to_own(Ring(implementation, options, size), inputs)[2]
    return jnp.full(inputs.k.shape[2], size - 1, jnp.int32) if steps is None else jnp.maximum(steps, 1)


def _forward(implementation: Implementation, size: int, options: Options, inputs: Inputs) -> tuple[Array, Array]:
    ring = Ring(implementation, options, size)
    received = from_earlier((inputs.k, inputs.v), 1)  # on its way while the own shard is worked on
    own, joined, steps = _attend_to_own(ring, inputs)
    inputs = inputs._replace(row_bounds=own.row_bounds)
    if steps is None:
        joined = _forward_all(ring, inputs, received, joined)
    else:
        joined = _forward_heads(ring, inputs, received, joined, steps)
    return joined[0].astype(inputs.q.dtype), joined[1]


def _add_gradients(ring: Ring, inputs: Inputs, step: Array, traveller: Traveller, gradients: tuple) -> tuple:
    """Returns (traveller with dq, (dk, dv, d_bias)) with the gradients of queries from `step` shards later added, if any;
    d_bias None: nothing asks for it."""
    dk, dv, d_bias = gradients

    def add() -> tuple:
        first = ring_index() * inputs.k.shape[1]
        seeds, bias = from_position(inputs.seeds, first), _bias_from(inputs.bias, first)
        bounds = RowBounds(traveller.bounds, traveller.residuals.logsumexp)
        here = Inputs(traveller.q, inputs.k, inputs.v, bias, step * inputs.k.shape[1], seeds, bounds)
        backward = ring.implementation.backward
        dq, more_dk, more_dv, more_bias = backward(ring.options, here, traveller.residuals, d_bias is not None)
        gathered = traveller.dq + dq, dk + more_dk, dv + more_dv
        return *gathered, jax.tree.map(jnp.add, d_bias, more_bias)

    there = ring_index() + step < ring.size
    dq, *gradients = jax.lax.cond(there, add, lambda: (traveller.dq, dk, dv, d_bias))
    return traveller._replace(dq=dq), tuple(gradients)


def _backward_all(ring: Ring, inputs: Inputs, traveller: Traveller, gradients: tuple) -> tuple:
    """Takes steps 1 ... n - 1 for all heads at once and returns (dq brought home, gradients)."""

    def step(carry, s):
        traveller, gradients = _add_gradients(ring, inputs, s, *carry)
        return (from_earlier(traveller, -1), gradients), None

    (traveller, gradients), _ = jax.lax.scan(step, (traveller, gradients), jnp.arange(1, ring.size - 1))
    last = jnp.int32(ring.size - 1)
    traveller, gradients = _add_gradients(ring, inputs, last, traveller, gradients)
    return from_earlier(traveller.dq, ring.size - 1), gradients


def _head_of(traveller: Traveller, head: Array, group: int) -> Traveller:
    d_out = _cut(traveller.residuals.d_out, head, group, 2)
    residuals = Residuals(d_out, *_cut(traveller.residuals[1:], head, group, 1))
    q = _cut(traveller.q, head, group, 2)
    return Traveller(q, residuals, _cut(traveller.bounds, head, group, 1), jnp.zeros(q.shape, jnp.float32))


def _backward_heads(ring: Ring, inputs: Inputs, traveller: Traveller, gradients: tuple, steps: Array) -> tuple:
    """Takes step 1 for all heads, then each key head's own steps and its way home; returns (dq, gradients)."""
    first, gradients = _add_gradients(ring, inputs, jnp.int32(1), traveller, gradients)
    group = inputs.q.shape[2] // inputs.k.shape[2]

    def serve(carry, head):
        dq, gradients = carry

        def step(carry):
            s, traveller, (dk, dv, d_bias) = carry
            traveller = from_earlier(traveller, -1)
            k, v = (_cut(x, head, 1, 2) for x in (inputs.k, inputs.v))
            here = _cut((dk, dv), head, 1, 2)
            bias, put_back = jax.vjp(lambda bias: bias.select_heads(head * group, group), inputs.bias)
            none = None if d_bias is None else jax.tree.map(jnp.zeros_like, bias)
            of_head = _of_head(inputs, head, k, v)
            traveller, (more_k, more_v, more_bias) = _add_gradients(ring, of_head, s, traveller, (*here, none))
            d_bias = None if d_bias is None else jax.tree.map(jnp.add, d_bias, put_back(more_bias)[0])
            return s + 1, traveller, (_put(dk, more_k, head, 1, 2), _put(dv, more_v, head, 1, 2), d_bias)

        def is_away(carry):
            return carry[0] <= steps[head]

        start = jnp.int32(2), _head_of(traveller, head, group), gradients
        _, away, gradients = jax.lax.while_loop(is_away, step, start)

        def go_home(carry):
            return carry[0] + 1, from_earlier(carry[1], 1)

        start = jnp.where(steps[head] >= 2, 1, steps[head] + 1), away.dq
        home = jax.lax.while_loop(is_away, go_home, start)[1]
        return (_put(dq, _cut(dq, head, group, 2) + home, head, group, 2), gradients), None

    start = from_earlier(first.dq, 1), gradients
    return jax.lax.scan(serve, start, jnp.arange(inputs.k.shape[2]))[0]


def _backward(
    implementation: Implementation,
    size: int,
    options: Options,
    inputs: Inputs,
    residuals: Residuals,
    wants_bias_gradient: bool,
) -> tuple:
    ring = Ring(implementation, options, size)
    slopes = _slopes(ring, inputs)
    bounds = _bounds(inputs)
    received = from_earlier((inputs.q, residuals, bounds), -1)
    own = _own(inputs, slopes, bounds)._replace(row_bounds=RowBounds(bounds, residuals.logsumexp))
    dq, dk, dv, d_bias = implementation.backward(options, own, residuals, wants_bias_gradient)
    gradients = dk.astype(jnp.float32), dv.astype(jnp.float32), d_bias
    traveller = Traveller(*received, jnp.zeros(inputs.q.shape, jnp.float32))
    if slopes is None:
        more, gradients = _backward_all(ring, inputs, traveller, gradients)
    else:  # with the whole sums known the reach is no farther than it was in the forward pass
        steps = _steps(ring, inputs, slopes, bounds, residuals.logsumexp)
        more, gradients = _backward_heads(ring, inputs, traveller, gradients, steps)
    dk, dv, d_bias = gradients
    return (dq + more).astype(inputs.q.dtype), dk.astype(inputs.k.dtype), dv.astype(inputs.v.dtype), d_bias


@functools.cache
def around(implementation: Implementation, size: int) -> Implementation:
    """Returns the same attention for queries and keys that are this device's T of `size` T tokens, inside `on_each_device`:
    causal, the first query and the first key at position 0."""
    forward, backward = (functools.partial(function, implementation, size) for function in (_forward, _backward))
    return implementation._replace(forward=forward, backward=backward)
