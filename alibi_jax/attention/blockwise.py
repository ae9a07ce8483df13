"""Attention block by block in plain JAX: O(T + S) memory forward and backward, any bias, any device.

The softmax is carried over key blocks as (running maximum, running sum, running output) (Milakov & Gimelshein 2018; Dao et
al. 2022). The backward pass makes every block's weights again from the saved log-sum-exp. Blocks wholly after the query
are never visited.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jaxtyping import Array, Float, Float32, Int, UInt32

from alibi_jax.attention.dropout import keep_mask
from alibi_jax.positions.base import Bias

BLOCK = 128  # queries and keys of a block; 64 to 256 are within 10 % of each other on 2 CPU cores


# float32 inputs are multiplied as float32 (accelerators would round them to TF32 or bfloat16); bfloat16 ones are exact anyway
EXACT = {"preferred_element_type": jnp.float32, "precision": "highest"}


class Options(NamedTuple):
    """What is fixed when the function is traced."""

    causal: bool
    dropout_rate: float
    num_keys: int  # before padding
    block: int


def _split(x: Float[Array, "B L H D"], block: int) -> Float[Array, "N B H block D"]:
    """Blocks of the sequence, heads outside of positions, the last block padded with zeros."""
    batch, length, heads, width = x.shape
    blocks = -(-length // block)
    x = jnp.pad(x, ((0, 0), (0, blocks * block - length), (0, 0), (0, 0)))
    return x.reshape(batch, blocks, block, heads, width).transpose(1, 0, 3, 2, 4)


def _join(blocks: Float[Array, "N B H block D"], length: int) -> Float[Array, "B L H D"]:
    count, batch, heads, block, width = blocks.shape
    return blocks.transpose(1, 0, 3, 2, 4).reshape(batch, count * block, heads, width)[:, :length]


def _positions(index: Int[Array, ""], block: int) -> Int[Array, " block"]:
    return index * block + jnp.arange(block)


def _num_key_blocks(options: Options, last_query: Int[Array, ""], key_blocks: int) -> Int[Array, ""]:
    """How many key blocks, from the first, hold a key that the block's last query may see."""
    if not options.causal:
        return jnp.asarray(key_blocks, jnp.int32)
    return jnp.minimum(last_query // options.block + 1, key_blocks).astype(jnp.int32)


def _scores(
    options: Options,
    q: Float[Array, "B H T D"],
    k: Float[Array, "B H S D"],
    bias: Float32[Array, "H T S"] | None,
    q_positions: Int[Array, " T"],
    k_positions: Int[Array, " S"],
) -> Float32[Array, "B H T S"]:
    """Scaled scores with the bias; -inf where a key is padding or after the query."""
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, **EXACT) * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias[None]
    seen = k_positions[None, :] < options.num_keys
    if options.causal:
        seen = seen & (k_positions[None, :] <= q_positions[:, None])
    return jnp.where(seen, scores, -jnp.inf)


def _keep(options: Options, seed: UInt32[Array, "2"], shape: tuple, q_positions: Array, k_positions: Array) -> Array:
    """What a weight is multiplied by: 0 where it is dropped, else 1 / (1 - rate)."""
    kept = keep_mask(seed, options.dropout_rate, *shape[:2], q_positions, k_positions)
    return jnp.where(kept, 1.0 / (1.0 - options.dropout_rate), 0.0)


def _forward_row(options, q, k, v, bias, q_positions, seed):
    """One block of queries against all its key blocks: (output [B H T D] float32, log-sum-exp [B H T])."""

    def visit(j, carry):
        output, largest, total = carry
        k_positions = _positions(j, options.block)
        block_bias = None if bias is None else bias.block(q_positions, k_positions)
        scores = _scores(options, q, k[j], block_bias, q_positions, k_positions)
        new_largest = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp(scores - new_largest[..., None])
        shrink = jnp.exp(largest - new_largest)
        total = total * shrink + weights.sum(-1)
        if options.dropout_rate > 0:
            weights = weights * _keep(options, seed, weights.shape, q_positions, k_positions)
        added = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v[j], **EXACT)
        return output * shrink[..., None] + added, new_largest, total

    rows = q.shape[:-1]
    start = jnp.zeros(q.shape, jnp.float32), jnp.full(rows, -1e30, jnp.float32), jnp.zeros(rows, jnp.float32)
    count = _num_key_blocks(options, q_positions[-1], k.shape[0])
    output, largest, total = jax.lax.fori_loop(0, count, visit, start)
    return output / total[..., None], largest + jnp.log(total)


def _forward(options, q, k, v, bias, q_offset, seed):
    def row(inputs):
        index, q_block = inputs
        q_positions = q_offset + _positions(index, options.block)
        output, logsumexp = _forward_row(options, q_block, k, v, bias, q_positions, seed)
        return output.astype(q.dtype), logsumexp

    return jax.lax.map(row, (jnp.arange(q.shape[0]), q))


def _backward_block(options, q, k, v, logsumexp, d_output, delta, bias, learned, q_positions, k_positions, seed):
    """Gradients one (query block, key block) pair gives: (dq, dk, dv, dbias), the last None where it is not `learned`."""
    block_bias, bias_vjp = (None, None) if bias is None else jax.vjp(lambda b: b.block(q_positions, k_positions), bias)
    weights = jnp.exp(_scores(options, q, k, block_bias, q_positions, k_positions) - logsumexp[..., None])
    d_weights = jnp.einsum("bhtd,bhsd->bhts", d_output, v, **EXACT)
    dropped = weights
    if options.dropout_rate > 0:
        keep = _keep(options, seed, weights.shape, q_positions, k_positions)
        dropped, d_weights = weights * keep, d_weights * keep
    dv = jnp.einsum("bhts,bhtd->bhsd", dropped.astype(d_output.dtype), d_output, **EXACT)
    d_scores = weights * (d_weights - delta[..., None])
    d_bias = bias_vjp(d_scores.sum(0))[0] if learned else None
    d_scores = (d_scores * q.shape[-1] ** -0.5).astype(q.dtype)
    dq = jnp.einsum("bhts,bhsd->bhtd", d_scores, k, **EXACT)
    dk = jnp.einsum("bhts,bhtd->bhsd", d_scores, q, **EXACT)
    return dq, dk, dv, d_bias


def _add_at(whole: Float32[Array, "N *part"], index: Int[Array, ""], part: Float32[Array, "*part"]) -> Array:
    return jax.lax.dynamic_update_index_in_dim(whole, whole[index] + part, index, 0)


def _backward(options, residuals, d_output):
    q, k, v, bias, q_offset, seed, output, logsumexp, learned = residuals
    learned = learned is not None
    delta = jnp.sum(d_output.astype(jnp.float32) * output.astype(jnp.float32), axis=-1)

    def row(carry, inputs):
        index, q_block, *rest = inputs
        q_positions = q_offset + _positions(index, options.block)

        def visit(j, carry):
            dq, dk, dv, d_bias = carry
            positions = q_positions, _positions(j, options.block)
            parts = _backward_block(options, q_block, k[j], v[j], *rest, bias, learned, *positions, seed)
            d_bias = jax.tree.map(jnp.add, d_bias, parts[3])
            return dq + parts[0], _add_at(dk, j, parts[1]), _add_at(dv, j, parts[2]), d_bias

        count = _num_key_blocks(options, q_positions[-1], k.shape[0])
        dq, *carry = jax.lax.fori_loop(0, count, visit, (jnp.zeros(q_block.shape, jnp.float32), *carry))
        return tuple(carry), dq.astype(q.dtype)

    zeros = (
        jnp.zeros(k.shape, jnp.float32),
        jnp.zeros(v.shape, jnp.float32),
        jax.tree.map(jnp.zeros_like, bias) if learned else None,
    )
    inputs = jnp.arange(q.shape[0]), q, logsumexp, d_output, delta
    (dk, dv, d_bias), dq = jax.lax.scan(row, zeros, inputs)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), d_bias, None, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_blocks(options, q, k, v, bias, q_offset, seed):
    return _forward(options, q, k, v, bias, q_offset, seed)[0]


def _attend_blocks_forward(options, *primals):
    """Also whether anything asks for the bias's gradient: fixed slopes have none, and it costs a third of the backward."""

    def is_primal(leaf):
        return isinstance(leaf, CustomVJPPrimal)

    learned = () if any(leaf.perturbed for leaf in jax.tree.leaves(primals[3], is_leaf=is_primal)) else None
    q, k, v, bias, q_offset, seed = jax.tree.map(lambda leaf: leaf.value, primals, is_leaf=is_primal)
    output, logsumexp = _forward(options, q, k, v, bias, q_offset, seed)
    return output, (q, k, v, bias, q_offset, seed, output, logsumexp, learned)


_attend_blocks.defvjp(_attend_blocks_forward, _backward, symbolic_zeros=True)


def blockwise_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    bias: Bias | None,
    q_offset: Int[Array, ""],
    seed: UInt32[Array, "2"],
    causal: bool,
    dropout_rate: float,
) -> Float[Array, "B T H D"]:
    """The same function as `reference_attention`, in O(T + S) memory, with gradients for q, k, v and the bias's arrays."""
    options = Options(causal, dropout_rate, k.shape[1], BLOCK)
    blocks = (_split(x, BLOCK) for x in (q, k, v))
    return _join(_attend_blocks(options, *blocks, bias, q_offset, seed), q.shape[1])
