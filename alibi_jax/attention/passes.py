"""Which heads one pass of blockwise attention serves, and how their arrays are cut from the whole and put back.

On a CPU a pass serves one head of one batch row: its products are large enough for all cores, and it goes only as far as that
head's reach. On an accelerator a pass serves all of them, because one after the other would gain nothing there.

Queries are [B T K G D] (key heads K, query heads of each G), keys and values [B S K D], numbers of each query [B K G T]. Within
a pass they are [r g T D], [r S D] and [r g T], r counting its (batch row, key head) pairs. Lengths are padded to whole blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32, UInt32

from alibi_jax.attention.blocks import block_size
from alibi_jax.attention.implementation import Inputs, Options, RowBounds
from alibi_jax.attention.reach import score_bounds
from alibi_jax.positions.bias import Bias

MULTIPLE = 16  # a block is a multiple of it: whole tiles of bfloat16 on a TPU, and little padding of short inputs


class Layout(NamedTuple):
    """The sizes that are fixed when the loops are traced."""

    options: Options
    num_queries: int  # before padding
    num_keys: int
    block_q: int
    block_k: int
    heads_at_once: tuple[int, int, int]  # batch rows, key heads, and query heads of each, that one pass serves


def layout_of(options: Options, inputs: Inputs, platform: str) -> Layout:
    """Returns the sizes of blocks and passes on a platform ("cpu", "gpu" or "tpu")."""
    batch, queries, heads, _ = inputs.q.shape
    keys, key_heads = inputs.k.shape[1:3]
    at_once = (1, 1, 1) if platform == "cpu" else (batch, key_heads, heads // key_heads)
    return Layout(options, queries, keys, block_size(queries, MULTIPLE), block_size(keys, MULTIPLE), at_once)


class GroupedInputs(NamedTuple):
    """`Inputs` padded to whole blocks, the query heads grouped by their key head."""

    q: Float[Array, "B T K G D"]
    k: Float[Array, "B S K D"]
    v: Float[Array, "B S K D"]
    bias: Bias | None
    q_offset: Int32[Array, ""]
    seeds: UInt32[Array, "B K G 2"]
    row_bounds: RowBounds  # [B K G T]


def grouped_inputs(layout: Layout, inputs: Inputs) -> GroupedInputs:
    """Returns the inputs padded and grouped, with bounds of the rows' scores."""
    bounds = inputs.row_bounds
    if bounds is None:
        scores = score_bounds(inputs.q, inputs.k, inputs.q_offset, layout.options.causal)
        bounds = RowBounds(scores, jnp.full_like(scores, -jnp.inf))
    key_heads = inputs.k.shape[2]
    return GroupedInputs(
        group_queries(layout, key_heads, inputs.q),
        *(_pad(x, layout.block_k, 1) for x in (inputs.k, inputs.v)),
        inputs.bias,
        inputs.q_offset,
        inputs.seeds.reshape(inputs.q.shape[0], key_heads, -1, 2),
        RowBounds(*(group_numbers(layout, key_heads, x) for x in bounds)),
    )


def _pad(x: Array, block: int, axis: int, value: float = 0.0) -> Array:
    widths = [(0, -size % block if dimension == axis else 0) for dimension, size in enumerate(x.shape)]
    return jnp.pad(x, widths, constant_values=value)


def group_queries(layout: Layout, key_heads: int, x: Float[Array, "B T H D"]) -> Float[Array, "B t K G D"]:
    """Returns an array like the queries, padded, its heads grouped by their key head."""
    return _pad(x, layout.block_q, 1).reshape(x.shape[0], -1, key_heads, x.shape[2] // key_heads, x.shape[3])


def group_numbers(
    layout: Layout, key_heads: int, x: Float32[Array, "B H T"], padding: float = 0.0
) -> Float32[Array, "B K G t"]:
    """Returns numbers of each query, padded with `padding`, their heads grouped by their key head."""
    return _pad(x, layout.block_q, 2, padding).reshape(x.shape[0], key_heads, x.shape[1] // key_heads, -1)


class Offsets(NamedTuple):
    """The first batch row, key head, and query head (counted within the key head's group) of a pass."""

    row: Int[Array, ""]
    key_head: Int[Array, ""]
    query_head: Int[Array, ""]


def pass_offsets(layout: Layout, shape: tuple[int, ...]) -> Offsets:
    """Returns the offsets of every pass over queries of `shape` [B T K G D], as arrays to scan over."""
    starts = [
        jnp.arange(0, size, step) for size, step in zip((shape[0], *shape[2:4]), layout.heads_at_once, strict=True)
    ]
    return Offsets(*(x.ravel() for x in jnp.meshgrid(*starts, indexing="ij")))


def cut_queries(layout: Layout, offsets: Offsets, x: Float[Array, "B T K G D"]) -> Float[Array, "r g T D"]:
    """Returns a pass's rows and heads of an array like the queries."""
    rows, key_heads, group = layout.heads_at_once
    start = offsets.row, 0, offsets.key_head, offsets.query_head, 0
    x = jax.lax.dynamic_slice(x, start, (rows, x.shape[1], key_heads, group, x.shape[4]))
    return x.transpose(0, 2, 3, 1, 4).reshape(rows * key_heads, group, x.shape[1], x.shape[4])


def cut_keys(layout: Layout, offsets: Offsets, x: Float[Array, "B S K D"]) -> Float[Array, "r S D"]:
    """Returns a pass's rows and heads of an array like the keys."""
    rows, key_heads, _ = layout.heads_at_once
    x = jax.lax.dynamic_slice(x, (offsets.row, 0, offsets.key_head, 0), (rows, x.shape[1], key_heads, x.shape[3]))
    return x.swapaxes(1, 2).reshape(rows * key_heads, x.shape[1], x.shape[3])


def cut_numbers(layout: Layout, offsets: Offsets, x: Array) -> Array:
    """Returns a pass's rows and heads [r g n] of numbers [B K G n]."""
    x = jax.lax.dynamic_slice(x, (*offsets, 0), (*layout.heads_at_once, x.shape[3]))
    return x.reshape(-1, layout.heads_at_once[2], x.shape[3])


def cut_bias(layout: Layout, offsets: Offsets, bias: Bias | None, num_groups: int) -> Bias | None:
    """Returns the bias of a pass's query heads; each key head serves `num_groups` of them in all."""
    _, key_heads, group = layout.heads_at_once
    first = offsets.key_head * num_groups + offsets.query_head
    return None if bias is None else bias.select_heads(first, key_heads * group)


def put_queries(
    layout: Layout, offsets: Offsets, whole: Float[Array, "B T K G D"], block: Float[Array, "r g t D"], start: Array
) -> Float[Array, "B T K G D"]:
    """Returns `whole` with a pass's block of queries from `start` on replaced."""
    block = block.reshape(*layout.heads_at_once, *block.shape[2:]).transpose(0, 3, 1, 2, 4).astype(whole.dtype)
    first = offsets.row, start, offsets.key_head, offsets.query_head, jnp.zeros_like(start)
    return jax.lax.dynamic_update_slice(whole, block, first)


def put_numbers(
    layout: Layout, offsets: Offsets, whole: Float32[Array, "B K G T"], block: Float32[Array, "r g t"], start: Array
) -> Float32[Array, "B K G T"]:
    """Returns `whole` with a pass's numbers of the queries from `start` on replaced."""
    return jax.lax.dynamic_update_slice(whole, block.reshape(*layout.heads_at_once, -1), (*offsets, start))


def add_keys(
    layout: Layout, offsets: Offsets, whole: Float32[Array, "B S K D"], gradient: Float32[Array, "r D S"]
) -> Float32[Array, "B S K D"]:
    """Returns `whole` with a pass's gradient of its keys added."""
    rows, key_heads, _ = layout.heads_at_once
    gradient = gradient.reshape(rows, key_heads, *gradient.shape[1:]).transpose(0, 3, 1, 2)
    start = offsets.row, jnp.zeros_like(offsets.row), offsets.key_head, jnp.zeros_like(offsets.row)
    summed = jax.lax.dynamic_slice(whole, start, gradient.shape) + gradient
    return jax.lax.dynamic_update_slice(whole, summed, start)


def add_bias(layout: Layout, offsets: Offsets, whole: Any, gradient: Any, bias: Bias | None, num_groups: int) -> Any:
    """Returns the gradient of the whole bias with that of a pass added; None where nothing asks for it."""
    if whole is None:
        return None
    _, put_back = jax.vjp(lambda bias: cut_bias(layout, offsets, bias, num_groups), bias)
    return jax.tree.map(jnp.add, whole, put_back(gradient)[0])


def for_heads(layout: Layout, x: Float32[Array, " heads"]) -> Float32[Array, "r g"]:
    """Returns a number of each query head of a pass, repeated for every batch row of it."""
    return jnp.tile(x, layout.heads_at_once[0]).reshape(-1, layout.heads_at_once[2])


def by_heads(layout: Layout, x: Float32[Array, "r g t s"]) -> Float32[Array, "b heads t s"]:
    """Returns a pass's scores with the query heads of all its key heads in one dimension."""
    return x.reshape(layout.heads_at_once[0], -1, *x.shape[2:])
