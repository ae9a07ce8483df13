"""Attention with linear biases (Press, Smith, Lewis 2022, arXiv 2108.12409)."""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float32

from alibi_jax.positions.base import Parameter, PositionMethod
from alibi_jax.positions.bias import LinearBias, alibi_slopes

if TYPE_CHECKING:
    from alibi_jax.config import ModelConfig

SLOPES = ("geometric", "equal", "learned")


class Alibi(PositionMethod):
    """-slope_h * distance on every score, slopes divided by `divisor`.

    slopes: "geometric", `alibi_slopes`, fixed as in the paper; "equal", 2^-bias_max for every head; "learned", the paper's to
    begin with, trained as logarithms (learned ones extrapolated worse, section 3 of the paper, which does not say how they were
    kept positive). divisor: length evaluated / length trained is what 2310.13017 proposes for evaluation. ValueError for slopes
    of another name and a divisor that is not above 0 and finite.
    """

    label: ClassVar[str] = "ALiBi"

    num_heads: int
    bias_max: float = 8.0
    slopes: Literal["geometric", "equal", "learned"] = "geometric"
    divisor: float = 1.0

    @classmethod
    def from_config(cls, model: "ModelConfig") -> "Alibi":
        """Returns the method with the model's heads and slopes."""
        return cls(model.num_heads, model.bias_max, model.slopes, model.slope_divisor)

    def parameters(self) -> dict[str, Parameter]:
        """Returns log_slopes [H] where slopes are learned."""
        if self.slopes != "learned":
            return {}
        return {"log_slopes": Parameter(("heads",), (self.num_heads,), lambda *_: jnp.log(self._paper_slopes()))}

    def _paper_slopes(self) -> Float32[Array, " H"]:
        return jnp.asarray(alibi_slopes(self.num_heads, self.bias_max))

    @nn.compact
    def bias(self) -> LinearBias:
        """Returns the slopes as a LinearBias."""
        if self.slopes not in SLOPES or not 0 < self.divisor < math.inf:
            raise ValueError(
                f"Alibi: got slopes {self.slopes!r}, divisor {self.divisor}, expected one of {', '.join(SLOPES)}, and more "
                "than 0. The paper's are 'geometric' and 1."
            )
        slopes = self._paper_slopes()
        if self.slopes == "equal":
            slopes = jnp.full(self.num_heads, 2.0**-self.bias_max, jnp.float32)
        if self.slopes == "learned":
            slopes = jnp.exp(self.parameter("log_slopes"))
        return LinearBias(slopes / self.divisor)
