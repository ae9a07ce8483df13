"""Attention with linear biases (Press, Smith, Lewis 2022, arXiv 2108.12409)."""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from alibi_jax.positions.base import LinearBias, PositionMethod

SLOPES = ("geometric", "equal", "learned")


def _geometric(num_heads: int, bias_max: float) -> list[float]:
    return [2.0 ** (-bias_max * k / num_heads) for k in range(1, num_heads + 1)]


def alibi_slopes(num_heads: int, bias_max: float = 8.0) -> np.ndarray:
    """Slopes m_1 ... m_H, float32 [H], in the order the reference code gives them to the heads.

    For a power of two, m_k = 2^(-bias_max * k / H). Otherwise, with c the power of two below H: the c slopes of c heads,
    then the first H - c of every second slope of 2c heads, unsorted (the order is part of a checkpoint's meaning).
    bias_max is 8 in the paper; MPT calls it alibi_bias_max. ValueError for a number of heads that is no int from 1 on, and a
    bias_max outside (0, 126]: smaller slopes are 0 in float32 on accelerators.
    """
    if not isinstance(num_heads, int | np.integer) or isinstance(num_heads, bool) or num_heads < 1:
        raise ValueError(
            f"num_heads: got {num_heads!r}, expected an int, at least 1. Give the number of attention heads."
        )
    if not 0 < bias_max <= 126:
        raise ValueError(f"bias_max: got {bias_max}, expected more than 0 and at most 126. The paper's value is 8.")
    num_heads = int(num_heads)
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = _geometric(power, bias_max) + _geometric(2 * power, bias_max)[0::2][: num_heads - power]
    return np.array(slopes, np.float32)


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
