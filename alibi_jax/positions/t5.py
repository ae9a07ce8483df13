"""T5's learned bias by distance bucket (Raffel et al. 2020, section 2.1)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float32, Int, Int32

from alibi_jax.positions.base import Bias, PositionMethod, Positions


def bucket_edges(num_buckets: int, max_distance: int) -> np.ndarray:
    """Smallest distance of buckets 1 ... R-1, int32 [R-1]: one bucket a distance up to R/2, then logarithmic ones.

    Bucket r >= R/2 starts at the first whole distance d with log(d / (R/2)) / log(max_distance / (R/2)) * R/2 >= r - R/2;
    the last holds all distances from its edge on. This is T5's rule for causal attention. ValueError for fewer than two
    buckets, and for a max_distance that is no whole number above R/2.
    """
    exact = num_buckets // 2
    if exact < 1 or not isinstance(max_distance, int | np.integer) or max_distance <= exact:
        raise ValueError(
            f"T5 buckets: got {num_buckets} with max_distance {max_distance}, expected 2 or more, and a whole distance beyond "
            "the first half of them. T5's own are 32 and 128."
        )
    steps = np.arange(num_buckets - exact) / (num_buckets - exact)
    logarithmic = np.ceil(exact * (max_distance / exact) ** steps - 1e-9)
    return np.concatenate([np.arange(1, exact), logarithmic]).astype(np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BucketBias(Bias):
    """table[bucket(query position - key position), head]; keys after the query share bucket 0, as in T5's decoder."""

    dimensions: ClassVar[tuple[str, ...]] = ("rows", "heads")

    table: Any  # float32 [R, H]; Any, because JAX puts placeholders here when it takes trees apart
    max_distance: int = dataclasses.field(default=128, metadata={"static": True})

    def buckets(self, distances: Int[Array, "*shape"]) -> Int32[Array, "*shape"]:
        edges = jnp.asarray(bucket_edges(self.table.shape[0], self.max_distance))
        return jnp.searchsorted(edges, distances, side="right", method="compare_all").astype(jnp.int32)

    def block(self, q_positions: Positions, k_positions: Int[Array, " S"]) -> Float32[Array, "H T S"]:
        distances = q_positions[:, None] - k_positions[None, :]
        return jnp.moveaxis(self.table.astype(jnp.float32)[self.buckets(distances)], -1, 0)

    def select_heads(self, first: int | Int[Array, ""], count: int) -> "BucketBias":
        return BucketBias(jax.lax.dynamic_slice_in_dim(self.table, first, count, 1), self.max_distance)

    def largest(self) -> Float32[Array, " H"]:
        return jnp.abs(self.table.astype(jnp.float32)).max(0)


class T5Bias(PositionMethod):
    """One learned table for all layers, added to the scaled scores.

    T5 itself does not scale its scores by 1/sqrt(D) and starts the table like its embeddings; here the scores are scaled
    as for every other method and the table starts at zero, so that training starts from no position information.
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128

    @nn.compact
    def bias(self) -> BucketBias:
        table = self.param(
            "bucket_table", nn.initializers.zeros_init(), (self.num_buckets, self.num_heads), jnp.float32
        )
        return BucketBias(table, self.max_distance)
