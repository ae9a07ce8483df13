"""What the TPU kernels make of a block of queries and keys: scores to the base 2, and the loop over the blocks they visit.

Scores are held transposed, [keys, queries]: one number per query (running maximum, sum, log-sum-exp) is then a row along the
lanes, and no step needs another layout. Imported with the kernels, when they are traced.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float32, Int32

from alibi_jax.attention.dropout import keep_scale
from alibi_jax.attention.tpu_blocks import Kernel

LOG2E = math.log2(math.e)  # exp(x) = exp2(LOG2E x), and the hardware has exp2


class Head(NamedTuple):
    """The scalars of a query head."""

    slope: Float32[Array, ""]
    q_offset: Int32[Array, ""]  # the position of the first query
    seed: tuple[Array, Array]


class Block(NamedTuple):
    """A block of a head's scores: the positions its queries and keys begin at."""

    head: Head
    q_start: Int32[Array, ""]
    k_start: Int32[Array, ""]


def block_of(kernel: Kernel, head: Head, i: Array, j: Array) -> Block:
    """Returns the scores of block i of queries with block j of keys."""
    return Block(head, head.q_offset + i * kernel.block_q, j * kernel.block_k)


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Float32[Array, "rows columns"]:
    """Returns the product over dimension contract[0] of a and contract[1] of b, summed in float32."""
    precision = "highest" if a.dtype == jnp.float32 else "default"
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def last_key_block(kernel: Kernel, q_offset: Array, i: Array, key_blocks: int) -> Int32[Array, ""]:
    """Returns the last key block that queries of block i may see."""
    if not kernel.options.causal:
        return jnp.int32(key_blocks - 1)
    last = jax.lax.div(
        q_offset + (i + 1) * kernel.block_q - 1, jnp.int32(kernel.block_k)
    )  # of numbers not below 0: // takes longer
    return jnp.minimum(last, key_blocks - 1)


def first_query_block(kernel: Kernel, q_offset: Array, j: Array) -> Int32[Array, ""]:
    """Returns the first block of queries that may see keys of block j; past the last one where none may."""
    if not kernel.options.causal:
        return jnp.int32(0)
    return jax.lax.div(jnp.maximum(j * kernel.block_k - q_offset, 0), jnp.int32(kernel.block_q))


def needs_mask(kernel: Kernel, block: Block) -> Bool[Array, ""]:
    """Returns whether some key of the block is padding or after some query."""
    end = block.k_start + kernel.block_k
    padded = end > kernel.num_keys
    return padded | (end - 1 > block.q_start) if kernel.options.causal else padded


def _distances(kernel: Kernel, block: Block) -> Int32[Array, "S T"]:
    shape = kernel.block_k, kernel.block_q
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 0))
    return (row - column) + (block.q_start - block.k_start)


def _reference(kernel: Kernel, block: Block) -> Int32[Array, ""]:
    """Returns the position from which `bias_by_key` counts for a block of queries: of the last key that it may see."""
    return jnp.minimum(block.q_start + kernel.block_q, kernel.num_keys) - 1


def row_shift(kernel: Kernel, block: Block) -> Float32[Array, "1 T"] | float:
    """Returns by how much the exponents of a query are larger than its scores to the base 2.

    The softmax does not see what is added to a whole row. So all queries of a block have the bias of one position: a number
    a key, not a score.
    """
    if not kernel.bias_by_key:
        return 0.0
    rows = block.q_start + jax.lax.broadcasted_iota(jnp.int32, (1, kernel.block_q), 1)
    return (LOG2E * block.head.slope) * (rows - _reference(kernel, block)).astype(jnp.float32)


def exponents(kernel: Kernel, block: Block, q: Array, k: Array, masked: bool) -> Float32[Array, "S T"]:
    """Returns what exp2 makes weights of: scores to the base 2, plus the row's shift; -inf where a key is padding or after the
    query, which needs no look where not `masked`."""
    keys = jax.lax.broadcasted_iota(jnp.int32, (kernel.block_k, 1), 0)
    biases = key_biases(block.head, keys) + first_bias(kernel, block) if kernel.bias_by_key else None
    return biased(kernel, block, dot(k, q, (1, 1)) * scale(q.shape[1]), biases, masked)


def scale(width: int) -> float:
    """Returns the factor of products that makes them scores to the base 2."""
    return width**-0.5 * LOG2E


def key_biases(head: Head, keys: Int32[Array, "S lanes"]) -> Float32[Array, "S lanes"]:
    """Returns the biases of a block's keys, to the base 2, counted from its first."""
    return (LOG2E * head.slope) * keys.astype(jnp.float32)


def first_bias(kernel: Kernel, block: Block) -> Float32[Array, ""]:
    """Returns the bias of the block's first key, to the base 2."""
    return (LOG2E * block.head.slope) * (block.k_start - _reference(kernel, block)).astype(jnp.float32)


def biased(
    kernel: Kernel, block: Block, scores: Float32[Array, "S T"], biases: Array | None, masked: bool
) -> Float32[Array, "S T"]:
    """Returns scores to the base 2 with their biases added, those by key [S, 1] or [S, T] (None: computed for each score)."""
    if biases is None:
        biases = (-LOG2E * block.head.slope) * jnp.abs(_distances(kernel, block)).astype(jnp.float32)
    scores = scores + biases
    return jnp.where(_seen(kernel, block), scores, -jnp.inf) if masked else scores


def _seen(kernel: Kernel, block: Block) -> Bool[Array, "S T"]:
    """Returns which keys are neither padding nor after the query: one comparison a score, of a column with a row."""
    last_key = kernel.num_keys - 1 - block.k_start
    if kernel.options.causal:
        queries = jax.lax.broadcasted_iota(jnp.int32, (1, kernel.block_q), 1) + (block.q_start - block.k_start)
        last_key = jnp.minimum(queries, last_key)
    return jax.lax.broadcasted_iota(jnp.int32, (kernel.block_k, 1), 0) <= last_key


def keep(kernel: Kernel, block: Block) -> Float32[Array, "S T"]:
    """Returns the factors of the weights by dropout."""
    shape = kernel.block_k, kernel.block_q
    q_positions = block.q_start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    k_positions = block.k_start + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return keep_scale(block.head.seed, kernel.options.dropout_rate, q_positions, k_positions)


class Visits(NamedTuple):
    """The blocks that one program visits, one after the other, named by cursors: any tree of scalars.

    Programs that run one after the other pass the first copies on: the last visit of one begins those of the next.
    """

    first: Any
    any: Bool[Array, ""]  # whether there is a visit at all
    begun: Bool[Array, ""]  # whether the program before began the copies of the first
    # the cursor after one, whether it is another visit of this program, and whether it is a visit at all: of this program, or
    # else the first of the next one
    after: Callable[[Any], tuple[Any, Array, Array]]
    copies: Callable[[Any, Array], list]  # the copies of a visit's blocks to buffers 0 or 1


def visit_all(visits: Visits, buffer: Any, visit: Callable[[Any, Array], None]) -> None:
    """Calls visit(cursor, buffer's number) for every visit, while the blocks of the next are copied to the other buffer.

    buffer: SMEM [1], in which of the two the next visit's blocks lie; it outlasts a program, and the first one sets it to 0.
    """

    def begin(cursor: Any, number: Array) -> None:
        for copy in visits.copies(cursor, number):
            copy.start()

    pl.when(visits.any & ~visits.begun)(lambda: begin(visits.first, buffer[0]))

    def step(carry: tuple) -> tuple:
        cursor, number, _ = carry
        following, here, anywhere = visits.after(cursor)
        pl.when(anywhere)(lambda: begin(following, 1 - number))
        for copy in visits.copies(cursor, number):
            copy.wait()
        visit(cursor, number)
        return following, 1 - number, here

    _, buffer[0], _ = jax.lax.while_loop(lambda carry: carry[2], step, (visits.first, buffer[0], visits.any))


def copy_to(source: Any, target: Any, arrived: Any) -> Any:
    """Returns a copy from HBM to VMEM that can be started and waited for at a semaphore."""
    return pltpu.make_async_copy(source, target, arrived)
