"""MPT (MosaicML 2023), as llm-foundry defines it: pre-norm, exact GELU, no biases in the released ones.

Its queries, keys and values are one matrix whose rows are [queries of all heads | keys | values]. transformers' own class
computes less than a config.json can say: it ignores alibi_bias_max, qk_ln, kv_n_heads, expansion_ratio and logit_scale.
"""

import logging
import math
from typing import Any, Literal

from alibi_jax.config import Config, ModelConfig
from alibi_jax.convert.family import Architecture, Family, Tensor
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.layouts import blocks, linear, norm, same
from alibi_jax.errors import require

NORMS: dict[str, Literal["layer", "rms"]] = {
    "layernorm": "layer",
    "low_precision_layernorm": "layer",  # low only under autocast
    "rmsnorm": "rms",
    "low_precision_rmsnorm": "rms",
}
# of files from before June 2023, as llm-foundry's own conversion of them has it: parts of tensors' names, and keys of
# attn_config, which stood in config.json itself
RENAMED = {
    "ln_f": "norm_f",
    "ln_1": "norm_1",
    "ln_2": "norm_2",
    "mlp.mlp_up": "ffn.up_proj",
    "mlp.mlp_down": "ffn.down_proj",
}
FLAT = {"attn_qk_ln": "qk_ln", "attn_clip_qkv": "clip_qkv"} | {
    name: name
    for name in (
        "alibi",
        "alibi_bias_max",
        "attn_impl",
        "attn_pdrop",
        "attn_uses_sequence_id",
        "prefix_lm",
        "softmax_scale",
    )
}

logger = logging.getLogger("alibi_jax")


def _kv_heads(attention: Fields, heads: int) -> int | None:
    """Returns the key and value heads; None: as many as queries have."""
    kind = attention.take(str, "attn_type", default="multihead_attention")
    listed = attention.take((int, type(None)), "kv_n_heads", default=None)
    kinds = {"multihead_attention": heads, "multiquery_attention": 1, "grouped_query_attention": listed}
    where = f"{attention.where}: attn_type"
    require(kind in kinds, where, repr(kind), " or ".join(kinds), "Nothing else is implemented for this family.")
    number = kinds[kind]
    require(number is not None, f"{attention.where}: kv_n_heads", "no such key", "it, for grouped queries", "Add it.")
    require(
        listed in (None, number), f"{attention.where}: kv_n_heads", listed, f"{number} for {kind}", "Correct the file."
    )
    return None if number == heads else number


def _qk_norm(attention: Fields) -> Literal["none", "head", "channels"]:
    channels, head = (attention.take(bool, name, default=False) for name in ("qk_ln", "qk_gn"))
    require(not (channels and head), f"{attention.where}: qk_ln", "qk_gn as well", "one of them", "Correct the file.")
    return "channels" if channels else "head" if head else "none"


def _attention_fields(fields: Fields) -> Fields:
    """Returns attn_config, or what stands in its place in files from before June 2023."""
    if "attn_config" in fields.values:
        return Fields(fields.take(dict, "attn_config"), f"{fields.where}: attn_config")
    fields.ignore(*FLAT, "low_precision_layernorm", "param_init_fn", "fan_mode", "init_nonlinearity", "init_gain")
    fields.ignore("init_std", "init_div_is_residual", "emb_init_std", "emb_init_uniform_lim")
    return Fields({now: fields.values[name] for name, now in FLAT.items() if name in fields.values}, fields.where)


def _attention(fields: Fields, heads: int, head_width: int) -> dict[str, Any]:
    """Returns the fields of ours that attn_config decides."""
    attention = _attention_fields(fields)
    scale = attention.take((float, type(None)), "softmax_scale", default=None)
    attention.take(bool, "alibi")  # has to be there: llm-foundry's own default is false, transformers' true
    attention.expect("alibi", True)
    attention.expect("prefix_lm", False)
    attention.expect("rope", False)
    attention.expect("sliding_window_size", -1)
    attention.expect("attn_logit_softcapping", None)
    attention.expect("kv_dim", None)
    attention.expect("fused_qkv", True)
    attention.expect("reuse_kv_layer_idx", None)
    attention.expect("reuse_kv_x_layer_idx", None)
    # training; the implementation; what several texts in one input see of each other; rotary's; every config's of transformers
    attention.ignore("attn_pdrop", "attn_impl", "attn_uses_sequence_id")
    attention.ignore("rope_theta", "rope_impl", "rope_dail_config", "rope_hf_config", "tie_word_embeddings")
    options = {
        "num_kv_heads": _kv_heads(attention, heads),
        "bias_max": float(attention.take(float, "alibi_bias_max", default=8)),
        "clip_qkv": attention.take((float, type(None)), "clip_qkv", default=None) or None,  # 0 clips nothing there
        "score_multiplier": 1.0 if scale is None else scale * math.sqrt(head_width),
        "qk_norm": _qk_norm(attention),
    }
    attention.refuse_rest()
    return options


def _mlp_width(fields: Fields, width: int) -> int:
    ratio = fields.take(float, "expansion_ratio", "mlp_ratio", default=4)
    require(
        float(width * ratio).is_integer(),  # JSON as Python writes it may have NaN and Infinity
        f"{fields.where}: expansion_ratio",
        ratio,
        f"one whose product with d_model, {width}, is whole",
        "Correct the file.",
    )
    mlp = Fields(fields.take(dict, "ffn_config", default={}), f"{fields.where}: ffn_config")
    mlp.expect("ffn_type", "mptmlp")
    mlp.expect("ffn_act_fn", None, {"name": "gelu"}, {"name": "gelu", "approximate": "none"})
    mlp.ignore("fc_type")
    hidden = mlp.take((int, type(None)), "ffn_hidden_size", default=None)
    mlp.refuse_rest()
    return hidden or int(width * ratio)


def _logit_multiplier(fields: Fields, width: int) -> float:
    scale = fields.take((float, str, type(None)), "logit_scale", default=None)
    known = not isinstance(scale, str) or scale == "inv_sqrt_d_model"
    require(known, f"{fields.where}: logit_scale", repr(scale), 'a number or "inv_sqrt_d_model"', "Correct the file.")
    return 1.0 if scale is None else width**-0.5 if isinstance(scale, str) else float(scale)


def architecture(fields: Fields) -> Architecture:
    """Returns the model that an MPT config.json describes."""
    width = fields.take(int, "d_model")
    heads = fields.heads(width, "n_heads")
    biases = not fields.take(bool, "no_bias", default=True)
    kind = fields.take(str, "norm_type", default="low_precision_layernorm").lower()
    require(kind in NORMS, f"{fields.where}: norm_type", repr(kind), " or ".join(NORMS), "Nothing else is implemented.")
    norm = NORMS[kind]
    model = ModelConfig(
        num_layers=fields.take(int, "n_layers"),
        width=width,
        num_heads=heads,
        mlp_width=_mlp_width(fields, width),
        vocab_size=fields.take(int, "vocab_size"),
        norm=norm,
        norm_biases=biases or norm == "rms",
        norm_epsilon=float(fields.take(float, "norm_eps", "layer_norm_epsilon", default=1e-5)),
        biases=("qkv", "out", "up", "down") if biases else (),
        tied_embedding=fields.take(bool, "tie_word_embeddings", default=True),
        activation="gelu_erf",
        embedding_multiplier=1.0,
        logit_multiplier=_logit_multiplier(fields, width),
        **_attention(fields, heads, width // heads),
    )
    fields.expect("final_logit_softcapping", None)
    fields.expect("block_overrides", None)
    # training and initialization; learned_pos_emb acts only without alibi
    fields.ignore("emb_pdrop", "resid_pdrop", "embedding_fraction", "init_config", "init_device", "learned_pos_emb")
    fields.ignore("fc_type", "use_pad_tok_in_ffn", "tokenizer_name", "verbose", "name", "loss_fn")
    return Architecture(model, fields.take(int, "max_seq_len", default=None))


def _norms(i: int, model: ModelConfig) -> list[Tensor]:
    bias, of_attention = _norms_have_bias(model), []
    if model.qk_norm != "none":
        for theirs, ours, heads in (("q_ln", "query_norm", model.num_heads), ("k_ln", "key_norm", model.kv_heads)):
            shape = (model.head_width,) if model.qk_norm == "head" else (heads, model.head_width)
            of_attention += norm(f"blocks.{i}.attn.{theirs}", f"layer_{i}/attention/{ours}", *shape, bias=bias)
    return [
        *norm(f"blocks.{i}.norm_1", f"layer_{i}/attention_norm", model.width, bias=bias),
        *norm(f"blocks.{i}.norm_2", f"layer_{i}/mlp_norm", model.width, bias=bias),
        *of_attention,
    ]


def _norms_have_bias(model: ModelConfig) -> bool:
    return model.norm == "layer" and model.norm_biases


def _layer(i: int, model: ModelConfig) -> list[Tensor]:
    name, path, width, hidden = f"blocks.{i}", f"layer_{i}", (model.width,), (model.mlp_width,)
    heads, kv_heads = (model.num_heads, model.head_width), (model.kv_heads, model.head_width)
    fused, outputs = f"{name}.attn.Wqkv", (heads, kv_heads, kv_heads)
    parts = [f"{path}/attention/{part}" for part in ("query", "key", "value")]
    out, up, down = f"{name}.attn.out_proj", f"{name}.ffn.up_proj", f"{name}.ffn.down_proj"
    biases = [
        blocks(f"{fused}.bias", [f"{part}_bias" for part in parts], (), outputs),
        linear(f"{out}.bias", f"{path}/attention/out_bias", (), width),
        linear(f"{up}.bias", f"{path}/mlp/up_bias", (), hidden),
        linear(f"{down}.bias", f"{path}/mlp/down_bias", (), width),
    ]
    return [
        *_norms(i, model),
        blocks(f"{fused}.weight", parts, width, outputs),
        linear(f"{out}.weight", f"{path}/attention/out", heads, width),
        linear(f"{up}.weight", f"{path}/mlp/up", width, hidden),
        linear(f"{down}.weight", f"{path}/mlp/down", hidden, width),
        *(biases if model.biases else []),
    ]


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns the tensors of an MPT checkpoint."""
    table, tied = (model.vocab_size, model.width), model.tied_embedding
    return [
        same("wte.weight", "embedding/table", table),
        *(tensor for i in range(model.num_layers) for tensor in _layer(i, model)),
        *norm("norm_f", "final_norm", model.width, bias=_norms_have_bias(model)),
        same("lm_head.weight", "embedding/table" if tied else "softmax/table", table, tied=tied),
    ]


def renamed(name: str) -> str:
    """Returns today's name of a tensor whose name may be of before June 2023."""
    for before, now in RENAMED.items():
        name = name.replace(f"{before}.", f"{now}.")
    return name


def config(run: Config) -> dict[str, Any]:
    """Returns the config.json of an MPT with a run's sizes, of what transformers' class computes, whatever the run's model is.

    Logs a warning for bias_max, which transformers ignores and other programs do not.
    """
    model, whole = run.model, round(run.model.bias_max)
    if whole != 8:
        logger.warning(
            "export: transformers computes MPT with alibi_bias_max 8 whatever the config says, here %d", whole
        )
    scale = None if model.score_multiplier == 1 else model.score_multiplier / math.sqrt(model.head_width)
    attention = {"alibi": True, "alibi_bias_max": whole, "clip_qkv": model.clip_qkv, "softmax_scale": scale}
    attention |= {"attn_type": "multihead_attention", "attn_impl": "torch", "qk_ln": False, "prefix_lm": False}
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "torch_dtype": model.parameter_dtype,
        "vocab_size": model.vocab_size,
        "d_model": model.width,
        "n_layers": model.num_layers,
        "n_heads": model.num_heads,
        "expansion_ratio": 4,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "layer_norm_epsilon": model.norm_epsilon,
        "learned_pos_emb": False,
        "max_seq_len": run.train.train_length,
        "attn_config": attention,
    }


FAMILY = Family(
    "mpt", ("mpt", "mosaic_gpt"), architecture, tensors, prefix="transformer.", renamed=renamed, config=config
)
