"""Falcon-RW (TII 2023): BLOOM's layout with exact GELU and no norm after the embedding, and a bias of its own.

Its bias is rounded to bfloat16 at absolute positions, whatever the model's type, and then divided by sqrt(head width) with the
scores. Falcon-7B and 40B (rotary, parallel layers) are refused.
"""

import math

from alibi_jax.config import ModelConfig
from alibi_jax.convert.bloom import MASKS, tensors
from alibi_jax.convert.family import Architecture, Family
from alibi_jax.convert.fields import Fields


def architecture(fields: Fields) -> Architecture:
    """Returns the model that the config.json of a Falcon with ALiBi describes."""
    width = fields.take(int, "hidden_size", "n_embed")
    heads = fields.heads(width, "num_attention_heads", "n_head")
    for name, wanted in (("alibi", True), ("multi_query", False), ("parallel_attn", False)):
        fields.take(bool, name)  # has to be there: other values are transformers' defaults
        fields.expect(name, wanted)
    fields.expect("new_decoder_architecture", False)
    fields.expect("activation", "gelu")
    fields.expect("apply_residual_connection_post_layernorm", False)
    biases = fields.take(bool, "bias", default=False)
    model = ModelConfig(
        num_layers=fields.take(int, "num_hidden_layers", "n_layer"),
        width=width,
        num_heads=heads,
        mlp_width=fields.take((int, type(None)), "ffn_hidden_size", default=None) or 4 * width,
        vocab_size=fields.take(int, "vocab_size"),
        norm_epsilon=float(fields.take(float, "layer_norm_epsilon", default=1e-5)),
        biases=("qkv", "out", "up", "down") if biases else (),
        tied_embedding=fields.take(bool, "tie_word_embeddings", default=True),
        activation="gelu_erf",
        embedding_multiplier=1.0,
        slope_rounding="bfloat16",
        slope_divisor=math.sqrt(width // heads),
    )
    # they belong to multi-query, parallel and rotary models, or act in training alone
    fields.ignore("num_kv_heads", "n_head_kv", "num_ln_in_parallel_attn", "hidden_dropout", "attention_dropout")
    fields.ignore("rope_parameters", "rope_scaling", "rope_theta")
    return Architecture(model, fields.take(int, "max_position_embeddings", default=None))


_TYPES = "falcon", "RefinedWebModel", "RefinedWeb"
FAMILY = Family("falcon", _TYPES, architecture, tensors, prefix="transformer.", harmless=MASKS)
