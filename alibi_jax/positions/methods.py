"""The position methods by name: a new one is a file of its own and a line here."""

from alibi_jax.positions.alibi import Alibi
from alibi_jax.positions.base import PositionMethod
from alibi_jax.positions.learned import Learned
from alibi_jax.positions.rotary import Rotary
from alibi_jax.positions.sinusoidal import Sinusoidal
from alibi_jax.positions.t5 import T5Bias

POSITIONS: dict[str, type[PositionMethod]] = {
    "alibi": Alibi,
    "sinusoidal": Sinusoidal,
    "rotary": Rotary,
    "t5": T5Bias,
    "learned": Learned,
    "none": PositionMethod,
}
