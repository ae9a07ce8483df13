"""A learned vector for each position (Gehring et al. 2017; GPT-2): defined up to the length of its table."""

from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from alibi_jax.errors import LengthError
from alibi_jax.positions.base import Parameter, PositionMethod, check_positions
from alibi_jax.positions.bias import concrete

if TYPE_CHECKING:
    from alibi_jax.config import ModelConfig


class Learned(PositionMethod):
    """Adds row p of a trained table to the embedding at position p.

    LengthError for more tokens than the table has rows, and for positions outside it; where those are traced by jax.jit, and so
    cannot be checked, they give NaN.
    """

    label: ClassVar[str] = "learned"

    max_length: int
    width: int

    @classmethod
    def from_config(cls, model: "ModelConfig") -> "Learned":
        """Returns the method with a table of model.learned_length rows."""
        return cls(model.learned_length, model.width)

    def parameters(self) -> dict[str, Parameter]:
        """Returns position_table [rows, E]."""
        init = nn.initializers.normal(self.width**-0.5)
        return {"position_table": Parameter(("rows", "width"), (self.max_length, self.width), init)}

    def longest(self) -> int:
        """Returns the rows of the table."""
        return self.max_length

    @nn.compact
    def embed(self, x: Float[Array, "B L E"], positions: Int[Array, " L"]) -> Float[Array, "B L E"]:
        """Returns the embeddings with each position's row added."""
        if x.shape[1] > self.max_length:
            raise LengthError(
                f"learned positions: got an input of {x.shape[1]} tokens, expected at most {self.max_length}, the rows of "
                "the table. Evaluate shorter, or train with a larger model.learned_length."
            )
        check_positions(x, positions)
        self._check(positions)
        inside = (positions >= 0) & (positions < self.max_length)
        rows = jnp.where(inside[:, None], self.parameter("position_table")[positions], jnp.nan)
        return x + rows.astype(x.dtype)[None]

    def _check(self, positions: Int[Array, " L"]) -> None:
        values = concrete(positions)
        wrong = np.empty(0) if values is None else values[(values < 0) | (values >= self.max_length)]
        if wrong.size:
            raise LengthError(
                f"learned positions: got position {wrong[0]}, expected 0 to {self.max_length - 1}, the rows of the table. "
                "Count from the start of the text, or train with a larger model.learned_length."
            )
