"""Attention of a sequence that is split over devices: a ring that goes no farther than the reach.

Each of n devices holds T of the n T tokens. Forward: a device attends to its own keys; then, step after step, to those of the
device one further back, which travel forward round the ring. Outputs are joined by their log-sum-exps. Backward: queries
travel back to the keys, with the gradient that came and their log-sum-exp, and bring home their own gradient; keys stay, for
theirs are two.

The neighbour's part is always taken, all heads at once, while the device works on its own. How many more steps a head needs is
proved before they are taken (reach.py), from its largest norms and the sum its own part already gave: the part s back lies
(s - 1) T + 1 tokens and more before the first query, and is needless where that is the reach W or more. All devices agree on
each head's number, for a collective is taken by all or by none. With ALiBi's slopes most heads need no second step; where the
bias does not decay each takes all n - 1, as in Ring Attention (Liu et al. 2023, arXiv 2310.01889).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from alibi_jax.attention.dropout import from_position
from alibi_jax.attention.options import Given, Known, Options, Part, Rules
from alibi_jax.attention.reach import bounds_from, excess_within, nearest_mass, norms, reach
from alibi_jax.sharding import from_earlier, largest_in_sequence, largest_of_all, ring_index


class Ring(NamedTuple):
    """What is fixed when a ring is traced."""

    rules: Rules  # what serves each step
    options: Options
    size: int  # n


class Traveller(NamedTuple):
    """Queries on their way to earlier keys."""

    q: Any  # [B T H D]
    given: Given
    bounds: Any  # float32 [B H T]
    dq: Any  # float32 [B T H D]: what they have gathered


def _slopes(ring: Ring, part: Part) -> Float32[Array, " H"] | None:
    """What the bias falls by a token, where steps can be proved needless."""
    skips = part.bias is not None and ring.options.reach_tolerance is not None
    return part.bias.decay() if skips else None


def _bounds(part: Part) -> Float32[Array, "B H T"]:
    """Of every score with keys of the whole sequence."""
    return bounds_from(part.q, largest_in_sequence(norms(part.k).max(1, keepdims=True)))


def _own(part: Part, slopes: Array | None, bounds: Array) -> Part:
    """A device's own part of the attention."""
    low = jnp.full_like(bounds, -jnp.inf) if slopes is None else nearest_mass(part.q, part.k, slopes, part.q_offset)
    first = ring_index() * part.q.shape[1]
    return part._replace(seeds=from_position(part.seeds, first), known=Known(bounds, low))


def _steps(ring: Ring, part: Part, slopes: Array, bounds: Array, logsumexp: Array) -> Int32[Array, " K"]:
    """How many parts back the heads of each key head look, the same on all devices."""
    slopes = jnp.broadcast_to(slopes[None], bounds.shape[:2])
    tokens = reach(excess_within(bounds - logsumexp, slopes), slopes, ring.options.reach_tolerance)
    parts = jnp.ceil(jnp.minimum((tokens - 1) / part.q.shape[1], ring.size)).max(0)
    parts = jnp.minimum(parts.reshape(part.k.shape[2], -1).max(1).astype(jnp.int32), ring_index())
    return largest_of_all(parts)


def _cut(tree: Any, head: Array, count: int, axis: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, head * count, count, axis), tree)


def _put(whole: Array, part: Array, head: Array, count: int, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, head * count, axis)


def _of_head(part: Part, head: Array, k: Array, v: Array) -> Part:
    """The queries of one key head, and keys that have come."""
    group = part.q.shape[2] // part.k.shape[2]
    bias = None if part.bias is None else part.bias.select_heads(head * group, group)
    known = None if part.known is None else Known(*_cut(tuple(part.known), head, group, 1))
    q, seeds = _cut(part.q, head, group, 2), _cut(part.seeds, head, group, 1)
    return Part(q, k, v, bias, part.q_offset, seeds, known)


def _joined(out: Array, logsumexp: Array, more: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of two sets of keys: (output, log-sum-exp) over both."""
    total = jnp.logaddexp(logsumexp, more[1])
    shares = (jnp.exp(x - total).swapaxes(1, 2)[..., None] for x in (logsumexp, more[1]))
    return sum(share * x.astype(jnp.float32) for share, x in zip(shares, (out, more[0]), strict=True)), total


def _look_back(ring: Ring, part: Part, step: Array, k: Array, v: Array, out: Array, logsumexp: Array) -> tuple:
    """(out, log-sum-exp) with the keys from `step` parts back, where there are any."""

    def look() -> tuple:
        first = (ring_index() - step) * k.shape[1]
        known = Known(part.known.bounds, logsumexp)
        seeds = from_position(part.seeds, first)
        here = Part(part.q, k, v, part.bias, step * k.shape[1], seeds, known)
        return _joined(out, logsumexp, ring.rules.forward(ring.options, here))

    return jax.lax.cond(ring_index() >= step, look, lambda: (out, logsumexp))


def _forward_all(ring: Ring, part: Part, came: tuple, joined: tuple) -> tuple:
    """Steps 2 ... n - 1 for all heads at once, each transfer beside the work of the step before; `came` from step 1."""

    def step(carry, s):
        came, joined = carry
        following = from_earlier(came, 1)
        return (following, _look_back(ring, part, s, *came, *joined)), None

    (came, joined), _ = jax.lax.scan(step, (came, joined), jnp.arange(1, ring.size - 1))
    return _look_back(ring, part, jnp.int32(ring.size - 1), *came, *joined)


def _forward_heads(ring: Ring, part: Part, came: tuple, joined: tuple, steps: Int32[Array, " K"]) -> tuple:
    """Step 1 for all heads, and then each key head's steps 2 ... steps[head]."""
    joined = _look_back(ring, part, jnp.int32(1), *came, *joined)
    group = part.q.shape[2] // part.k.shape[2]

    def serve(joined, head):
        def step(carry):
            s, came, (out, logsumexp) = carry
            came = from_earlier(came, 1)
            here = _cut(out, head, group, 2), _cut(logsumexp, head, group, 1)
            more_out, more_sum = _look_back(ring, _of_head(part, head, *came), s, *came, *here)
            return s + 1, came, (_put(out, more_out, head, group, 2), _put(logsumexp, more_sum, head, group, 1))

        start = jnp.int32(2), _cut(came, head, 1, 2), joined
        return jax.lax.while_loop(lambda carry: carry[0] <= steps[head], step, start)[2], None

    return jax.lax.scan(serve, joined, jnp.arange(part.k.shape[2]))[0]


def _looked(ring: Ring, part: Part) -> tuple[Part, tuple[Array, Array], Array | None]:
    """A device's own part, (its output float32, log-sum-exp), and how many parts back each key head looks, None: all."""
    slopes, bounds = _slopes(ring, part), _bounds(part)
    own = _own(part, slopes, bounds)
    out, logsumexp = ring.rules.forward(ring.options, own)
    steps = None if slopes is None else _steps(ring, part, slopes, bounds, logsumexp)
    return own, (out.astype(jnp.float32), logsumexp), steps


def steps_taken(rules: Rules, size: int, options: Options, part: Part) -> Int32[Array, " K"]:
    """How many parts back each key head looks in the forward pass, the same on all devices."""
    steps = _looked(Ring(rules, options, size), part)[2]
    return jnp.full(part.k.shape[2], size - 1, jnp.int32) if steps is None else jnp.maximum(steps, 1)


def _forward(rules: Rules, size: int, options: Options, part: Part) -> tuple[Array, Array]:
    ring = Ring(rules, options, size)
    came = from_earlier((part.k, part.v), 1)  # on its way while the own part is worked on
    own, joined, steps = _looked(ring, part)
    part = part._replace(known=own.known)
    if steps is None:
        joined = _forward_all(ring, part, came, joined)
    else:
        joined = _forward_heads(ring, part, came, joined, steps)
    return joined[0].astype(part.q.dtype), joined[1]


def _answer(ring: Ring, part: Part, step: Array, traveller: Traveller, gradients: tuple, learned: bool) -> tuple:
    """(traveller with dq, (dk, dv, d_bias)) with the share of queries from `step` parts later, where there are any."""
    dk, dv, d_bias = gradients

    def answer() -> tuple:
        seeds = from_position(part.seeds, ring_index() * part.k.shape[1])
        known = Known(traveller.bounds, traveller.given.logsumexp)
        here = Part(traveller.q, part.k, part.v, part.bias, step * part.k.shape[1], seeds, known)
        dq, more_dk, more_dv, more_bias = ring.rules.backward(ring.options, here, traveller.given, learned)
        gathered = traveller.dq + dq, dk + more_dk, dv + more_dv
        return *gathered, jax.tree.map(jnp.add, d_bias, more_bias)

    there = ring_index() + step < ring.size
    dq, *gradients = jax.lax.cond(there, answer, lambda: (traveller.dq, dk, dv, d_bias))
    return traveller._replace(dq=dq), tuple(gradients)


def _backward_all(ring: Ring, part: Part, traveller: Traveller, gradients: tuple, learned: bool) -> tuple:
    """Steps 1 ... n - 1 for all heads at once: (dq brought home, gradients)."""

    def step(carry, s):
        traveller, gradients = _answer(ring, part, s, *carry, learned)
        return (from_earlier(traveller, -1), gradients), None

    (traveller, gradients), _ = jax.lax.scan(step, (traveller, gradients), jnp.arange(1, ring.size - 1))
    last = jnp.int32(ring.size - 1)
    traveller, gradients = _answer(ring, part, last, traveller, gradients, learned)
    return from_earlier(traveller.dq, ring.size - 1), gradients


def _head_of(traveller: Traveller, head: Array, group: int) -> Traveller:
    given = Given(_cut(traveller.given.d_out, head, group, 2), *_cut(traveller.given[1:], head, group, 1))
    q = _cut(traveller.q, head, group, 2)
    return Traveller(q, given, _cut(traveller.bounds, head, group, 1), jnp.zeros(q.shape, jnp.float32))


def _backward_heads(ring: Ring, part: Part, traveller: Traveller, gradients: tuple, steps: Array, learned: bool) -> Any:
    """Step 1 for all heads, then each key head's own steps and its way home: (dq, gradients)."""
    first, gradients = _answer(ring, part, jnp.int32(1), traveller, gradients, learned)
    group = part.q.shape[2] // part.k.shape[2]

    def serve(carry, head):
        dq, gradients = carry

        def step(carry):
            s, traveller, (dk, dv, d_bias) = carry
            traveller = from_earlier(traveller, -1)
            k, v = (_cut(x, head, 1, 2) for x in (part.k, part.v))
            here = _cut((dk, dv), head, 1, 2)
            bias, put_back = jax.vjp(lambda bias: bias.select_heads(head * group, group), part.bias)
            none = jax.tree.map(jnp.zeros_like, bias) if learned else None
            of_head = _of_head(part, head, k, v)
            traveller, (more_k, more_v, more_bias) = _answer(ring, of_head, s, traveller, (*here, none), learned)
            d_bias = jax.tree.map(jnp.add, d_bias, put_back(more_bias)[0]) if learned else None
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
    return jax.lax.scan(serve, start, jnp.arange(part.k.shape[2]))[0]


def _backward(rules: Rules, size: int, options: Options, part: Part, given: Given, learned: bool) -> tuple:
    ring = Ring(rules, options, size)
    slopes, bounds = _slopes(ring, part), _bounds(part)
    came = from_earlier((part.q, given, bounds), -1)
    own = _own(part, slopes, bounds)._replace(known=Known(bounds, given.logsumexp))
    dq, dk, dv, d_bias = rules.backward(options, own, given, learned)
    gradients = dk.astype(jnp.float32), dv.astype(jnp.float32), d_bias
    traveller = Traveller(*came, jnp.zeros(part.q.shape, jnp.float32))
    if slopes is None:
        more, gradients = _backward_all(ring, part, traveller, gradients, learned)
    else:  # with the whole sums known the reach is no farther than it was in the forward pass
        steps = _steps(ring, part, slopes, bounds, given.logsumexp)
        more, gradients = _backward_heads(ring, part, traveller, gradients, steps, learned)
    dk, dv, d_bias = gradients
    return (dq + more).astype(part.q.dtype), dk.astype(part.k.dtype), dv.astype(part.v.dtype), d_bias


@functools.cache
def around(rules: Rules, size: int) -> Rules:
    """The same attention for queries and keys that are this device's T of `size` T tokens, inside `on_each_device`: causal, the
    first query and the first key at position 0."""
    forward, backward = (functools.partial(function, rules, size) for function in (_forward, _backward))
    return Rules(rules.name, forward, backward, rules.learns_bias)
