"""The definition of attention here: dense, float32 scores, checked by eye. Everything else is tested against it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from alibi_jax.attention.dropout import dense_keep_scale
from alibi_jax.attention.implementation import Options
from alibi_jax.positions.bias import Bias


def reference_attention(
    options: Options,
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    bias: Bias | None,
    q_offset: Int[Array, ""],
    seeds: UInt32[Array, "B H 2"],
) -> Float[Array, "B T H D"]:
    """Returns softmax(q k^T / sqrt(D) + bias) v, over keys at or before the query if causal; 0 for a query that sees no key.

    O(T S) memory; skips nothing.
    """
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    q_positions = q_offset + jnp.arange(q.shape[1])
    k_positions = jnp.arange(k.shape[1])
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32, precision="highest")
    scores = scores * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.block(q_positions, k_positions)[None]
    if options.causal:
        scores = jnp.where(k_positions[None, :] <= q_positions[:, None], scores, -jnp.inf)
    seen = scores != -jnp.inf
    weights = jax.nn.softmax(jnp.where(seen.any(-1, keepdims=True), scores, 0.0), axis=-1)
    weights = jnp.where(seen, weights, 0.0)
    if options.dropout_rate > 0:
        weights = weights * dense_keep_scale(seeds, options.dropout_rate, q_positions, k_positions)
    return jnp.einsum("bhts,bshd->bthd", weights, v.astype(jnp.float32), precision="highest").astype(q.dtype)
