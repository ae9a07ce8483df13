"""Fixed sines and cosines added to the token embeddings (Vaswani et al. 2017, section 3.5)."""

import math
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.errors import require
from alibi_jax.positions.base import PositionMethod, check_positions

if TYPE_CHECKING:
    from alibi_jax.config import ModelConfig


def sinusoids(positions: Int[Array, " L"], width: int) -> Float32[Array, "L E"]:
    """Returns sin(p / 10000^(i / (E/2 - 1))), i < E/2, then the cosines: fairseq's and tensor2tensor's layout.

    Vaswani et al. interleave sines and cosines and divide by E/2; the span of wavelengths is the same. ValueError for an odd E.
    """
    if width % 2:
        raise ValueError(f"width: got {width}, expected an even number, sines beside cosines. Change the width.")
    half = width // 2
    rates = jnp.exp(-math.log(10_000.0) / max(half - 1, 1) * jnp.arange(half, dtype=jnp.float32))
    angles = positions.astype(jnp.float32)[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Sinusoidal(PositionMethod):
    """Adds `sinusoids` to the embeddings; defined at every length, trained at few."""

    label: ClassVar[str] = "sinusoidal"

    @classmethod
    def from_config(cls, model: "ModelConfig") -> "Sinusoidal":
        """Returns the method; ConfigError for a model of odd width."""
        require(
            model.width % 2 == 0,
            "model.width",
            model.width,
            "an even width for sinusoidal, which is sines beside cosines",
            "Change width.",
        )
        return cls()

    def embed(self, x: Float[Array, "B L E"], positions: Int[Array, " L"]) -> Float[Array, "B L E"]:
        """Returns the embeddings with each position's sines and cosines added."""
        check_positions(x, positions)
        return x + sinusoids(positions, x.shape[-1]).astype(x.dtype)[None]
