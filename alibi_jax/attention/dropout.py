"""Attention dropout as a pure function of (key, batch row, head, query position, distance to the key).

Because no block size, order of loops or device enters, every implementation drops the same weights, and a backward pass
makes the mask again instead of storing it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, UInt32


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32 bits in which each input bit flips each output bit about half the time ("lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def head_seeds(key: jax.Array | None, batch: int, num_heads: int) -> UInt32[Array, "B H 2"]:
    """Two words for each (batch row, head), from which its mask is made; zeros where there is no dropout.

    An array like q's leading dimensions, so that a device that holds some of the heads holds their words.
    """
    if key is None:
        return jnp.zeros((batch, num_heads, 2), jnp.uint32)
    return jax.random.bits(key, (batch, num_heads, 2), jnp.uint32)


def from_position(seeds: UInt32[Array, "B H 2"], first: Int[Array, ""]) -> UInt32[Array, "B H 2"]:
    """Words that make for positions counted from `first` the mask that `seeds` make for positions counted from 0."""
    return seeds + jnp.stack([jnp.uint32(0), first.astype(jnp.uint32)])[None, None]


def keep_scale(
    seed: tuple[Array, Array], rate: float, q_positions: Int[Array, "..."], k_positions: Int[Array, "..."]
) -> Float32[Array, "..."]:
    """What a weight is multiplied by: 0 where it is dropped, with probability `rate`, else 1 / (1 - rate).

    seed: a head's two words; they and the positions broadcast.
    """
    rows = _mix(seed[0] + _mix(q_positions.astype(jnp.uint32) + seed[1]))
    bits = _mix(rows + (q_positions - k_positions).astype(jnp.uint32) * jnp.uint32(0x9E3779B1))
    return jnp.where(bits >= jnp.uint32(round(rate * 2**32)), 1.0 / (1.0 - rate), 0.0)


def dense_keep_scale(
    seeds: UInt32[Array, "*heads 2"], rate: float, q_positions: Int[Array, " T"], k_positions: Int[Array, " S"]
) -> Float32[Array, "*heads T S"]:
    """The same for every pair of queries and keys of every head."""
    seed = seeds[..., 0, None, None], seeds[..., 1, None, None]
    ones = (1,) * (seeds.ndim - 1)
    return keep_scale(seed, rate, q_positions.reshape(*ones, -1, 1), k_positions.reshape(*ones, 1, -1))
