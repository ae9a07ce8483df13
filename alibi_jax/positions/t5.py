"""T5's learned bias by distance bucket (Raffel et al. 2020, section 2.1)."""

import jax.numpy as jnp
from flax import linen as nn

from alibi_jax.positions.base import PositionMethod
from alibi_jax.positions.bias import BucketBias


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
