"""Tokens to vectors and back, in clusters: adaptive input (Baevski & Auli 2019), adaptive softmax (Grave et al. 2017).

The vocabulary, in order of falling frequency, is cut at `adaptive_cutoffs`. Cluster b has vectors of width E / factor^b and a
projection to the model's width E. The softmax of the head is over the tokens of cluster 0 and one class per further cluster; a
token of cluster b has the probability of its class times that within its cluster. Without cutoffs there is one cluster of full
width and no projection: the plain embedding and softmax, by the same code.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int

from alibi_jax.config import Cluster, ModelConfig
from alibi_jax.model.loss import Weights, log_probabilities, target_nats
from alibi_jax.sharding import shard


def xavier(gain: float, in_axis: int | tuple[int, ...], out_axis: int | tuple[int, ...]) -> nn.initializers.Initializer:
    """Returns an initializer, uniform with variance gain^2 * 2 / (fan_in + fan_out) (Glorot & Bengio 2010)."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform", in_axis=in_axis, out_axis=out_axis)


def _name(name: str, config: ModelConfig, b: int) -> str:
    """Returns the name of a parameter of cluster b; without cutoffs there is one cluster, and no number."""
    return f"{name}_{b}" if config.adaptive_cutoffs else name


class Embedding(nn.Module):
    """A vector for each token: a row of its cluster's table, N(0, width^-0.5), projected to E, times the config's
    multiplier. NaN for ids outside the vocabulary, which would otherwise read another token's row."""

    config: ModelConfig

    def setup(self) -> None:
        """Creates the table and, with cutoffs, the projection of each cluster."""
        config = self.config
        kept, normal = jnp.dtype(config.parameter_dtype), nn.initializers.normal
        self.tables = [
            self.param(_name("table", config, b), normal(cluster.width**-0.5), (cluster.size, cluster.width), kept)
            for b, cluster in enumerate(config.clusters)
        ]
        self.projections = [
            self.param(f"projection_{b}", xavier(1.0, 0, 1), (cluster.width, config.width), kept)
            for b, cluster in enumerate(config.clusters)
            if config.adaptive_cutoffs
        ]

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        """Returns the vectors of `tokens`, in the compute dtype."""
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        if self.projections:
            clusters = zip(config.clusters, self.tables, self.projections, strict=True)
            x = sum(_rows(tokens, *cluster, dtype) for cluster in clusters)
        else:
            x = self.tables[0][tokens].astype(dtype)
        x = jnp.where(((tokens >= 0) & (tokens < config.vocab_size))[..., None], x, jnp.nan)
        scaled = config.embedding_multiplier == "sqrt_width"
        return x * (config.width**0.5 if scaled else config.embedding_multiplier)


def _rows(tokens: Array, cluster: Cluster, table: Array, projection: Array, dtype: jnp.dtype) -> Float[Array, "B L E"]:
    """Returns the projected vectors of one cluster's tokens, zero for all others: static shapes, whatever the tokens are."""
    inside = (tokens >= cluster.first) & (tokens < cluster.end)
    rows = table[jnp.clip(tokens - cluster.first, 0, cluster.size - 1)]
    return jnp.where(inside[..., None], rows, 0).astype(dtype) @ projection.astype(dtype)


class Softmax(nn.Module):
    """The head: logits of the last layer's output, or nats of targets; its tables and projections may be the embedding's."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L E"], embedding: Embedding, targets: Int[Array, "B L"] | None, train: bool
    ) -> Float32[Array, "B L V"] | Float32[Array, "B L"]:
        """Returns the nats of `targets`, or without targets the log-probability (one cluster: the logit) of every token."""
        config, kept = self.config, jnp.dtype(self.config.parameter_dtype)
        tables, tails = embedding.tables, embedding.projections[1:]
        if not config.tied_embedding:
            tables = [
                self.param(_name("table", config, b), xavier(1.0, 1, 0), (cluster.size, cluster.width), kept)
                for b, cluster in enumerate(config.clusters)
            ]
        if not config.tied_projections:
            tails = [
                self.param(f"projection_{b}", xavier(1.0, 1, 0), (cluster.width, config.width), kept)
                for b, cluster in enumerate(config.clusters)
                if b > 0
            ]
        classes = self.param("classes", xavier(1.0, 1, 0), (len(tails), config.width), kept) if tails else None
        drop = nn.Dropout(config.adaptive_dropout, deterministic=not train)
        x = drop(x)
        features = [x, *(drop(jnp.einsum("ble,we->blw", x, tail.astype(x.dtype))) for tail in tails)]
        weights = Weights(tables, classes, config.logit_multiplier)
        if targets is None:
            return shard(log_probabilities(features, weights), "batch", "length", "vocab")
        return target_nats(features, targets, weights, logits_mib=config.logits_mib)
