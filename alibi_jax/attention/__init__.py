"""attend(): attention with a bias that is a value. One definition (`reference`), faster implementations tested against it."""

import functools
import logging
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alibi_jax.attention.blockwise import blockwise_attention
from alibi_jax.attention.dropout import seed_words
from alibi_jax.attention.reference import reference_attention
from alibi_jax.positions.base import Bias

log = logging.getLogger(__name__)

IMPLEMENTATIONS = {"reference": reference_attention, "blockwise": blockwise_attention}
DENSE_SCORES = 128 * 128  # "auto" is dense up to so many scores a head: one block, where there is nothing to skip


@functools.cache
def _say_once(chosen: str, queries: int, keys: int) -> None:
    log.info("attention: %s for %d queries and %d keys", chosen, queries, keys)


def _choose(queries: int, keys: int) -> str:
    chosen = "reference" if queries * keys <= DENSE_SCORES else "blockwise"
    _say_once(chosen, queries, keys)
    return chosen


def _check(q: Array, k: Array, v: Array, dropout_rate: float, dropout_key: Array | None) -> None:
    if q.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"attend: got q {q.shape}, k {k.shape}, v {v.shape}, expected q [B, T, H, D] and k, v [B, S, H, D]. "
            "Reshape them; keys and values have as many heads as queries."
        )
    if not 0 <= dropout_rate < 1 or (dropout_rate > 0 and dropout_key is None):
        raise ValueError(
            f"attend: got dropout_rate {dropout_rate} and dropout_key {dropout_key}, expected a rate in [0, 1) and, above "
            "0, a key. Pass dropout_key=jax.random.key(...)."
        )


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    *,
    bias: Bias | None = None,
    q_offset: int | Int[Array, ""] = 0,
    causal: bool = True,
    implementation: Literal["auto", "reference", "blockwise"] = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D) + bias) v: query t stands at position q_offset + t, key s at position s.

    bias: added after the scaling, in float32, such as `LinearBias(alibi_slopes(H))` (Press et al. 2022, section 3).
    causal: a query sees keys at or before its position. q_offset: non-negative; not 0 when decoding with a cache.
    dropout_rate: share of the softmax weights dropped; the mask depends on positions alone, so implementations agree.
    implementation: "auto" chooses, and logs its choice once. Differentiable in q, k, v and the bias's arrays.
    ValueError for shapes that do not fit; NotImplementedError for an implementation that does not exist.
    """
    _check(q, k, v, dropout_rate, dropout_key)
    chosen = _choose(q.shape[1], k.shape[1]) if implementation == "auto" else implementation
    if chosen not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"attend: got implementation {chosen!r}, expected one of {', '.join(IMPLEMENTATIONS)}."
        )
    seed = seed_words(dropout_key if dropout_rate > 0 else None)
    return IMPLEMENTATIONS[chosen](q, k, v, bias, jnp.asarray(q_offset, jnp.int32), seed, causal, dropout_rate)
