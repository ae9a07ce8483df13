"""Which blocks of queries need no running maximum, because a bound of their scores keeps every exponent in float32's range.

Let B bound a row's scores to the base 2, as |q| K / sqrt(D) does (reach.py), and let its keys' biases be counted from the last
key that any row of its block sees: none is positive, and the nearest key of a row, min(t, S - 1), lies at most a gap G before
it. With B as the number that is subtracted from all scores (the ceiling),

    -2 B - slope G  <=  exponent of the nearest key,    and    every exponent  <=  0.

So no weight exceeds 1, as with a running maximum, and nothing more can overflow. Downwards a row's own largest weight is at
least 2^-L, L = 2 B + slope G. Weights below float32's least normal number, 2^-126, count as 0: of 2^20 keys they are at most
2^(20 - 126 + L) of the row's mass, which for L <= 93 is 2^-13, what the reach may leave out of 16-bit attention. (Not of
float32: an exponent of 93 is rounded to 2^-18, and so is the weight. There the maximum is kept: products take the time.)

Nothing is assumed of the inputs: where norms are large, slopes steep or negative, or a number is NaN, the maximum is kept.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

LARGEST_FALL = 93.0  # L, bits
KEEP_MAXIMUM = -1.0


def ceilings(
    bounds: Float32[Array, "B H T"],
    slopes: Float32[Array, " H"],
    gaps: Int32[Array, " N"],
    block_q: int,
) -> Float32[Array, "B H N"]:
    """Returns B, in bits, of each block of queries that needs no running maximum, KEEP_MAXIMUM where it is needed.

    bounds: of the scores of each row, in nats; gaps: G of each block, in tokens.
    """
    bounds = jnp.pad(bounds, ((0, 0), (0, 0), (0, -bounds.shape[2] % block_q)))
    bits = bounds.reshape(*bounds.shape[:2], -1, block_q).max(-1) * math.log2(math.e)
    fall = 2 * bits + (slopes[:, None] * math.log2(math.e) * gaps[None])[None]
    proved = (fall <= LARGEST_FALL) & (slopes >= 0)[None, :, None]  # NaN proves nothing
    return jnp.where(proved, bits, KEEP_MAXIMUM)
