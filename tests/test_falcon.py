"""What Falcon-RW's and BLOOM's config.json say: they share their tensors' layout."""

import math

import numpy as np
import pytest

from alibi_jax.convert import bloom, falcon
from alibi_jax.convert.fields import Fields
from alibi_jax.errors import ConfigError

FALCON = {
    "alibi": True,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["FalconForCausalLM"],
    "attention_dropout": 0.0,
    "bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "falcon",
    "multi_query": False,
    "new_decoder_architecture": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "parallel_attn": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 101,
}
BLOOM = {  # the keys of bloom-560m's
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "unk_token_id": 0,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "model_type": "bloom",
    "n_embed": 64,
    "n_inner": None,
    "n_layer": 2,
    "num_attention_heads": 4,
    "offset_alibi": 100,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "slow_but_exact": False,
    "transformers_version": "4.20.0",
    "use_cache": True,
    "vocab_size": 101,
}
OLD_NAMES = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}


def architecture(family, config: dict):
    fields = Fields(config, "config.json")
    read = family.architecture(fields)
    fields.refuse_rest()
    return read


@pytest.mark.parametrize("old", [False, True])
def test_falcon_rw(old):
    config = {OLD_NAMES.get(name, name) if old else name: value for name, value in FALCON.items()}
    read = architecture(falcon, config | ({"model_type": "RefinedWebModel"} if old else {"num_kv_heads": 4}))
    model = read.model
    assert read.train_length is None
    assert (model.num_layers, model.width, model.num_heads, model.mlp_width, model.vocab_size) == (2, 64, 4, 256, 101)
    assert (model.slope_rounding, model.slope_divisor) == ("bfloat16", 4.0)
    assert (model.activation, model.embedding_norm, model.tied_embedding) == ("gelu_erf", False, True)


def test_bloom():
    read = architecture(bloom, BLOOM)
    model = read.model
    assert read.train_length == 2048
    assert (model.num_layers, model.width, model.num_heads, model.mlp_width, model.vocab_size) == (2, 64, 4, 256, 101)
    assert (model.slope_rounding, model.slope_divisor, model.bias_max) == ("none", 1.0, 8.0)
    assert (model.activation, model.embedding_norm, model.tied_embedding) == ("gelu_tanh", True, True)


@pytest.mark.parametrize(
    ("family", "config", "changes", "message"),
    [
        (falcon, FALCON, {"alibi": False}, "alibi: got false, expected true"),
        (falcon, FALCON, {"multi_query": True}, "multi_query: got true, expected false"),
        (falcon, FALCON, {"parallel_attn": True}, "parallel_attn: got true, expected false"),
        (falcon, FALCON, {"new_decoder_architecture": True}, "new_decoder_architecture: got true, expected false"),
        (falcon, FALCON, {"activation": "relu"}, 'activation: got "relu", expected "gelu"'),
        (falcon, FALCON, {"gate": 1}, "config.json: got unknown keys: gate"),
        (falcon, FALCON, {"num_attention_heads": 0}, "num_attention_heads: got 0, expected a divisor of the width, 64"),
        (bloom, BLOOM, {"apply_residual_connection_post_layernorm": True}, "post_layernorm: got true, expected false"),
        (bloom, BLOOM, {"n_inner": 128}, "n_inner: got 128, expected null or 256"),
        (bloom, BLOOM, {"gate": 1}, "config.json: got unknown keys: gate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) and len(value) == 1 else "",
)
def test_what_is_refused_by_name(family, config, changes, message):
    with pytest.raises(ConfigError) as error:
        architecture(family, config | changes)
    assert message in str(error.value)


def test_falcon_without_its_keys_is_no_alibi_model():
    """transformers' class has other defaults than Falcon-RW."""
    for name, message in (("alibi", "alibi"), ("multi_query", "multi_query"), ("parallel_attn", "parallel_attn")):
        with pytest.raises(ConfigError, match=message):
            architecture(falcon, {key: value for key, value in FALCON.items() if key != name})


@pytest.mark.parametrize(("family", "config"), [(falcon, FALCON), (falcon, FALCON | {"bias": False}), (bloom, BLOOM)])
def test_split_and_join_are_inverse(family, config):
    """Rows of the fused matrix go by head: its query, key and value."""
    random, model = np.random.default_rng(0), architecture(family, config).model
    tensors = {tensor.name: tensor for tensor in family.tensors(model)}
    assert ("word_embeddings_layernorm.weight" in tensors) == (family is bloom)
    assert ("h.0.mlp.dense_h_to_4h.bias" in tensors) == config.get("bias", True)
    for tensor in tensors.values():
        array = random.normal(size=tensor.shape)
        np.testing.assert_array_equal(tensor.join(tensor.split(array)), array, tensor.name)
    fused = tensors["h.0.self_attention.query_key_value.weight"]
    array = random.normal(size=fused.shape)
    for part, ours in enumerate(fused.split(array)):
        np.testing.assert_array_equal(ours[:, 2, 5], array[(2 * 3 + part) * 16 + 5])
    assert math.prod(fused.shape) == 3 * 64 * 64
