"""Inputs of attention on which speed is compared: normal random ones, and ones with the score bounds of a trained model.

How much of a causal attention the reach may skip depends on the slopes and on how large scores can be, |q| |k| / sqrt(D). Of
trained models the fraction of blocks visited was measured, head by head, in experiments/results/reach ("books": 4 layers, 8
heads, trained at 512 bytes, read at 4,096). SCORE_BOUNDS are the constant bounds with which random directions visit the same
fraction; `tests/test_gpu_speed.py` compares the two.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float32

from alibi_jax.attention.reach import DEFAULT_TOLERANCE, first_key_blocks
from alibi_jax.positions import alibi_slopes

BLOCK = 128  # queries and keys of the blocks that are counted, as in experiments/reach.py
# Slope -> |q| |k| / sqrt(D). Steeper heads visit two blocks whatever it is, and flatter ones all 4,096 tokens: they take the
# nearest slope's.
SCORE_BOUNDS = {2**-6: 18.2, 2**-5: 25.5, 2**-4: 14.0, 2**-3: 14.0}


class Inputs(NamedTuple):
    """The arrays of one attention; the gradient is that of the sum of its output times `weight`."""

    q: BFloat16[Array, "B L H D"]
    k: BFloat16[Array, "B L H D"]
    v: BFloat16[Array, "B L H D"]
    weight: BFloat16[Array, "B L H D"]
    slopes: Float32[Array, " H"]


def score_bounds(slopes: Float32[np.ndarray, " H"]) -> Float32[np.ndarray, " H"]:
    """Returns |q| |k| / sqrt(D) of each head of a trained model, interpolated over the logarithm of its slope."""
    known = np.log2(list(SCORE_BOUNDS)), list(SCORE_BOUNDS.values())
    return np.interp(np.log2(slopes), *known).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def make_inputs(length: int, heads: int, width: int, trained: bool | Array) -> Inputs:
    """Returns inputs of one sequence: standard normal, and with `trained` queries and keys of one norm a head."""
    shape, slopes = (1, length, heads, width), alibi_slopes(heads)
    q, k, v, weight = (jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4))
    norms = jnp.sqrt(jnp.asarray(score_bounds(slopes)) * width**0.5)[None, None, :, None]

    def scaled(x: BFloat16[Array, "B L H D"]) -> BFloat16[Array, "B L H D"]:
        wide = x.astype(jnp.float32)
        of_norm = wide * (norms * jax.lax.rsqrt(jnp.square(wide).sum(-1, keepdims=True)))
        return jnp.where(trained, of_norm, wide).astype(x.dtype)

    return Inputs(scaled(q), scaled(k), v, weight, jnp.asarray(slopes))


@functools.partial(jax.jit, static_argnames="tolerance")
def visited(inputs: Inputs, tolerance: float = DEFAULT_TOLERANCE["bfloat16"]) -> Float32[Array, " H"]:
    """Returns the fraction of causal blocks that each head visits, blocks being BLOCK queries times BLOCK keys."""
    first = first_key_blocks(inputs.q, inputs.k, inputs.slopes, jnp.int32(0), tolerance, BLOCK, BLOCK)[0]
    index = jnp.arange(first.shape[1])
    return (index[None] - first + 1).sum(1) / (index + 1).sum()
