"""Which blocks of queries need no running maximum, because a bound of their scores keeps every exponent in float32's range.

Let B bound a row's scores to the base 2, as |q| K / sqrt(D) does (reach.py), and let its keys' biases be counted from the last
key that any row of its block sees: none is positive, and the nearest key of a row, min(t, S - 1), lies at most a gap G before
it. With B - R as the number that is subtracted from all scores (the ceiling),

    R - 2 B - slope G  <=  exponent of the nearest key,    and    every exponent  <=  R.

Downwards a row's own largest weight is at least 2^(R - L), L = 2 B + slope G. Weights, and their products with values, below
float32's least normal number, 2^-126, count as 0: of 2^20 keys they are at most 2^(20 - 126 + L - R) / V of the row's mass,
V the largest of the values. For L <= 93 and V >= 2^-R that is 2^-13, what the reach may leave out of 16-bit attention. (Not of
float32: an exponent of 93 is rounded to 2^-18, and so is the weight. There the maximum is kept: products take the time.)
Upwards the sums of weights and of weighted values are at most 2^(20 + R) and 2^(20 + R) V. R = 46 lets a row's largest weight
lie on both sides of 1, and serves values from 2^-46 to 2^61; with R = 0 those below 2^-33 could all be lost.

Nothing is assumed of queries, keys and slopes: where norms are large, slopes steep or negative, or a number is NaN, the maximum
is kept.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from alibi_jax.attention.implementation import LOWEST_SCORE

LARGEST_FALL = 93.0  # L, bits
LARGEST_WEIGHT = 46.0  # R, bits
KEEP_MAXIMUM = LOWEST_SCORE  # from which a running maximum starts


def ceilings(
    bounds: Float32[Array, "B H T"],
    slopes: Float32[Array, " H"],
    gaps: Int32[Array, " N"],
    block_q: int,
) -> Float32[Array, "B H N"]:
    """Returns B - R, in bits, of each block of queries that needs no running maximum, KEEP_MAXIMUM where it is needed.

    bounds: of the scores of each row, in nats; gaps: G of each block, in tokens.
    """
    bounds = jnp.pad(bounds, ((0, 0), (0, 0), (0, -bounds.shape[2] % block_q)))
    bits = bounds.reshape(*bounds.shape[:2], -1, block_q).max(-1) * math.log2(math.e)
    fall = 2 * bits + (slopes[:, None] * math.log2(math.e) * gaps[None])[None]
    proved = (fall <= LARGEST_FALL) & (slopes >= 0)[None, :, None]  # NaN proves nothing
    return jnp.where(proved, bits - LARGEST_WEIGHT, KEEP_MAXIMUM)
