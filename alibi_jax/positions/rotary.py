"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alibi_jax.errors import require
from alibi_jax.positions.base import PositionMethod, check_positions

if TYPE_CHECKING:
    from alibi_jax.config import ModelConfig


def rotate_pairs(x: Float[Array, "B L H D"], positions: Int[Array, " L"], base: float) -> Float[Array, "B L H D"]:
    """Returns x with channel pair (i, i + D/2) of each head turned by the angle p * base^(-2i/D), in float32.

    Then the product of q at p and k at p' depends on p - p' alone. Pairing halves is GPT-NeoX's and Llama's convention; the
    paper pairs neighbours (2i, 2i+1), which is the same up to the order of channels. ValueError for an odd D.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"head width: got {x.shape[-1]}, expected an even number of channels. Change it.")
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None] * rates[None, :]
    cosines = jnp.cos(angles)[None, :, None, :]
    sines = jnp.sin(angles)[None, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
    return turned.astype(x.dtype)


class Rotary(PositionMethod):
    """Turns queries and keys of every layer by angles proportional to their positions."""

    label: ClassVar[str] = "rotary"

    base: float = 10_000.0

    @classmethod
    def from_config(cls, model: "ModelConfig") -> "Rotary":
        """Returns the method with model.rotary_base; ConfigError for heads of odd width."""
        require(
            model.head_width % 2 == 0,
            "model.width / num_heads",
            model.head_width,
            "an even head width for rotary, which turns channels in pairs",
            "Change width or num_heads.",
        )
        return cls(model.rotary_base)

    def rotate(self, x: Float[Array, "B L H D"], positions: Int[Array, " L"]) -> Float[Array, "B L H D"]:
        """Returns queries or keys turned by `rotate_pairs`."""
        check_positions(x, positions)
        return rotate_pairs(x, positions, self.base)
