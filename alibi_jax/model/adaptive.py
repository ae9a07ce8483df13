"""Words into vectors and back, in bands: adaptive input (Baevski & Auli 2019) and adaptive softmax (Grave et al. 2017).

The vocabulary, in order of falling frequency, is cut at `adaptive_cutoffs`. Band b has vectors of width E / factor^b and a
projection to the width E of the model. The softmax of the head is over the words of band 0 and one class for every further
band; a word of band b has the probability of its class times that within its band. Without cutoffs there is one band of full
width and no projection: the plain embedding and softmax, the same code.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.config import ModelConfig
from alibi_jax.loss import Weights, log_probabilities, target_nats
from alibi_jax.sharding import shard


def xavier(gain: float, in_axis: int | tuple[int, ...], out_axis: int | tuple[int, ...]) -> nn.initializers.Initializer:
    """Uniform with variance gain^2 * 2 / (fan_in + fan_out) (Glorot & Bengio 2010)."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis)


class Band(NamedTuple):
    """Words first ... end - 1, with vectors of `width` channels; `suffix` ends the names of its parameters."""

    first: int
    end: int
    width: int
    suffix: str


def bands(config: ModelConfig) -> list[Band]:
    """The bands of the vocabulary; one, of full width, where there are no cutoffs."""
    edges = itertools.pairwise((0, *config.adaptive_cutoffs, config.vocab_size))
    suffixes = (f"_{b}" if config.adaptive_cutoffs else "" for b in itertools.count())
    return [
        Band(first, end, config.width // config.adaptive_factor**b, suffix)
        for b, ((first, end), suffix) in enumerate(zip(edges, suffixes, strict=False))
    ]


class Embedding(nn.Module):
    """A vector for each word: a row of its band's table, N(0, width^-0.5), projected to E; times sqrt(E) where the recipe
    says so."""

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        init, cut = nn.initializers.normal, bool(config.adaptive_cutoffs)
        self.tables = [
            self.param(f"table{b.suffix}", init(b.width**-0.5), (b.end - b.first, b.width), jnp.float32)
            for b in bands(config)
        ]
        self.projections = [
            self.param(f"projection{b.suffix}", xavier(1.0, 0, 1), (b.width, config.width), jnp.float32)
            for b in bands(config)
            if cut
        ]

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        if self.projections:
            parts = zip(bands(config), self.tables, self.projections, strict=True)
            x = sum(_rows(tokens, *part, dtype) for part in parts)
        else:
            x = self.tables[0][tokens].astype(dtype)
        return x * config.width**0.5 if config.scale_embedding else x


def _rows(tokens: Array, band: Band, table: Array, projection: Array, dtype: jnp.dtype) -> Float[Array, "B L E"]:
    """Projected vectors of the words of one band, zero for all others: static shapes, whatever the words are."""
    inside = (tokens >= band.first) & (tokens < band.end)
    rows = table[jnp.clip(tokens - band.first, 0, band.end - band.first - 1)]
    return jnp.where(inside[..., None], rows, 0).astype(dtype) @ projection.astype(dtype)


class Softmax(nn.Module):
    """From the last layer to logits, or to the nats of given targets; its words and projections may be the embedding's."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], embedding: Embedding, targets: Int[Array, "B L"] | None, train: bool
    ) -> Float32[Array, "B L V"] | Float32[Array, "B L"]:
        config, tables, tails = self.config, embedding.tables, embedding.projections[1:]
        cut = bands(config)
        if not config.tied_embedding:
            tables = [
                self.param(f"table{b.suffix}", xavier(1.0, 1, 0), (b.end - b.first, b.width), jnp.float32) for b in cut
            ]
        if not config.tied_projections:
            tails = [
                self.param(f"projection{b.suffix}", xavier(1.0, 1, 0), (b.width, config.width), jnp.float32)
                for b in cut[1:]
            ]
        classes = self.param("classes", xavier(1.0, 1, 0), (len(tails), config.width), jnp.float32) if tails else None
        drop = nn.Dropout(config.adaptive_dropout, deterministic=not train)
        x = drop(x)
        features = [x, *(drop(jnp.einsum("ble,we->blw", x, tail.astype(x.dtype))) for tail in tails)]
        weights = jax.tree.map(lambda table: table.astype(x.dtype), Weights(tables, classes))
        if targets is None:
            return shard(log_probabilities(features, weights), "batch", "length", "vocab")
        return target_nats(features, targets, weights, logits_mib=config.logits_mib)
