"""BLOOM (BigScience 2022), as transformers has it: pre-norm, tanh GELU, biases everywhere, a norm after the embedding.

Its queries, keys and values are one matrix whose rows are [heads, query | key | value, head width].
"""

from typing import Any

from alibi_jax.config import Config, ModelConfig
from alibi_jax.convert.family import Architecture, Family, Tensor
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.layouts import interleaved, linear, norm, same


def architecture(fields: Fields) -> Architecture:
    """Returns the model that a BLOOM config.json describes."""
    width = fields.take(int, "hidden_size", "n_embed")
    tied = fields.take(bool, "tie_word_embeddings", default=True)
    model = ModelConfig(
        num_layers=fields.take(int, "n_layer", "num_hidden_layers"),
        width=width,
        num_heads=fields.heads(width, "n_head", "num_attention_heads"),
        mlp_width=4 * width,
        vocab_size=fields.take(int, "vocab_size"),
        norm_epsilon=float(fields.take(float, "layer_norm_epsilon", default=1e-5)),
        tied_embedding=tied,
        activation="gelu_tanh",
        embedding_norm=True,
        embedding_multiplier=1.0,
    )
    fields.expect("apply_residual_connection_post_layernorm", False)
    fields.expect("n_inner", None, 4 * width)
    # they choose between ways to compute the same, or act in training alone
    fields.ignore("pretraining_tp", "slow_but_exact", "hidden_dropout", "attention_dropout", "masked_softmax_fusion")
    fields.ignore(
        "attention_softmax_in_fp32", "bias_dropout_fusion", "skip_bias_add", "skip_bias_add_qkv", "offset_alibi"
    )
    return Architecture(model, fields.take(int, "seq_length", default=None))


def _layer(i: int, model: ModelConfig) -> list[Tensor]:
    width, hidden, heads = (model.width,), (model.mlp_width,), (model.num_heads, model.head_width)
    name, path = f"h.{i}", f"layer_{i}"
    fused = f"{name}.self_attention.query_key_value"
    parts = [f"{path}/attention/{part}" for part in ("query", "key", "value")]
    dense, up, down = f"{name}.self_attention.dense", f"{name}.mlp.dense_h_to_4h", f"{name}.mlp.dense_4h_to_h"
    biases = [
        interleaved(f"{fused}.bias", [f"{part}_bias" for part in parts], (), *heads),
        linear(f"{dense}.bias", f"{path}/attention/out_bias", (), width),
        linear(f"{up}.bias", f"{path}/mlp/up_bias", (), hidden),
        linear(f"{down}.bias", f"{path}/mlp/down_bias", (), width),
    ]
    return [
        *norm(f"{name}.input_layernorm", f"{path}/attention_norm", model.width),
        interleaved(f"{fused}.weight", parts, width, *heads),
        linear(f"{dense}.weight", f"{path}/attention/out", heads, width),
        *norm(f"{name}.post_attention_layernorm", f"{path}/mlp_norm", model.width),
        linear(f"{up}.weight", f"{path}/mlp/up", width, hidden),
        linear(f"{down}.weight", f"{path}/mlp/down", hidden, width),
        *(biases if model.biases else []),
    ]


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of a BLOOM checkpoint; of one of Falcon-RW where the model has no norm after the embedding."""
    table = model.vocab_size, model.width
    softmax = "embedding/table" if model.tied_embedding else "softmax/table"
    return [
        same("word_embeddings.weight", "embedding/table", table),
        *(norm("word_embeddings_layernorm", "embedding_norm", model.width) if model.embedding_norm else []),
        *(tensor for i in range(model.num_layers) for tensor in _layer(i, model)),
        *norm("ln_f", "final_norm", model.width),
        same("lm_head.weight", softmax, table, tied=model.tied_embedding),
    ]


def config(run: Config) -> dict[str, Any]:
    """Returns the config.json of a BLOOM with a run's sizes, whether or not the run's model is one."""
    model = run.model
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "torch_dtype": model.parameter_dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "layer_norm_epsilon": model.norm_epsilon,
        "tie_word_embeddings": model.tied_embedding,
        "seq_length": run.train.train_length,
    }


# buffers that the first classes of BLOOM and Falcon-RW had
MASKS = r"h\.\d+\.self_attention\.scale_mask_softmax\.causal_mask"
FAMILY = Family("bloom", ("bloom",), architecture, tensors, prefix="transformer.", harmless=MASKS, config=config)
