"""What the Mosaic GPU kernels make of a block of products of queries and keys: scores, softmax weights, gradients.

Everything here is in registers. Imported with mosaic_kernels.py, when a kernel is traced.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float32, Int32

from alibi_jax.attention.dropout import keep_scale
from alibi_jax.attention.implementation import Options

LOG2E = math.log2(math.e)  # exp(x) = exp2(LOG2E x), and the hardware has exp2
ROWS = plgpu.Layout.WGMMA.reduce(1)  # how a number a row lies in registers beside a block of scores


class Kernel(NamedTuple):
    """The sizes that are fixed when the kernels are traced."""

    options: Options
    num_keys: int  # before padding
    width: int  # of a head, before padding
    bias_by_key: bool  # a number a key, not a score: causal, and 16 bits, as it costs float32 its last ones
    block_q: int = 64  # rows of one warpgroup's product
    block_k: int = 64


class Head(NamedTuple):
    """A query head: its row of the batch, its number, its slope and its dropout seed."""

    row: Int32[Array, ""]
    number: Int32[Array, ""]
    slope: Float32[Array, ""]
    seed: tuple[Array, Array]


class Block(NamedTuple):
    """A block of a head's scores: the positions its queries and keys begin at."""

    head: Head
    q_start: Int32[Array, ""]
    k_start: Int32[Array, ""]
    masked: bool  # some of its keys may be padding or after a query


def along_rows(numbers: Array, like: Array) -> Array:
    """Returns a number of each row, repeated along the row."""
    return lax.broadcast_in_dim(numbers, like.shape, [0])


def _positions(block: Block, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Returns the positions of the query and the key of every score."""
    # Not start - start + (row - column): ptxas keeps the differences, which no visit changes, in 32 registers, and spills.
    rows, columns = (plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1))
    return block.q_start + rows, block.k_start + columns


def biased_scores(kernel: Kernel, block: Block, products: Float32[Array, "T S"]) -> Float32[Array, "T S"]:
    """Returns scores to the base 2; -inf where a key is padding or after the query.

    The softmax does not see what is added to a whole row. So all rows of a causal block have the bias of its middle query: a
    number a key, not a score, which saves a fifth of the instructions.
    """
    q_positions, k_positions = _positions(block, products.shape)
    columns = plgpu.broadcasted_iota(jnp.int32, products.shape, 1, layout=plgpu.Layout.WGMMA)
    middle = block.q_start + kernel.block_q // 2
    distances = (middle - block.k_start) - columns if kernel.bias_by_key else jnp.abs(q_positions - k_positions)
    scores = products * (LOG2E * kernel.width**-0.5)
    scores = scores - (LOG2E * block.head.slope) * distances.astype(jnp.float32)
    if not block.masked:
        return scores
    seen = k_positions < kernel.num_keys
    seen = seen & (q_positions >= k_positions) if kernel.options.causal else seen
    return jnp.where(seen, scores, -jnp.inf)


def excess(kernel: Kernel, slope: Array) -> Float32[Array, " T"]:
    """Returns by how much the log-sum-exp of `biased_scores` is too large, by row."""
    rows = plgpu.broadcasted_iota(jnp.int32, (kernel.block_q,), 0, layout=ROWS) - kernel.block_q // 2
    return (slope if kernel.bias_by_key else 0.0) * rows.astype(jnp.float32)


def keep(kernel: Kernel, block: Block, shape: tuple[int, int]) -> Array | float:
    """Returns the factors of the weights by dropout."""
    rate = kernel.options.dropout_rate
    return keep_scale(block.head.seed, rate, *_positions(block, shape)) if rate > 0 else 1.0


def signed_weights(kernel: Kernel, block: Block, products: Array, logsumexp: Array) -> Float32[Array, "T S"]:
    """Returns the softmax's weights, negative where dropout drops them: to keep both apart takes 32 registers more."""
    scores = biased_scores(kernel, block, products)
    logsumexp = logsumexp + excess(kernel, block.head.slope)
    weights = jnp.exp2(scores - along_rows(LOG2E * logsumexp, scores))
    if kernel.options.dropout_rate == 0:
        return weights
    return jnp.where(keep(kernel, block, weights.shape) > 0, weights, -weights)


def after_dropout(kernel: Kernel, x: Float32[Array, "T S"], signed: Float32[Array, "T S"]) -> Float32[Array, "T S"]:
    """Returns x after the dropout that the signs of the weights tell of."""
    rate = kernel.options.dropout_rate
    return jnp.where(signed > 0, x * (1.0 / (1.0 - rate)), 0.0) if rate > 0 else x


def gradients(kernel: Kernel, d_weights: Array, signed: Array, delta: Array) -> Float32[Array, "T S"]:
    """Returns the gradient of the scaled scores; d_weights: of the weights after dropout."""
    weights = jnp.abs(signed)
    return weights * (after_dropout(kernel, d_weights, signed) - along_rows(delta, weights)) * kernel.width**-0.5
