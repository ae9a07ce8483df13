"""What MPT's config.json says, by llm-foundry's definition."""

import copy
import math

import numpy as np
import pytest

from alibi_jax.convert import mpt
from alibi_jax.convert.fields import Fields
from alibi_jax.errors import ConfigError
from released import ATTENTION

CONFIG = {  # of mpt-7b-instruct, its sizes divided
    "architectures": ["MPTForCausalLM"],
    "attn_config": ATTENTION,
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
    "d_model": 64,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {"name": "kaiming_normal_", "init_div_is_residual": True, "verbose": 0},
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 4,
    "n_layers": 2,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 101,
}


def architecture(changes: dict | None = None, attention: dict | None = None):
    config = copy.deepcopy(CONFIG) | (changes or {})
    config["attn_config"] |= attention or {}
    fields = Fields(config, "config.json")
    read = mpt.architecture(fields)
    fields.refuse_rest()
    return read


def test_every_key_of_a_released_config_is_known():
    read = architecture()
    assert read.train_length == 2048
    model = read.model
    assert (model.num_layers, model.width, model.num_heads, model.mlp_width, model.vocab_size) == (2, 64, 4, 256, 101)
    assert (model.activation, model.biases, model.norm_biases, model.final_norm) == ("gelu_erf", (), False, True)
    assert (model.embedding_multiplier, model.logit_multiplier, model.score_multiplier) == (1.0, 1.0, 1.0)
    assert model.tied_embedding and not model.embedding_norm and model.clip_qkv is None


@pytest.mark.parametrize(
    ("changes", "attention", "expected"),
    [
        ({}, {"alibi_bias_max": 16, "clip_qkv": 6}, {"bias_max": 16.0, "clip_qkv": 6}),  # StoryWriter's
        ({}, {"clip_qkv": 0}, {"clip_qkv": None}),
        ({}, {"softmax_scale": 0.5}, {"score_multiplier": 2.0}),
        ({}, {"qk_ln": True}, {"qk_norm": "channels"}),
        ({}, {"qk_gn": True}, {"qk_norm": "head"}),
        ({}, {"attn_type": "multiquery_attention"}, {"num_kv_heads": 1}),
        ({}, {"attn_type": "grouped_query_attention", "kv_n_heads": 2}, {"num_kv_heads": 2}),
        ({}, {"kv_n_heads": 4}, {"num_kv_heads": None}),
        ({"logit_scale": "inv_sqrt_d_model"}, {}, {"logit_multiplier": 0.125}),
        ({"logit_scale": 2}, {}, {"logit_multiplier": 2.0}),
        ({"no_bias": False}, {}, {"biases": ("qkv", "out", "up", "down"), "norm_biases": True}),
        ({"norm_type": "rmsnorm"}, {}, {"norm": "rms", "norm_biases": True}),
        ({"norm_type": "LayerNorm", "norm_eps": 1e-6}, {}, {"norm": "layer", "norm_epsilon": 1e-6}),
        ({"expansion_ratio": 2.5}, {}, {"mlp_width": 160}),
        ({"ffn_config": {"ffn_type": "mptmlp", "ffn_hidden_size": 200}}, {}, {"mlp_width": 200}),
        ({"tie_word_embeddings": False}, {}, {"tied_embedding": False}),
    ],
    ids=lambda value: next(iter(value), "none") if isinstance(value, dict) else None,
)
def test_what_a_key_changes(changes, attention, expected):
    model = architecture(changes, attention).model
    assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "attention", "message"),
    [
        ({}, {"alibi": False}, "attn_config: alibi: got false, expected true"),
        ({"attn_config": {}}, {}, "attn_config: alibi: got no such key"),
        ({"n_heads": 0}, {}, "n_heads: got 0, expected a divisor of the width, 64"),
        ({"expansion_ratio": math.inf}, {}, "expansion_ratio: got inf, expected one whose product"),
        ({}, {"rope": True}, "attn_config: rope: got true, expected false"),
        ({}, {"prefix_lm": True}, "attn_config: prefix_lm: got true, expected false"),
        ({}, {"sliding_window_size": 512}, "attn_config: sliding_window_size: got 512, expected -1"),
        ({}, {"attn_logit_softcapping": 50.0}, "attn_config: attn_logit_softcapping: got 50.0, expected null"),
        ({}, {"attn_type": "other"}, "attn_config: attn_type: got 'other', expected multihead_attention or"),
        ({}, {"kv_n_heads": 2}, "attn_config: kv_n_heads: got 2, expected 4 for multihead_attention"),
        ({}, {"attn_type": "grouped_query_attention"}, "attn_config: kv_n_heads: got no such key"),
        ({}, {"qk_ln": True, "qk_gn": True}, "attn_config: qk_ln: got qk_gn as well"),
        ({}, {"gate": 1}, "attn_config: got unknown keys: gate"),
        ({"norm_type": "other"}, {}, "norm_type: got 'other', expected layernorm or"),
        ({"logit_scale": "other"}, {}, "logit_scale: got 'other', expected a number or"),
        ({"expansion_ratio": 2.51}, {}, "expansion_ratio: got 2.51, expected one whose product with d_model, 64"),
        ({"ffn_config": {"ffn_type": "mptglu"}}, {}, 'ffn_config: ffn_type: got "mptglu", expected "mptmlp"'),
        ({"ffn_config": {"ffn_act_fn": {"name": "silu"}}}, {}, "ffn_config: ffn_act_fn: got "),
        ({"block_overrides": {"order": []}}, {}, "block_overrides: got "),
        ({"gate": 1}, {}, "config.json: got unknown keys: gate"),
    ],
    ids=lambda value: next(iter(value), "none") if isinstance(value, dict) else "",
)
def test_what_is_refused_by_name(changes, attention, message):
    with pytest.raises(ConfigError) as error:
        architecture(changes, attention)
    assert message in str(error.value)


def test_configs_of_before_june_2023_have_no_attn_config():
    """replit-code-v1's, too."""
    flat = {name: value for name, value in CONFIG.items() if name not in ("attn_config", "init_config", "norm_type")}
    flat |= {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_uses_sequence_id": False}
    flat |= {"attn_clip_qkv": 6.0, "attn_qk_ln": True, "prefix_lm": False, "softmax_scale": None, "mlp_ratio": 4}
    flat |= {
        "low_precision_layernorm": True,
        "param_init_fn": "kaiming_normal_",
        "fan_mode": "fan_in",
        "init_std": 0.02,
    }
    flat.pop("expansion_ratio")
    fields = Fields(flat, "config.json")
    assert mpt.architecture(fields).model == architecture({}, {"clip_qkv": 6.0, "qk_ln": True}).model
    fields.refuse_rest()
    with pytest.raises(ConfigError, match=r"config.json: alibi: got false"):
        mpt.architecture(Fields(flat | {"alibi": False}, "config.json"))


def test_files_of_before_june_2023_have_other_names():
    model = architecture().model
    now = [tensor.name for tensor in mpt.tensors(model) if not tensor.tied]
    earlier = [name.replace("norm_f.", "ln_f.").replace("norm_1.", "ln_1.").replace("norm_2.", "ln_2.") for name in now]
    earlier = [name.replace("ffn.up_proj", "mlp.mlp_up").replace("ffn.down_proj", "mlp.mlp_down") for name in earlier]
    assert earlier != now and [mpt.renamed(name) for name in earlier] == now
    assert [mpt.renamed(name) for name in now] == now
    assert mpt.renamed("blocks.0.attn.q_ln.weight") == "blocks.0.attn.q_ln.weight"


@pytest.mark.parametrize("attention", [{}, {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "qk_ln": True}])
def test_split_and_join_are_inverse(attention):
    """Rows of the fused matrix are all heads' queries, then keys, then values."""
    random, model = np.random.default_rng(0), architecture({"no_bias": False}, attention).model
    for tensor in mpt.tensors(model):
        array = random.normal(size=tensor.shape)
        np.testing.assert_array_equal(tensor.join(tensor.split(array)), array, tensor.name)
    fused = next(tensor for tensor in mpt.tensors(model) if tensor.name == "blocks.0.attn.Wqkv.weight")
    array = random.normal(size=fused.shape)
    query, key, value = fused.split(array)
    kv_width = model.kv_heads * model.head_width
    np.testing.assert_array_equal(query[:, 1, 3], array[model.head_width + 3])
    np.testing.assert_array_equal(key[:, 1, 3], array[64 + model.head_width + 3])
    np.testing.assert_array_equal(value[:, 0, 2], array[64 + kv_width + 2])
    assert math.prod(fused.shape) == query.size + key.size + value.size
