"""alibi_jax: train short, test long. Position methods, attention and an extrapolation evaluation in JAX and Flax."""

from alibi_jax.attention import attend
from alibi_jax.config import Config, load_config
from alibi_jax.evaluate.nats import token_nats
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.evaluate.sweep import sweep
from alibi_jax.model import TransformerLM
from alibi_jax.positions import BucketBias, LinearBias, alibi_slopes
from alibi_jax.train import train

__all__ = [
    "BucketBias",
    "Config",
    "LinearBias",
    "TransformerLM",
    "alibi_slopes",
    "attend",
    "evaluate_run",
    "load_config",
    "sweep",
    "token_nats",
    "train",
]
