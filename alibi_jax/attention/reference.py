"""The definition of attention here: dense, float32 scores, checked by eye. Everything else is tested against it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from alibi_jax.attention.dropout import keep_mask
from alibi_jax.positions.base import Bias


def reference_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    bias: Bias | None,
    q_offset: Int[Array, ""],
    seed: UInt32[Array, "2"],
    causal: bool,
    dropout_rate: float,
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D) + bias) v, over keys at or before the query where causal. O(T S) memory."""
    batch, queries, heads, width = q.shape
    q_positions, k_positions = q_offset + jnp.arange(queries), jnp.arange(k.shape[1])
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32, precision="highest")
    scores = scores * width**-0.5
    if bias is not None:
        scores = scores + bias.block(q_positions, k_positions)[None]
    if causal:
        scores = jnp.where(k_positions[None, :] <= q_positions[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_rate > 0:
        kept = keep_mask(seed, dropout_rate, batch, heads, q_positions, k_positions)
        weights = jnp.where(kept, weights / (1 - dropout_rate), 0.0)
    return jnp.einsum("bhts,bshd->bthd", weights, v.astype(jnp.float32), precision="highest").astype(q.dtype)
