"""Words into vectors and back, in bands: adaptive input (Baevski & Auli 2019) and adaptive softmax (Grave et al. 2017).

The vocabulary, in order of falling frequency, is cut at `adaptive_cutoffs`. Band b has vectors of width E / factor^b and a
projection to the width E of the model. The softmax of the head is over the words of band 0 and one class for every further
band; a word of band b has the probability of its class times that within its band. Without cutoffs there is one band of full
width and no projection: the plain embedding and softmax, the same code.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.config import Band, ModelConfig
from alibi_jax.model.loss import Weights, log_probabilities, target_nats
from alibi_jax.sharding import shard


def xavier(gain: float, in_axis: int | tuple[int, ...], out_axis: int | tuple[int, ...]) -> nn.initializers.Initializer:
    """Uniform with variance gain^2 * 2 / (fan_in + fan_out) (Glorot & Bengio 2010)."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis)


def named(name: str, config: ModelConfig, b: int) -> str:
    """The name of a parameter of band b; without cutoffs there is one band, and no number."""
    return f"{name}_{b}" if config.adaptive_cutoffs else name


class Embedding(nn.Module):
    """A vector for each word: a row of its band's table, N(0, width^-0.5), projected to E; times sqrt(E) where the recipe
    says so. NaN for ids outside the vocabulary, which would else read another word's row."""

    config: ModelConfig

    def setup(self) -> None:
        config, normal = self.config, nn.initializers.normal
        self.tables = [
            self.param(
                named("table", config, b), normal(band.width**-0.5), (band.end - band.first, band.width), jnp.float32
            )
            for b, band in enumerate(config.bands)
        ]
        self.projections = [
            self.param(f"projection_{b}", xavier(1.0, 0, 1), (band.width, config.width), jnp.float32)
            for b, band in enumerate(config.bands)
            if config.adaptive_cutoffs
        ]

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        if self.projections:
            parts = zip(config.bands, self.tables, self.projections, strict=True)
            x = sum(_rows(tokens, *part, dtype) for part in parts)
        else:
            x = self.tables[0][tokens].astype(dtype)
        x = jnp.where(((tokens >= 0) & (tokens < config.vocab_size))[..., None], x, jnp.nan)
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
        if not config.tied_embedding:
            tables = [
                self.param(
                    named("table", config, b), xavier(1.0, 1, 0), (band.end - band.first, band.width), jnp.float32
                )
                for b, band in enumerate(config.bands)
            ]
        if not config.tied_projections:
            tails = [
                self.param(f"projection_{b}", xavier(1.0, 1, 0), (band.width, config.width), jnp.float32)
                for b, band in enumerate(config.bands)
                if b > 0
            ]
        classes = self.param("classes", xavier(1.0, 1, 0), (len(tails), config.width), jnp.float32) if tails else None
        drop = nn.Dropout(config.adaptive_dropout, deterministic=not train)
        x = drop(x)
        features = [x, *(drop(jnp.einsum("ble,we->blw", x, tail.astype(x.dtype))) for tail in tails)]
        weights = Weights(tables, classes)
        if targets is None:
            return shard(log_probabilities(features, weights), "batch", "length", "vocab")
        return target_nats(features, targets, weights, logits_mib=config.logits_mib)
