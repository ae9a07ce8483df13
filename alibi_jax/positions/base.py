"""What a position method is: three hooks, of which each method overrides one; and what a bias is: a value.

The base class does nothing in each hook, and so is itself a method: no position information at all ("none", NoPE).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int

Positions = Int[Array, " T"]


def concrete(x: Any) -> np.ndarray | None:
    """The numbers of x where they are known now; None where x is traced by jax.jit, or lies on other hosts too."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


class Bias:
    """A number for every (head, query position, key position), computed where it is needed, never stored whole."""

    dimensions: ClassVar[tuple[str, ...]]  # of its one array, as sharding.RULES call them

    def block(self, q_positions: Positions, k_positions: Int[Array, " S"]) -> Float32[Array, "H T S"]:
        """Bias added to the scaled scores of these queries and keys, before the softmax."""
        raise NotImplementedError

    def select_heads(self, first: int | Int[Array, ""], count: int) -> "Bias":
        """The bias of `count` heads from `first` on."""
        raise NotImplementedError

    def decay(self) -> Float32[Array, " H"] | None:
        """Slopes m such that no bias at distance d is above -m d; None where no such bound is known."""
        return None

    def largest(self) -> Float32[Array, " H"]:
        """No bias is above it, and the bias at distance 0 is not below minus it; infinite where nothing is known."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBias(Bias):
    """ALiBi: -slope * |query position - key position| (Press et al. 2022, section 3).

    The distance is taken in int32 and the product in float32, whatever the compute dtype: bfloat16 with absolute
    positions misplaces 26 % of the softmax mass at 2,048 tokens. Symmetric, so it serves encoders too.
    """

    dimensions: ClassVar[tuple[str, ...]] = ("heads",)

    slopes: Any  # float32 [H]; Any, because JAX puts placeholders here when it takes trees apart

    def block(self, q_positions: Positions, k_positions: Int[Array, " S"]) -> Float32[Array, "H T S"]:
        distances = jnp.abs(q_positions[:, None] - k_positions[None, :])
        return -self.slopes[:, None, None] * distances.astype(jnp.float32)[None]

    def select_heads(self, first: int | Int[Array, ""], count: int) -> "LinearBias":
        return LinearBias(jax.lax.dynamic_slice_in_dim(self.slopes, first, count, 0))

    def decay(self) -> Float32[Array, " H"]:
        return self.slopes

    def largest(self) -> Float32[Array, " H"]:
        return jnp.where(self.slopes >= 0, jnp.float32(0.0), jnp.inf)


def check_positions(x: Array, positions: Array) -> None:
    """ValueError where x [B, L, ...] does not have one whole position for each of its L tokens: one for all would broadcast."""
    if positions.shape != x.shape[1:2] or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(
            f"positions: got {positions.dtype}{list(positions.shape)} for {x.shape[1]} tokens, expected so many integers. "
            "Pass jnp.arange(length) for a text from its start."
        )


class PositionMethod(nn.Module):
    """No position information (NoPE), and the three hooks a method may override."""

    def embed(self, x: Float[Array, "B L E"], positions: Int[Array, " L"]) -> Float[Array, "B L E"]:
        """Applied once, to the token embeddings."""
        return x

    def rotate(self, x: Float[Array, "B L H D"], positions: Int[Array, " L"]) -> Float[Array, "B L H D"]:
        """Applied to the queries and to the keys of every layer."""
        return x

    def bias(self) -> Bias | None:
        """The bias of every layer's scores."""
        return None
