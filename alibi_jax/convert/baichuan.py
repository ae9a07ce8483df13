"""Baichuan-13B and Baichuan2-13B (2023): RMSNorm, SwiGLU, no biases, an output table of its own, ALiBi over 40 heads.

config.json says neither that the positions are ALiBi's nor which output layer there is. The 13B models are known by their 40
heads (7B: 32, rotary). Of the 13B, the first has a plain output layer and 64,000 tokens; Baichuan2 has 125,696 tokens and
scales each row of its output table to length 1 before use, which is done here once.
"""

import dataclasses

import numpy as np

from alibi_jax.config import ModelConfig
from alibi_jax.convert.family import Architecture, Family, Tensor
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.layouts import blocks, linear, norm, same
from alibi_jax.errors import require

HEADS = 40  # of the 13B models
VOCABULARY, VOCABULARY_2 = 64_000, 125_696  # tokens of Baichuan-13B, of Baichuan2-13B
SHORTEST_ROW = 1e-12  # what torch's normalize divides by at least


def architecture(fields: Fields) -> Architecture:
    """Returns the model that the config.json of a Baichuan 13B describes."""
    heads, vocab_size = fields.take(int, "num_attention_heads"), fields.take(int, "vocab_size")
    require(
        heads == HEADS,
        f"{fields.where}: num_attention_heads",
        heads,
        f"{HEADS}, as the 13B models have: Baichuan 7B has rotary positions, which are not ALiBi",
        "Import a Baichuan-13B or Baichuan2-13B.",
    )
    require(
        vocab_size in (VOCABULARY, VOCABULARY_2),
        f"{fields.where}: vocab_size",
        vocab_size,
        f"{VOCABULARY} (Baichuan-13B) or {VOCABULARY_2} (Baichuan2-13B): it alone says which output layer the model has",
        "A model with added tokens cannot be imported exactly.",
    )
    fields.expect("hidden_act", "silu")
    fields.expect("tie_word_embeddings", False)
    fields.ignore("z_loss_weight")  # a term of the training loss
    model = ModelConfig(
        num_layers=fields.take(int, "num_hidden_layers"),
        width=fields.take(int, "hidden_size"),
        num_heads=heads,
        mlp_width=fields.take(int, "intermediate_size"),
        vocab_size=vocab_size,
        norm_epsilon=float(fields.take(float, "rms_norm_eps", default=1e-6)),
        norm="rms",
        biases=(),
        tied_embedding=False,
        activation="silu",
        gated_mlp=True,
        embedding_multiplier=1.0,
    )
    return Architecture(model, fields.take(int, "model_max_length", "max_position_embeddings", default=None))


def _layer(i: int, model: ModelConfig) -> list[Tensor]:
    width, hidden, heads = (model.width,), (model.mlp_width,), (model.num_heads, model.head_width)
    name, path = f"layers.{i}", f"layer_{i}"
    parts = [f"{path}/attention/{part}" for part in ("query", "key", "value")]
    return [
        *norm(f"{name}.input_layernorm", f"{path}/attention_norm", model.width, bias=False),
        blocks(f"{name}.self_attn.W_pack.weight", parts, width, [heads] * 3),
        linear(f"{name}.self_attn.o_proj.weight", f"{path}/attention/out", heads, width),
        *norm(f"{name}.post_attention_layernorm", f"{path}/mlp_norm", model.width, bias=False),
        linear(f"{name}.mlp.gate_proj.weight", f"{path}/mlp/gate", width, hidden),
        linear(f"{name}.mlp.up_proj.weight", f"{path}/mlp/up", width, hidden),
        linear(f"{name}.mlp.down_proj.weight", f"{path}/mlp/down", hidden, width),
    ]


def _unit_rows(array: np.ndarray) -> list[np.ndarray]:
    rows = array.astype(np.float32)
    rows /= np.maximum(np.sqrt(np.einsum("ve,ve->v", rows, rows)), SHORTEST_ROW)[:, None]  # in place: 2.6 GB
    return [rows]


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of a Baichuan checkpoint."""
    table = model.vocab_size, model.width
    head = same("lm_head.weight", "softmax/table", table)
    return [
        same("embed_tokens.weight", "embedding/table", table),
        *(tensor for i in range(model.num_layers) for tensor in _layer(i, model)),
        *norm("norm", "final_norm", model.width, bias=False),
        dataclasses.replace(head, split=_unit_rows) if model.vocab_size == VOCABULARY_2 else head,
    ]


FAMILY = Family("baichuan", ("baichuan",), architecture, tensors, prefix="model.")
