"""From logits to nats. Losses travel as (sum of nats, number of tokens); a mean is made once, at the end."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int


def nats(logits: Float[Array, "*shape V"], targets: Int[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """-log p(target) of each token, natural logarithm, float32 whatever the logits' dtype."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
