"""What a position method is: three hooks, of which each method overrides one.

The base class does nothing in each hook, and so is itself a method: no position information at all ("none", NoPE).
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from alibi_jax.positions.bias import Bias


def check_positions(x: Array, positions: Array) -> None:
    """ValueError where x [B, L, ...] does not have one whole position for each of its L tokens: one for all would broadcast."""
    if positions.shape != x.shape[1:2] or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(
            f"positions: got {positions.dtype}{list(positions.shape)} for {x.shape[1]} tokens, expected so many integers. "
            "Pass jnp.arange(length) for a text from its start."
        )


class PositionMethod(nn.Module):
    """No position information (NoPE), and the three hooks a method may override."""

    def embed(self, x: Float[Array, "B L E"], positions: Int[Array, " L"]) -> Float[Array, "B L E"]:
        """Applied once, to the token embeddings."""
        return x

    def rotate(self, x: Float[Array, "B L H D"], positions: Int[Array, " L"]) -> Float[Array, "B L H D"]:
        """Applied to the queries and to the keys of every layer."""
        return x

    def bias(self) -> Bias | None:
        """The bias of every layer's scores."""
        return None
