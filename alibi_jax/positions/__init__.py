"""The science: how a model is told where its tokens stand. One file a method."""

from alibi_jax.errors import LengthError
from alibi_jax.positions.alibi import Alibi, alibi_slopes
from alibi_jax.positions.base import Bias, LinearBias, PositionMethod
from alibi_jax.positions.learned import Learned
from alibi_jax.positions.rotary import Rotary
from alibi_jax.positions.sinusoidal import Sinusoidal
from alibi_jax.positions.t5 import BucketBias, T5Bias

# name -> the method, made from the fields of a model's config that it needs
POSITIONS = {
    "alibi": lambda model: Alibi(model.num_heads, model.bias_max, model.slopes, model.slope_divisor),
    "sinusoidal": lambda model: Sinusoidal(),
    "rotary": lambda model: Rotary(base=model.rotary_base),
    "t5": lambda model: T5Bias(model.num_heads, model.t5_buckets, model.t5_max_distance),
    "learned": lambda model: Learned(max_length=model.learned_length, width=model.width),
    "none": lambda model: PositionMethod(),
}

__all__ = [
    "POSITIONS",
    "Alibi",
    "Bias",
    "BucketBias",
    "Learned",
    "LengthError",
    "LinearBias",
    "PositionMethod",
    "Rotary",
    "Sinusoidal",
    "T5Bias",
    "alibi_slopes",
]
