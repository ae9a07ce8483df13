"""Counted sizes agree with the model itself."""

import jax
import jax.numpy as jnp
import pytest

from alibi_jax.config import ModelConfig, load_config
from alibi_jax.config.sizes import parameter_count
from alibi_jax.model import TransformerLM

CLUSTERS = {"adaptive_cutoffs": (10, 20)}
MODELS = {
    "plain": {},
    "untied": {"tied_embedding": False},
    "no biases": {"biases": (), "final_norm": False},
    "learned": {"position": "learned", "learned_length": 9},
    "t5": {"position": "t5", "t5_buckets": 6},
    "learned slopes": {"slopes": "learned"},
    "rotary": {"position": "rotary"},
    "clusters": CLUSTERS,
    "untied clusters": CLUSTERS | {"tied_embedding": False},
    "key heads": {"num_kv_heads": 2, "qk_norm": "channels", "biases": ("qkv", "down")},
    "gated": {"gated_mlp": True, "norm": "rms", "embedding_norm": True, "qk_norm": "head"},
    "norms without bias": {"norm_biases": False, "qk_norm": "head", "gated_mlp": True, "biases": ("out", "up")},
    "untied projections": CLUSTERS | {"tied_projections": False, "tied_embedding": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model(name):
    config = ModelConfig(num_layers=2, width=32, num_heads=4, mlp_width=48, vocab_size=40, **MODELS[name])
    params = jax.eval_shape(TransformerLM(config).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_of_the_paper():
    assert parameter_count(load_config("configs/wikitext103.py").model) == 246_933_504
