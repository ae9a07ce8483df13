"""Refact-1.6B (Small Magellanic Cloud AI 2023), a model of code: ALiBi, one key and value head, SwiGLU, LayerNorm without bias.

The rows of attn.kv are [key | value], those of mlp.gate_up_proj [gate | up]. Its norms subtract the mean: so say its model card
and its authors' class, though other programs run it with RMSNorm.
"""

import math

from alibi_jax.config import ModelConfig
from alibi_jax.convert.family import Architecture, Family, Tensor
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.layouts import blocks, linear, norm, same

MULTIPLE = 256  # of which the MLP's hidden channels are one


def architecture(fields: Fields) -> Architecture:
    """Returns the model that a Refact config.json describes."""
    fields.expect("multi_query", True)
    fields.expect("scale_attn_weights", True)
    fields.expect("add_cross_attention", False)
    # they say in which precision scores are computed, act in training or in generation alone
    fields.ignore("attention_bias_in_fp32", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    fields.ignore("attn_pdrop", "embd_pdrop", "resid_pdrop", "do_sample")
    fields.ignore("tie_word_embeddings")  # its class never ties them, whatever this says
    width = fields.take(int, "n_embd", "hidden_size")
    inner = fields.take((int, type(None)), "n_inner", default=None) or 4 * width
    model = ModelConfig(
        num_layers=fields.take(int, "n_layer", "num_hidden_layers"),
        width=width,
        num_heads=fields.heads(width, "n_head", "num_attention_heads"),
        num_kv_heads=1,
        mlp_width=MULTIPLE * math.ceil(int(2 * inner / 3) / MULTIPLE),
        vocab_size=fields.take(int, "vocab_size"),
        norm_epsilon=float(fields.take(float, "layer_norm_epsilon", default=1e-5)),
        norm_biases=False,
        biases=(),
        tied_embedding=False,
        activation="silu",
        gated_mlp=True,
        embedding_multiplier=1.0,
    )
    return Architecture(model, fields.take(int, "n_positions", "max_position_embeddings", default=None))


def _layer(i: int, model: ModelConfig) -> list[Tensor]:
    width, hidden, heads = (model.width,), (model.mlp_width,), (model.num_heads, model.head_width)
    name, path = f"h.{i}", f"layer_{i}"
    keys, gated = [f"{path}/attention/key", f"{path}/attention/value"], [f"{path}/mlp/gate", f"{path}/mlp/up"]
    return [
        *norm(f"{name}.ln_1", f"{path}/attention_norm", model.width, bias=False),
        linear(f"{name}.attn.q.weight", f"{path}/attention/query", width, heads),
        blocks(f"{name}.attn.kv.weight", keys, width, [(1, model.head_width)] * 2),
        linear(f"{name}.attn.c_proj.weight", f"{path}/attention/out", heads, width),
        *norm(f"{name}.ln_2", f"{path}/mlp_norm", model.width, bias=False),
        blocks(f"{name}.mlp.gate_up_proj.weight", gated, width, [hidden] * 2),
        linear(f"{name}.mlp.c_proj.weight", f"{path}/mlp/down", hidden, width),
    ]


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of a Refact checkpoint."""
    table = model.vocab_size, model.width
    return [
        same("wte.weight", "embedding/table", table),
        *(tensor for i in range(model.num_layers) for tensor in _layer(i, model)),
        *norm("ln_f", "final_norm", model.width, bias=False),
        same("lm_head.weight", "softmax/table", table),
    ]


FAMILY = Family("refact", ("gpt_refact",), architecture, tensors, prefix="transformer.")
