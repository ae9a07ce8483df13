"""The position methods by name: a new one is a file of its own and a line here."""

from alibi_jax.positions.alibi import Alibi
from alibi_jax.positions.base import PositionMethod
from alibi_jax.positions.learned import Learned
from alibi_jax.positions.rotary import Rotary
from alibi_jax.positions.sinusoidal import Sinusoidal
from alibi_jax.positions.t5 import T5Bias

# name -> the method, made from the fields of a model's config that it needs
POSITIONS = {
    "alibi": lambda model: Alibi(model.num_heads, model.bias_max, model.slopes, model.slope_divisor),
    "sinusoidal": lambda model: Sinusoidal(),
    "rotary": lambda model: Rotary(base=model.rotary_base),
    "t5": lambda model: T5Bias(model.num_heads, model.t5_buckets, model.t5_max_distance),
    "learned": lambda model: Learned(max_length=model.learned_length, width=model.width),
    "none": lambda model: PositionMethod(),
}
