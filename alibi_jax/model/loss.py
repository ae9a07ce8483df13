"""From the last layer to nats, without [B, L, V] logits: a softmax over bands of words, some of the tokens at a time.

Losses travel as (sum of nats, number of tokens); a mean is made once, at the end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.sharding import local_size, shard, token_ways

BAND_TOKENS = 256  # of a further band at once: those of its own words come first, and parts without any are passed over


class Weights(NamedTuple):
    """What makes logits: a table [n, width] for each band, and a row [K, E] for the class of every band but the first."""

    tables: list[Array]
    classes: Array | None


def target_nats(
    features: list[Array], targets: Int[Array, "B L"], weights: Weights, *, logits_mib: int
) -> Float32[Array, "B L"]:
    """-log p(target), never holding more than `logits_mib` of logits (and of their gradients) on a device.

    features: what each band's logits are made from, [B, L, width]. A word of band 0 has its probability in the head, which is
    over band 0 and one class for every further band; any other that of its class times that within its band.
    """
    # a device's tokens are one row, so that none has to move
    batch, length = (math.gcd(size, ways) for size, ways in zip(targets.shape, token_ways(), strict=True))

    def rows(x: Array) -> Array:
        parts = x.reshape(batch, x.shape[0] // batch, length, -1, *x.shape[2:]).swapaxes(1, 2)
        return shard(parts.reshape(batch * length, -1, *x.shape[2:]), "tokens", *["replicated"] * (x.ndim - 1))

    def put_back(x: Array) -> Array:
        return x.reshape(batch, length, targets.shape[0] // batch, -1).swapaxes(1, 2).reshape(targets.shape)

    features, words = [rows(x) for x in features], rows(targets)
    sizes = [len(table) for table in weights.tables]
    firsts = [sum(sizes[:b]) for b in range(len(sizes))]
    fitting = [max(1, logits_mib * 2**20 // (4 * local_size(size, "vocab"))) for size in sizes]

    def head(x: Array, words: Array) -> Array:
        return _head_nats(x, words, weights, firsts[1:])

    nats = in_parts(head, (features[0], words), fitting[0])
    for x, table, first, tokens in zip(features[1:], weights.tables[1:], firsts[1:], fitting[1:], strict=True):
        nats = nats + _band_nats(x, words - first, table, min(tokens, BAND_TOKENS))
    nats = jnp.where((words >= 0) & (words < sum(sizes)), nats, jnp.nan)  # no word of the vocabulary
    return shard(put_back(nats), "batch", "length")


def in_parts(function: Callable, arrays: tuple[Array, ...], tokens: int) -> Float32[Array, "G n"]:
    """function(*arrays) [G, n], so many of the n at a time; each part is computed again in the backward pass, so that the
    logits of one part at most are ever held."""
    total = arrays[0].shape[1]
    count = -(-total // tokens)
    if count == 1:
        return function(*arrays)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * tokens - total)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(-1, count, tokens, *x.shape[2:]), 1, 0)

    part = jax.checkpoint(lambda part: function(*part), prevent_cse=False)
    nats = jax.lax.map(part, tuple(map(split, arrays)))
    return jnp.moveaxis(nats, 0, 1).reshape(-1, count * tokens)[:, :total]


def _logits(
    x: Float[Array, "B T w"], table: Float[Array, "n w"], placed: tuple[str, str] = ("tokens", "replicated")
) -> Float32[Array, "B T n"]:
    # cast here and not outside the parts: the gradients of all parts are then summed in the table's float32
    logits = jnp.matmul(x, table.astype(x.dtype).T, preferred_element_type=jnp.float32)
    return shard(logits, *placed, "vocab")


def _class_logits(x: Float[Array, "B T E"], classes: Float[Array, "K E"]) -> Float32[Array, "B T K"]:
    return jnp.einsum("ble,ke->blk", x, classes.astype(x.dtype), preferred_element_type=jnp.float32)


def _picked(logits: Float32[Array, "B T n"], words: Int[Array, "B T"]) -> Float32[Array, "B T"]:
    inside = jnp.clip(words, 0, logits.shape[-1] - 1)
    return jnp.take_along_axis(logits, inside[..., None], axis=-1)[..., 0]


def _head_nats(
    x: Float[Array, "G T E"], words: Int[Array, "G T"], weights: Weights, firsts: list[int]
) -> Float32[Array, "G T"]:
    """-log p of the words of band 0, and of the class of all others; firsts: the first word of each further band."""
    logits = _logits(x, weights.tables[0])
    normaliser, picked = jax.nn.logsumexp(logits, axis=-1), _picked(logits, words)
    if weights.classes is not None:
        classes = _class_logits(x, weights.classes)
        normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(classes, axis=-1))
        band = sum((words >= first).astype(jnp.int32) for first in firsts)
        picked = jnp.where(band > 0, _picked(classes, band - 1), picked)
    return normaliser - picked


def _band_nats(
    x: Float[Array, "G n w"], words: Int[Array, "G n"], table: Float[Array, "m w"], tokens: int
) -> Float32[Array, "G n"]:
    """-log p of each word within its band, counted from the band's first; 0 for words of other bands.

    Shapes are static and yet the work is that of the band's own words: they are put first, and parts of so many `tokens` that
    hold none are not computed. Of WikiText's words some 5 in 100 are in the last band.
    """

    def part(x: Array, words: Array, inside: Array) -> Array:
        def computed() -> Array:
            logits = _logits(x, table)
            return jnp.where(inside, jax.nn.logsumexp(logits, axis=-1) - _picked(logits, words), 0.0)

        return jax.lax.cond(inside.any(), computed, lambda: jnp.zeros(words.shape, jnp.float32))

    inside = (words >= 0) & (words < len(table))
    order = jnp.argsort(~inside, axis=1, stable=True)
    sorted_x = jnp.take_along_axis(x, order[..., None], axis=1)
    sorted_words, sorted_inside = (jnp.take_along_axis(array, order, axis=1) for array in (words, inside))
    nats = in_parts(part, (sorted_x, sorted_words, sorted_inside), tokens)
    return jnp.take_along_axis(nats, jnp.argsort(order, axis=1), axis=1)


def log_probabilities(features: list[Array], weights: Weights) -> Float32[Array, "B L V"]:
    """log p of every word where there are several bands; with one band its logits, which a softmax has yet to normalise."""
    words, *tails = (_logits(x, table, ("batch", "length")) for x, table in zip(features, weights.tables, strict=True))
    if weights.classes is None:
        return words
    classes = _class_logits(features[0], weights.classes)
    head = jax.nn.log_softmax(jnp.concatenate([words, classes], axis=-1), axis=-1)
    size = words.shape[-1]
    parts = [jax.nn.log_softmax(tail, axis=-1) + head[..., size + b, None] for b, tail in enumerate(tails)]
    return jnp.concatenate([head[..., :size], *parts], axis=-1)
