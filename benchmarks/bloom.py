"""BLOOM of transformers as a peer: a model of any size with random weights, and those weights as our parameters.

Both the benchmark and tests/peers use it, so that what is timed is also what is proved to compute the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import BloomConfig, BloomForCausalLM

from alibi_jax.config import ModelConfig, OptimizerConfig


def make_bloom(width: int, num_layers: int, num_heads: int, vocab_size: int) -> BloomForCausalLM:
    """BLOOM with random weights from seed 0, without the LayerNorm after its embedding."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "n_layer": num_layers, "n_head": num_heads, "vocab_size": vocab_size}
    model = BloomForCausalLM(BloomConfig(**sizes, hidden_dropout=0.0, attention_dropout=0.0, use_cache=False))
    model.transformer.word_embeddings_layernorm = torch.nn.Identity()
    return model


def model_config(width: int, num_layers: int, num_heads: int, vocab_size: int, **changes: Any) -> ModelConfig:
    """Our config of what `make_bloom` makes; its gelu is the tanh approximation, as Flax's is."""
    sizes = {"width": width, "num_layers": num_layers, "num_heads": num_heads, "vocab_size": vocab_size}
    return ModelConfig(**sizes, mlp_width=4 * width, activation="gelu_tanh", embedding_multiplier=1.0, **changes)


def _norm(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def _layer(weights: dict[str, np.ndarray], name: str, width: int, heads: int) -> dict[str, Any]:
    """One layer: torch's matrices are [out, in], and rows of the fused one are (head, query | key | value, channel)."""
    fused = weights[f"{name}.self_attention.query_key_value.weight"].reshape(heads, 3, width // heads, width)
    fused_bias = weights[f"{name}.self_attention.query_key_value.bias"].reshape(heads, 3, width // heads)
    attention = {"out": weights[f"{name}.self_attention.dense.weight"].T.reshape(heads, width // heads, width)}
    attention["out_bias"] = weights[f"{name}.self_attention.dense.bias"]
    for i, part in enumerate(("query", "key", "value")):
        attention |= {part: fused[:, i].transpose(2, 0, 1), f"{part}_bias": fused_bias[:, i]}
    mlp = {"up": weights[f"{name}.mlp.dense_h_to_4h.weight"].T, "up_bias": weights[f"{name}.mlp.dense_h_to_4h.bias"]}
    mlp |= {
        "down": weights[f"{name}.mlp.dense_4h_to_h.weight"].T,
        "down_bias": weights[f"{name}.mlp.dense_4h_to_h.bias"],
    }
    norms = {"attention_norm": _norm(weights, f"{name}.input_layernorm")}
    norms["mlp_norm"] = _norm(weights, f"{name}.post_attention_layernorm")
    return {"attention": attention, "mlp": mlp, **norms}


def params_of_bloom(model: BloomForCausalLM) -> dict[str, Any]:
    """The weights of `make_bloom`'s model as parameters of TransformerLM(model_config(...))."""
    config = model.config
    weights = {name: weight.detach().numpy().copy() for name, weight in model.transformer.named_parameters()}
    params = {"embedding": {"table": weights["word_embeddings.weight"]}, "final_norm": _norm(weights, "ln_f")}
    for i in range(config.n_layer):
        params[f"layer_{i}"] = _layer(weights, f"h.{i}", config.hidden_size, config.n_head)
    return jax.tree.map(jnp.asarray, params)


def torch_adamw(model: torch.nn.Module, optimizer: OptimizerConfig) -> torch.optim.AdamW:
    """The AdamW of `make_optimizer` at a constant rate: weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    betas = (optimizer.beta1, optimizer.beta2)
    return torch.optim.AdamW(groups, optimizer.peak_learning_rate, betas=betas, eps=optimizer.epsilon, fused=True)
