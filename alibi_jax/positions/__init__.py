"""The science: how a model learns where its tokens stand. One file per method; here the bias values, which need no Flax."""

from alibi_jax.positions.bias import Bias, BucketBias, LinearBias, RoundedBias, alibi_slopes

__all__ = ["Bias", "BucketBias", "LinearBias", "RoundedBias", "alibi_slopes"]
