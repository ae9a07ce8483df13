"""A learned vector for each position (Gehring et al. 2017; GPT-2): defined up to the length of its table."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from alibi_jax.errors import LengthError
from alibi_jax.positions.base import PositionMethod, check_positions
from alibi_jax.positions.bias import concrete


class Learned(PositionMethod):
    """Adds row p of a trained table to the embedding at position p.

    LengthError for more tokens than the table has rows, and for positions outside it; where those are traced by jax.jit, and so
    cannot be checked, they give NaN.
    """

    max_length: int
    width: int

    @nn.compact
    def embed(self, x: Float[Array, "B L E"], positions: Int[Array, " L"]) -> Float[Array, "B L E"]:
        if x.shape[1] > self.max_length:
            raise LengthError(
                f"learned positions: got an input of {x.shape[1]} tokens, expected at most {self.max_length}, the rows of "
                "the table. Evaluate shorter, or train with a larger model.learned_length."
            )
        check_positions(x, positions)
        self._check(positions)
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("position_table", init, (self.max_length, self.width), jnp.float32)
        inside = (positions >= 0) & (positions < self.max_length)
        rows = jnp.where(inside[:, None], table[positions], jnp.nan)
        return x + rows.astype(x.dtype)[None]

    def _check(self, positions: Int[Array, " L"]) -> None:
        values = concrete(positions)
        wrong = np.empty(0) if values is None else values[(values < 0) | (values >= self.max_length)]
        if wrong.size:
            raise LengthError(
                f"learned positions: got position {wrong[0]}, expected 0 to {self.max_length - 1}, the rows of the table. "
                "Count from the start of the text, or train with a larger model.learned_length."
            )
