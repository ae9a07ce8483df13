"""Attention with linear biases (Press, Smith, Lewis 2022, arXiv 2108.12409)."""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float32

from alibi_jax.errors import require
from alibi_jax.positions.base import Parameter, PositionMethod
from alibi_jax.positions.bias import LinearBias, RoundedBias, alibi_slopes

if TYPE_CHECKING:
    from alibi_jax.config import ModelConfig

SLOPES = ("geometric", "equal", "learned")


class Alibi(PositionMethod):
    """-slope_h * distance on every score, slopes divided.

    slopes: "geometric", `alibi_slopes`, fixed as in the paper; "equal", 2^-bias_max for every head; "learned", the paper's to
    begin with, trained as logarithms (learned ones extrapolated worse, section 3 of the paper, which does not say how they were
    kept positive).
    divisor: length evaluated / length trained is what 2310.13017 proposes for evaluation. divided_from: inputs longer than this
    many tokens divide by length / divided_from as well (BTLM, 2309.11568). scaling: "linear", all slopes are divided by the
    same; "ntk", that of head h of H by its power (h - 1) / (H - 1): the largest slope stays, the smallest is divided by it all.
    rounding: "bfloat16" for Falcon-RW's bias. ValueError for slopes of another name and a divisor that is not above 0 and
    finite.
    """

    label: ClassVar[str] = "ALiBi"

    num_heads: int
    bias_max: float = 8.0
    slopes: Literal["geometric", "equal", "learned"] = "geometric"
    divisor: float = 1.0
    divided_from: int | None = None
    scaling: Literal["linear", "ntk"] = "linear"
    rounding: Literal["none", "bfloat16"] = "none"

    @classmethod
    def from_config(cls, model: "ModelConfig") -> "Alibi":
        """Returns the method with the model's heads and slopes; ConfigError for options that do not suit them."""
        _check_scaling(model)
        require(
            model.slope_rounding == "none" or (model.slopes != "learned" and model.slope_scaling == "linear"),
            "model.slope_rounding",
            f"{model.slope_rounding!r} with slopes {model.slopes!r} and slope_scaling {model.slope_scaling!r}",
            "fixed slopes that are divided alike: Falcon-RW's",
            "Set slope_rounding to 'none'.",
        )
        dividing = model.slope_divisor, model.slope_length, model.slope_scaling
        return cls(model.num_heads, model.bias_max, model.slopes, *dividing, model.slope_rounding)

    def parameters(self) -> dict[str, Parameter]:
        """Returns log_slopes [H] where slopes are learned."""
        if self.slopes != "learned":
            return {}
        return {"log_slopes": Parameter(("heads",), (self.num_heads,), lambda *_: jnp.log(self._paper_slopes()))}

    def _paper_slopes(self) -> Float32[Array, " H"]:
        return jnp.asarray(alibi_slopes(self.num_heads, self.bias_max))

    def divisors(self, length: int) -> Float32[Array, " H"]:
        """Returns what the slope of each head is divided by, for an input of `length` tokens."""
        whole = self.divisor * max(1.0, length / (self.divided_from or length))
        powers = np.arange(self.num_heads) / (self.num_heads - 1) if self.scaling == "ntk" else np.ones(self.num_heads)
        return jnp.asarray(whole**powers, jnp.float32)

    @nn.compact
    def bias(self, length: int) -> LinearBias | RoundedBias:
        """Returns the divided slopes as a LinearBias, or with rounding as a RoundedBias."""
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
        divisors = self.divisors(length)
        return LinearBias(slopes / divisors) if self.rounding == "none" else RoundedBias(slopes, divisors)


def _check_scaling(model: "ModelConfig") -> None:
    """Raises ConfigError for slope_scaling "ntk" that is not defined for the slopes, or divides nothing."""
    if model.slope_scaling == "linear":
        return
    heads = model.num_heads
    require(
        model.slopes == "geometric" and heads > 1 and heads.bit_count() == 1,
        "model.slope_scaling",
        f"'ntk' with {heads} heads and slopes {model.slopes!r}",
        "geometric slopes of 2, 4, 8 ... heads: it is not defined for others",
        "Set slope_scaling to 'linear'.",
    )
    require(
        model.slope_divisor != 1 or model.slope_length is not None,
        "model.slope_scaling",
        "'ntk' with slope_divisor 1 and no slope_length",
        "a divisor: otherwise it has no effect",
        "Set slope_divisor to length evaluated / length trained, or set slope_scaling to 'linear'.",
    )
