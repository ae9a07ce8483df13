"""Attention dropout as a pure function of (key, batch row, head, query position, distance to the key).

Because no block size, order of loops or device enters, every implementation drops the same weights, and a backward pass
recomputes the mask instead of storing it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, UInt32


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Returns a bijection of 32 bits in which each input bit flips each output bit about half the time ("lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def head_seeds(key: jax.Array | None, batch: int, num_heads: int) -> UInt32[Array, "B H 2"]:
    """Returns a seed of two 32-bit numbers for each (batch row, head); zeros without dropout.

    It is an array like q's leading dimensions, so that a device that holds some of the heads holds their seeds.
    """
    if key is None:
        return jnp.zeros((batch, num_heads, 2), jnp.uint32)
    return jax.random.bits(key, (batch, num_heads, 2), jnp.uint32)


def from_position(seeds: UInt32[Array, "B H 2"], first: Int[Array, ""]) -> UInt32[Array, "B H 2"]:
    """Returns seeds that give positions counted from `first` the mask that `seeds` give positions counted from 0."""
    return seeds + jnp.stack([jnp.uint32(0), first.astype(jnp.uint32)])[None, None]


def keep_scale(
    seed: tuple[Array, Array], rate: float, q_positions: Int[Array, "..."], k_positions: Int[Array, "..."]
) -> Float32[Array, "..."]:
    """Returns the factor of a weight: 0 where it is dropped, with probability `rate`, else 1 / (1 - rate).

    seed: the two numbers of a head; they and the positions broadcast.
    """
    rows = _mix(seed[0] + _mix(q_positions.astype(jnp.uint32) + seed[1]))
    bits = _mix(rows + (q_positions - k_positions).astype(jnp.uint32) * jnp.uint32(0x9E3779B1))
    return jnp.where(bits >= jnp.uint32(round(rate * 2**32)), 1.0 / (1.0 - rate), 0.0)


def dense_keep_scale(
    seeds: UInt32[Array, "*heads 2"], rate: float, q_positions: Int[Array, " T"], k_positions: Int[Array, " S"]
) -> Float32[Array, "*heads T S"]:
    """Returns `keep_scale` for every pair of queries and keys of every head."""
    seed = seeds[..., 0, None, None], seeds[..., 1, None, None]
    ones = (1,) * (seeds.ndim - 1)
    return keep_scale(seed, rate, q_positions.reshape(*ones, -1, 1), k_positions.reshape(*ones, 1, -1))
