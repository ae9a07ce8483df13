"""What a GPU kernel is called with: lengths padded to whole blocks, head widths to a power of two, and the blocks to visit."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, UInt32

from alibi_jax.attention.implementation import Inputs, Options, Residuals
from alibi_jax.attention.reach import causal_row_bounds, first_key_blocks, last_query_blocks


@runtime_checkable
class Blocks(Protocol):
    """The queries and keys of a block."""

    @property
    def block_q(self) -> int: ...

    @property
    def block_k(self) -> int: ...


class PaddedInputs(NamedTuple):
    """The arrays of `Inputs`, padded, and which blocks see each other."""

    q: Float[Array, "B T H D"]
    k: Float[Array, "B S K D"]
    v: Float[Array, "B S K D"]
    slopes: Float32[Array, " H"]
    q_offset: Int32[Array, " 1"]
    seeds: UInt32[Array, "B H 2"]
    first: Int32[Array, "B H N"]  # the first key block each block of queries visits
    last_query: Int32[Array, "B H M"]  # the last block of queries that visits each key block


def padded_inputs(options: Options, inputs: Inputs, blocks: Blocks, least_width: int) -> PaddedInputs:
    """Returns the inputs padded, and the visits of blocks of that size."""
    q = _pad(inputs.q, blocks.block_q, least_width)
    k, v = (_pad(x, blocks.block_k, least_width) for x in (inputs.k, inputs.v))
    slopes = jnp.zeros(inputs.q.shape[2], jnp.float32) if inputs.bias is None else inputs.bias.slopes
    first = _first(options, inputs, blocks, q.shape[1])
    last_query = last_query_blocks(first, k.shape[1] // blocks.block_k)
    return PaddedInputs(q, k, v, slopes, inputs.q_offset[None], inputs.seeds, first, last_query)


def with_row_bounds(options: Options, inputs: Inputs) -> Inputs:
    """Returns the inputs with bounds of their rows where blocks may be skipped: computed once for several passes."""
    if not skips(options, inputs) or inputs.row_bounds is not None:
        return inputs
    return inputs._replace(row_bounds=causal_row_bounds(inputs.q, inputs.k, inputs.bias.slopes, inputs.q_offset))


def padded_residuals(
    residuals: Residuals, block_q: int, least_width: int
) -> tuple[Float[Array, "B t H d"], Float32[Array, "B H t"], Float32[Array, "B H t"]]:
    """Returns (gradient of the output, log-sum-exp, delta), padded so that padding queries have weights of 0."""
    widths = (0, 0), (0, 0), (0, -residuals.delta.shape[2] % block_q)
    return (
        _pad(residuals.d_out, block_q, least_width),
        jnp.pad(residuals.logsumexp, widths, constant_values=jnp.inf),
        jnp.pad(residuals.delta, widths),
    )


def key_range(
    causal: bool, num_keys: int, blocks: Blocks, start: Array, first: Array, key_blocks: int
) -> tuple[Array, Array]:
    """Returns (end of the key blocks that need no mask, end of all) for a block of queries from position `start` on.

    num_keys: before padding; first: the first key block it visits; key_blocks: their number, that of the padding too.
    """
    whole = num_keys // blocks.block_k
    if not causal:
        return jnp.maximum(first, whole), jnp.int32(key_blocks)
    end = jnp.minimum((start + blocks.block_q - 1) // blocks.block_k + 1, key_blocks)
    return jnp.clip(jnp.minimum((start + 1) // blocks.block_k, whole), first, end), end


def _pad(x: Float[Array, "B L H D"], block: int, least_width: int) -> Float[Array, "B l H d"]:
    width = max(least_width, 1 << (x.shape[3] - 1).bit_length())
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, width - x.shape[3])))


def skips(options: Options, inputs: Inputs) -> bool:
    """Returns whether blocks beyond the reach may be skipped."""
    return inputs.bias is not None and options.reach_tolerance is not None and options.causal


def _first(options: Options, inputs: Inputs, blocks: Blocks, queries: int) -> Int32[Array, "B H N"]:
    """Returns the first key block each block of queries visits, for all `queries`, those of the padding too."""
    batch, _, heads, _ = inputs.q.shape
    count = queries // blocks.block_q
    if not skips(options, inputs):
        return jnp.zeros((batch, heads, count), jnp.int32)
    sizes = options.reach_tolerance, blocks.block_q, blocks.block_k
    first = first_key_blocks(inputs.q, inputs.k, inputs.bias.slopes, inputs.q_offset, *sizes, inputs.row_bounds)
    return jnp.pad(first, ((0, 0), (0, 0), (0, count - first.shape[2])), mode="edge")
