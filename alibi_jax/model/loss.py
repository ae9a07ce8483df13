"""The loss of the last layer's features without [B, L, V] logits: an adaptive softmax, computed a chunk of tokens at a time.

Losses travel as (sum of nats, number of tokens); a mean is made once, at the end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.sharding import local_size, shard, token_shards

# Tokens in a chunk of a tail cluster. Its own tokens are sorted to the front, so that small chunks skip most of the others.
CLUSTER_TOKENS = 256


class Weights(NamedTuple):
    """The weights of the softmax: a table [n, width] per cluster, a class row [K, E] per cluster but the first; and what all
    logits are multiplied by."""

    tables: list[Array]
    classes: Array | None
    multiplier: float | Float32[Array, ""] = 1.0


def target_nats(
    features: list[Array], targets: Int[Array, "B L"], weights: Weights, *, logits_mib: int
) -> Float32[Array, "B L"]:
    """Returns -log p(target), never holding more than `logits_mib` MiB of logits (and of their gradients) on a device.

    features: the inputs of each cluster's logits, [B, L, width]. The head is a softmax over cluster 0 and one class per
    further cluster: a token of cluster 0 has its probability there, any other that of its class times that within its cluster.
    NaN for a target outside the vocabulary.
    """
    # a device's tokens become one row, so that none has to move
    batch, length = (math.gcd(size, shards) for size, shards in zip(targets.shape, token_shards(), strict=True))

    def rows(x: Array) -> Array:
        blocks = x.reshape(batch, x.shape[0] // batch, length, -1, *x.shape[2:]).swapaxes(1, 2)
        return shard(blocks.reshape(batch * length, -1, *x.shape[2:]), "tokens", *["replicated"] * (x.ndim - 1))

    def put_back(x: Array) -> Array:
        return x.reshape(batch, length, targets.shape[0] // batch, -1).swapaxes(1, 2).reshape(targets.shape)

    features = [rows(x) for x in features]
    tokens = rows(targets)
    sizes = [len(table) for table in weights.tables]
    firsts = [sum(sizes[:b]) for b in range(len(sizes))]
    fitting = [max(1, logits_mib * 2**20 // (4 * local_size(size, "vocab"))) for size in sizes]

    def head(x: Array, tokens: Array) -> Array:
        return _head_nats(x, tokens, weights, firsts[1:])

    nats = _map_chunks(head, (features[0], tokens), fitting[0])
    for x, table, first, chunk in zip(features[1:], weights.tables[1:], firsts[1:], fitting[1:], strict=True):
        nats = nats + _cluster_nats(x, tokens - first, table, weights.multiplier, min(chunk, CLUSTER_TOKENS))
    nats = jnp.where((tokens >= 0) & (tokens < sum(sizes)), nats, jnp.nan)
    return shard(put_back(nats), "batch", "length")


def _map_chunks(function: Callable, arrays: tuple[Array, ...], chunk: int) -> Float32[Array, "G n"]:
    """Returns function(*arrays) [G, n], computed `chunk` of the n at a time and recomputed in the backward pass, so that only
    the logits of one chunk are ever held."""
    total = arrays[0].shape[1]
    count = -(-total // chunk)
    if count == 1:
        return function(*arrays)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * chunk - total)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(-1, count, chunk, *x.shape[2:]), 1, 0)

    recomputed = jax.checkpoint(lambda chunks: function(*chunks), prevent_cse=False)
    nats = jax.lax.map(recomputed, tuple(map(split, arrays)))
    return jnp.moveaxis(nats, 0, 1).reshape(-1, count * chunk)[:, :total]


def _logits(
    x: Float[Array, "B T w"],
    table: Float[Array, "n w"],
    multiplier: float | Float32[Array, ""],
    placed: tuple[str, str] = ("tokens", "replicated"),
) -> Float32[Array, "B T n"]:
    # cast here and not outside the chunks: their gradients are then summed in the table's float32
    logits = multiplier * jnp.matmul(x, table.astype(x.dtype).T, preferred_element_type=jnp.float32)
    return shard(logits, *placed, "vocab")


def _class_logits(x: Float[Array, "B T E"], weights: Weights) -> Float32[Array, "B T K"]:
    classes = weights.classes.astype(x.dtype)
    return weights.multiplier * jnp.einsum("ble,ke->blk", x, classes, preferred_element_type=jnp.float32)


def _pick(logits: Float32[Array, "B T n"], tokens: Int[Array, "B T"]) -> Float32[Array, "B T"]:
    clipped = jnp.clip(tokens, 0, logits.shape[-1] - 1)
    return jnp.take_along_axis(logits, clipped[..., None], axis=-1)[..., 0]


def _head_nats(
    x: Float[Array, "G T E"], tokens: Int[Array, "G T"], weights: Weights, firsts: list[int]
) -> Float32[Array, "G T"]:
    """Returns -log p of the tokens of cluster 0, and of the class of all others; firsts: each further cluster's first token."""
    logits = _logits(x, weights.tables[0], weights.multiplier)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = _pick(logits, tokens)
    if weights.classes is not None:
        classes = _class_logits(x, weights)
        normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(classes, axis=-1))
        cluster = sum((tokens >= first).astype(jnp.int32) for first in firsts)
        picked = jnp.where(cluster > 0, _pick(classes, cluster - 1), picked)
    return normaliser - picked


def _cluster_nats(
    x: Float[Array, "G n w"],
    tokens: Int[Array, "G n"],
    table: Float[Array, "m w"],
    multiplier: float | Float32[Array, ""],
    chunk: int,
) -> Float32[Array, "G n"]:
    """Returns -log p of each token within its cluster, counted from the cluster's first; 0 for tokens of other clusters.

    Shapes are static, and yet the work is that of the cluster's own tokens: they are sorted to the front, and chunks that hold
    none are not computed. Of WikiText's tokens some 5 in 100 are in the last cluster.
    """

    def chunk_nats(x: Array, tokens: Array, inside: Array) -> Array:
        def computed() -> Array:
            logits = _logits(x, table, multiplier)
            return jnp.where(inside, jax.nn.logsumexp(logits, axis=-1) - _pick(logits, tokens), 0.0)

        return jax.lax.cond(inside.any(), computed, lambda: jnp.zeros(tokens.shape, jnp.float32))

    inside = (tokens >= 0) & (tokens < len(table))
    order = jnp.argsort(~inside, axis=1, stable=True)
    sorted_x = jnp.take_along_axis(x, order[..., None], axis=1)
    sorted_tokens, sorted_inside = (jnp.take_along_axis(array, order, axis=1) for array in (tokens, inside))
    nats = _map_chunks(chunk_nats, (sorted_x, sorted_tokens, sorted_inside), chunk)
    return jnp.take_along_axis(nats, jnp.argsort(order, axis=1), axis=1)


def log_probabilities(features: list[Array], weights: Weights) -> Float32[Array, "B L V"]:
    """Returns log p of every token; with a single cluster its logits, which a softmax has yet to normalise."""
    placed = "batch", "length"
    tables = zip(features, weights.tables, strict=True)
    logits, *tails = (_logits(x, table, weights.multiplier, placed) for x, table in tables)
    if weights.classes is None:
        return logits
    classes = _class_logits(features[0], weights)
    head = jax.nn.log_softmax(jnp.concatenate([logits, classes], axis=-1), axis=-1)
    size = logits.shape[-1]
    further = [jax.nn.log_softmax(tail, axis=-1) + head[..., size + b, None] for b, tail in enumerate(tails)]
    return jnp.concatenate([head[..., :size], *further], axis=-1)
