"""BLOOM of transformers as a peer: a model of any size with random weights, and those weights as our parameters.

Both the benchmark and tests/peers use it, so that what is timed is also what is proved to compute the same.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import traverse_util
from transformers import BloomConfig, BloomForCausalLM

from alibi_jax.config import ModelConfig, OptimizerConfig
from alibi_jax.convert import bloom
from alibi_jax.convert.fields import Fields


def _config(width: int, num_layers: int, num_heads: int, vocab_size: int) -> BloomConfig:
    return BloomConfig(hidden_size=width, n_layer=num_layers, n_head=num_heads, vocab_size=vocab_size, use_cache=False)


def make_bloom(width: int, num_layers: int, num_heads: int, vocab_size: int) -> BloomForCausalLM:
    """BLOOM with random weights from seed 0."""
    torch.manual_seed(0)
    return BloomForCausalLM(_config(width, num_layers, num_heads, vocab_size))


def model_config(width: int, num_layers: int, num_heads: int, vocab_size: int, **changes: Any) -> ModelConfig:
    """Our config of what `make_bloom` makes."""
    fields = Fields(_config(width, num_layers, num_heads, vocab_size).to_dict(), "BloomConfig")
    return dataclasses.replace(bloom.architecture(fields).model, **changes)


def params_of_bloom(model: BloomForCausalLM) -> dict[str, Any]:
    """The weights of `make_bloom`'s model as parameters of TransformerLM(model_config(...))."""
    ours = bloom.architecture(Fields(model.config.to_dict(), "BloomConfig")).model
    weights = {name: weight.detach().numpy().copy() for name, weight in model.transformer.named_parameters()}
    params = {}
    for tensor in bloom.tensors(ours):
        if not tensor.tied:
            params |= zip(tensor.ours, tensor.split(weights[tensor.name]), strict=True)
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params, sep="/"))


def torch_adamw(model: torch.nn.Module, optimizer: OptimizerConfig) -> torch.optim.AdamW:
    """The AdamW of `make_optimizer` at a constant rate: weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (optimizer.beta1, optimizer.beta2)
    return torch.optim.AdamW(groups, optimizer.peak_learning_rate, betas=betas, eps=optimizer.epsilon, fused=True)
