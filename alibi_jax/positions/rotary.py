"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alibi_jax.positions.base import PositionMethod, check_positions


def rotate_pairs(x: Float[Array, "B L H D"], positions: Int[Array, " L"], base: float) -> Float[Array, "B L H D"]:
    """Turns channel pair (i, i + D/2) of each head by the angle p * base^(-2i/D), in float32.

    Then q at p and k at p' meet in a product that depends on p - p' alone. Pairing halves is GPT-NeoX's and Llama's
    convention; the paper pairs neighbours (2i, 2i+1), which is the same up to an order of channels. D must be even.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"head width: got {x.shape[-1]}, expected an even number of channels. Change it.")
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None] * rates[None, :]
    cosines, sines = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
    return turned.astype(x.dtype)


class Rotary(PositionMethod):
    """Turns queries and keys of every layer by angles proportional to their positions."""

    base: float = 10_000.0

    def rotate(self, x: Float[Array, "B L H D"], positions: Int[Array, " L"]) -> Float[Array, "B L H D"]:
        check_positions(x, positions)
        return rotate_pairs(x, positions, self.base)
