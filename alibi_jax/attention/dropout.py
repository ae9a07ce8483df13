"""Attention dropout as a pure function of (key, batch row, head, query position, key position).

Because no block size, order of loops or device enters, every implementation drops the same weights, and a backward pass
makes the mask again instead of storing it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32 bits in which each input bit flips each output bit about half the time ("lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def keep_mask(
    seed: UInt32[Array, "2"],
    rate: float,
    batch: int,
    num_heads: int,
    q_positions: Int[Array, " T"],
    k_positions: Int[Array, " S"],
) -> Bool[Array, "B H T S"]:
    """True where a weight is kept, with probability 1 - rate."""
    rows = _mix(jnp.arange(batch * num_heads, dtype=jnp.uint32) + seed[0]).reshape(batch, num_heads, 1)
    rows = _mix(rows + _mix(q_positions.astype(jnp.uint32) ^ seed[1])[None, None, :])
    columns = k_positions.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    bits = _mix(rows[..., None] + columns[None, None, None, :])
    return bits >= jnp.uint32(round(rate * 2**32))


def seed_words(key: jax.Array | None) -> UInt32[Array, "2"]:
    """The two words the mask is made from; zeros where there is no dropout."""
    if key is None:
        return jnp.zeros(2, jnp.uint32)
    return jax.random.bits(key, (2,), jnp.uint32)
