"""Attention with linear biases (Press, Smith, Lewis 2022, arXiv 2108.12409)."""

import math
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from alibi_jax.positions.base import PositionMethod
from alibi_jax.positions.bias import LinearBias, alibi_slopes

SLOPES = ("geometric", "equal", "learned")


class Alibi(PositionMethod):
    """-slope_h * distance on every score, slopes divided by `divisor`.

    slopes: "geometric", `alibi_slopes`, fixed as in the paper; "equal", 2^-bias_max for every head; "learned", trained by their
    logarithm from the paper's on (learned ones extrapolated worse, section 3 of the paper; how they were kept positive it
    does not say). divisor: length evaluated / length trained is what 2310.13017 proposes for evaluation. ValueError for slopes
    of another name and a divisor that is not above 0 and finite.
    """

    num_heads: int
    bias_max: float = 8.0
    slopes: Literal["geometric", "equal", "learned"] = "geometric"
    divisor: float = 1.0

    @nn.compact
    def bias(self) -> LinearBias:
        if self.slopes not in SLOPES or not 0 < self.divisor < math.inf:
            raise ValueError(
                f"Alibi: got slopes {self.slopes!r}, divisor {self.divisor}, expected one of {', '.join(SLOPES)}, and more "
                "than 0. The paper's are 'geometric' and 1."
            )
        slopes = jnp.asarray(alibi_slopes(self.num_heads, self.bias_max))
        if self.slopes == "equal":
            slopes = jnp.full(self.num_heads, 2.0**-self.bias_max, jnp.float32)
        if self.slopes == "learned":
            slopes = jnp.exp(self.param("log_slopes", lambda key: jnp.log(slopes)))
        return LinearBias(slopes / self.divisor)
