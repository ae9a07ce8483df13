"""Which heads one pass of blockwise attention serves, and how their arrays are cut from the whole and put back.

On a CPU a pass serves one head of one batch row: its products are large enough for all cores, and it goes only as far as that
head's reach. On an accelerator a pass serves all of them, for there nothing is gained one after the other.

Queries are [B T K G D] (key heads K, query heads of each G), keys and values [B S K D], numbers of each query [B K G T]. Within
a pass they are [r g T D], [r S D] and [r g T], r being its (batch row, key head) pairs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.attention.options import Options
from alibi_jax.positions.bias import Bias


class Plan(NamedTuple):
    """What is fixed when the loops are traced."""

    options: Options
    num_queries: int  # before padding
    num_keys: int
    block_q: int
    block_k: int
    heads_at_once: tuple[int, int, int]  # batch rows, key heads, and query heads of each, that one pass serves


class At(NamedTuple):
    """The first batch row, key head and query head (of the key head's) of a pass."""

    row: Int[Array, ""]
    key_head: Int[Array, ""]
    group: Int[Array, ""]


def passes(plan: Plan, shape: tuple[int, ...]) -> At:
    """Every pass over queries of `shape` [B T K G D], as arrays to scan over."""
    starts = [jnp.arange(0, size, part) for size, part in zip((shape[0], *shape[2:4]), plan.heads_at_once, strict=True)]
    return At(*(x.ravel() for x in jnp.meshgrid(*starts, indexing="ij")))


def cut_queries(plan: Plan, at: At, x: Float[Array, "B T K G D"]) -> Float[Array, "r g T D"]:
    rows, key_heads, group = plan.heads_at_once
    x = jax.lax.dynamic_slice(
        x, (at.row, 0, at.key_head, at.group, 0), (rows, x.shape[1], key_heads, group, x.shape[4])
    )
    return x.transpose(0, 2, 3, 1, 4).reshape(rows * key_heads, group, x.shape[1], x.shape[4])


def cut_keys(plan: Plan, at: At, x: Float[Array, "B S K D"]) -> Float[Array, "r S D"]:
    rows, key_heads, _ = plan.heads_at_once
    x = jax.lax.dynamic_slice(x, (at.row, 0, at.key_head, 0), (rows, x.shape[1], key_heads, x.shape[3]))
    return x.swapaxes(1, 2).reshape(rows * key_heads, x.shape[1], x.shape[3])


def cut_numbers(plan: Plan, at: At, x: Array) -> Array:
    """[B K G n] to [r g n]."""
    x = jax.lax.dynamic_slice(x, (*at, 0), (*plan.heads_at_once, x.shape[3]))
    return x.reshape(-1, plan.heads_at_once[2], x.shape[3])


def cut_bias(plan: Plan, at: At, bias: Bias | None, num_groups: int) -> Bias | None:
    _, key_heads, group = plan.heads_at_once
    return None if bias is None else bias.select_heads(at.key_head * num_groups + at.group, key_heads * group)


def put_queries(
    plan: Plan, at: At, whole: Float[Array, "B T K G D"], part: Float[Array, "r g t D"], start: Array
) -> Array:
    part = part.reshape(*plan.heads_at_once, *part.shape[2:]).transpose(0, 3, 1, 2, 4).astype(whole.dtype)
    return jax.lax.dynamic_update_slice(whole, part, (at.row, start, at.key_head, at.group, jnp.zeros_like(start)))


def put_numbers(
    plan: Plan, at: At, whole: Float32[Array, "B K G T"], part: Float32[Array, "r g t"], start: Array
) -> Array:
    return jax.lax.dynamic_update_slice(whole, part.reshape(*plan.heads_at_once, -1), (*at, start))


def add_keys(
    plan: Plan, at: At, whole: Float32[Array, "B S K D"], part: Float32[Array, "r D S"]
) -> Float32[Array, "B S K D"]:
    rows, key_heads, _ = plan.heads_at_once
    part = part.reshape(rows, key_heads, *part.shape[1:]).transpose(0, 3, 1, 2)
    start = at.row, jnp.zeros_like(at.row), at.key_head, jnp.zeros_like(at.row)
    return jax.lax.dynamic_update_slice(whole, jax.lax.dynamic_slice(whole, start, part.shape) + part, start)


def add_bias(plan: Plan, at: At, whole: Any, part: Any, bias: Bias | None, num_groups: int) -> Any:
    """The gradient of the whole bias with a pass's share added; None where nobody asks for it."""
    if whole is None:
        return None
    _, put_back = jax.vjp(lambda bias: cut_bias(plan, at, bias, num_groups), bias)
    return jax.tree.map(jnp.add, whole, put_back(part)[0])


def for_heads(plan: Plan, x: Float32[Array, " heads"]) -> Float32[Array, "r g"]:
    """A number of each query head of a pass, for every batch row of it."""
    return jnp.tile(x, plan.heads_at_once[0]).reshape(-1, plan.heads_at_once[2])


def by_heads(plan: Plan, x: Float32[Array, "r g t s"]) -> Float32[Array, "b heads t s"]:
    return x.reshape(plan.heads_at_once[0], -1, *x.shape[2:])
