"""What a position method is: three hooks, of which each method overrides one.

The base class does nothing in each hook, and so is itself a method: no position information at all ("none", NoPE).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.positions.bias import Bias, concrete

if TYPE_CHECKING:
    from alibi_jax.config import ModelConfig


class Parameter(NamedTuple):
    """A trained array of a position method, float32. It is never weight-decayed."""

    dimensions: tuple[str, ...]  # names from sharding.RULES
    shape: tuple[int, ...]
    init: Callable[..., Array]  # (key, shape, dtype) -> its values before training


def check_positions(x: Array, positions: Array) -> None:
    """ValueError unless there is one integer position for each of the L tokens of x [B, L, ...]: one alone would broadcast."""
    if positions.shape != x.shape[1:2] or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(
            f"positions: got {positions.dtype}{list(positions.shape)} for {x.shape[1]} tokens, expected one integer for each. "
            "Pass jnp.arange(length) for a text from its start."
        )


def check_consecutive(x: Array, positions: Array) -> Array:
    """Returns x [B, L, ...] where each position is one more than the last: ValueError, or NaN where positions are traced."""
    check_positions(x, positions)
    values = concrete(positions)
    if values is None:
        return jnp.where((jnp.diff(positions) == 1).all(), x, jnp.nan)
    jumps = np.flatnonzero(np.diff(values) != 1)
    if jumps.size:
        before, after = values[jumps[0] : jumps[0] + 2]
        raise ValueError(
            f"positions: got {after} after {before}, expected {before + 1}: a bias of distances needs consecutive positions. "
            "Pass jnp.arange(first, first + length), or None."
        )
    return x


class PositionMethod(nn.Module):
    """No position information (NoPE), and what a method may override: its facts, and one of three hooks.

    The model binds one method, under the name "position". A hook that needs a parameter is decorated with nn.compact and calls
    `parameter(name)`; `rotate` runs inside the layers, where Flax makes no parameters of others.
    """

    label: ClassVar[str] = "no positions"  # in tables and figures

    @classmethod
    def from_config(cls, model: "ModelConfig") -> "PositionMethod":
        """Returns the method of a model; ConfigError where the model's other fields do not suit it."""
        return cls()

    def parameters(self) -> dict[str, Parameter]:
        """Returns its trained arrays by name."""
        return {}

    def longest(self) -> int | None:
        """Returns the most tokens that an input may have; None where any number is served."""
        return None

    def parameter(self, name: str) -> Float32[Array, "..."]:
        """Returns the values of one of `parameters()`, within a hook that is nn.compact."""
        parameter = self.parameters()[name]
        return self.param(name, parameter.init, parameter.shape, jnp.float32)

    def embed(self, x: Float[Array, "B L E"], positions: Int[Array, " L"]) -> Float[Array, "B L E"]:
        """Returns the token embeddings with positions in them; called once."""
        return x

    def rotate(self, x: Float[Array, "B L H D"], positions: Int[Array, " L"]) -> Float[Array, "B L H D"]:
        """Returns queries or keys with positions in them; called in every layer on both."""
        return x

    def bias(self, length: int) -> Bias | None:
        """Returns the bias of every layer's scores, for an input of `length` tokens; called once."""
        return None
