"""T5's learned bias by distance bucket (Raffel et al. 2020, section 2.1)."""

from typing import TYPE_CHECKING, ClassVar

from flax import linen as nn

from alibi_jax.errors import require
from alibi_jax.positions.base import Parameter, PositionMethod
from alibi_jax.positions.bias import BucketBias

if TYPE_CHECKING:
    from alibi_jax.config import ModelConfig


class T5Bias(PositionMethod):
    """One learned table for all layers, added to the scaled scores.

    T5 itself does not scale its scores by 1/sqrt(D) and starts the table like its embeddings; here the scores are scaled
    as for every other method and the table starts at zero, so that training starts from no position information.
    """

    label: ClassVar[str] = "T5 bias"

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128

    @classmethod
    def from_config(cls, model: "ModelConfig") -> "T5Bias":
        """Returns the method with the model's heads and buckets; ConfigError for buckets without edges, and an encoder."""
        require(
            model.causal,
            "model.causal",
            False,
            "True for position 't5', whose buckets are those of causal attention: later keys would all be at distance 0",
            "Choose another position.",
        )
        require(
            model.t5_max_distance > model.t5_buckets // 2,
            "model.t5_max_distance",
            f"{model.t5_max_distance} with t5_buckets {model.t5_buckets}",
            "a distance beyond the first half of the buckets",
            "Raise t5_max_distance or lower t5_buckets.",
        )
        return cls(model.num_heads, model.t5_buckets, model.t5_max_distance)

    def parameters(self) -> dict[str, Parameter]:
        """Returns bucket_table [R, H]."""
        shape = self.num_buckets, self.num_heads
        return {"bucket_table": Parameter(("rows", "heads"), shape, nn.initializers.zeros_init())}

    @nn.compact
    def bias(self, length: int) -> BucketBias:
        """Returns the table as a BucketBias."""
        return BucketBias(self.parameter("bucket_table"), self.max_distance)
