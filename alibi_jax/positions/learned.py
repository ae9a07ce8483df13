"""A learned vector for each position (Gehring et al. 2017; GPT-2): defined up to the length of its table."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from alibi_jax.positions.base import PositionMethod


class LengthError(ValueError):
    """An input longer than a position method is defined for."""


class Learned(PositionMethod):
    """Adds row p of a trained table to the embedding at position p; LengthError past the table's last row."""

    max_length: int
    width: int

    @nn.compact
    def embed(self, x: Float[Array, "B L E"], positions: Int[Array, " L"]) -> Float[Array, "B L E"]:
        if x.shape[1] > self.max_length:
            raise LengthError(
                f"learned positions: got an input of {x.shape[1]} tokens, expected at most {self.max_length}, the rows of "
                "the table. Evaluate shorter, or train with a larger model.learned_length."
            )
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("position_table", init, (self.max_length, self.width), jnp.float32)
        return x + table[positions].astype(x.dtype)[None]
