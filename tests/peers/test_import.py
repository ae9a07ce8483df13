"""Random models in transformers' own files, imported, beside transformers' classes: rows of the parity table."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM, MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from alibi_jax.config import MeshConfig, load_config
from alibi_jax.convert.importing import import_model
from alibi_jax.evaluate.run import load_params
from alibi_jax.model import TransformerLM
from alibi_jax.sharding import make_mesh
from mpt_model import Mpt, random_weights
from parity import compare

pytestmark = pytest.mark.peers
LENGTHS = 72, 288  # tokens: as trained, and four times as many; bfloat16 rounds positions past 256
WIDTH, VOCABULARY = 48, 61
MPT = {"d_model": WIDTH, "n_layers": 2, "max_seq_len": LENGTHS[1], "vocab_size": VOCABULARY}


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights large enough for attention to matter, and biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def bloom(heads: int) -> torch.nn.Module:
    return randomized(BloomForCausalLM(BloomConfig(hidden_size=WIDTH, n_layer=2, n_head=heads, vocab_size=VOCABULARY)))


def mpt(heads: int, **attention) -> torch.nn.Module:
    """transformers computes with bias_max 8 whatever the config says: its method is replaced where that says otherwise."""
    model = randomized(MptForCausalLM(MptConfig(**MPT, n_heads=heads, attn_config=attention)))
    bias_max = attention.get("alibi_bias_max", 8)
    model.transformer.build_mpt_alibi_tensor = functools.partial(build_mpt_alibi_tensor, alibi_bias_max=bias_max)
    return model


def falcon(heads: int) -> torch.nn.Module:
    """attn_implementation "eager" would add the bias twice."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": heads, "vocab_size": VOCABULARY}
    kind = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "attn_implementation": "sdpa"}
    return randomized(FalconForCausalLM(FalconConfig(**sizes, **kind)))


def save_whole(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)


def save_shards(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def save_bin(model: torch.nn.Module, folder: Path) -> None:
    """As transformers saved before version 5 unless asked otherwise: the tied head is in the file, too."""
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def tokens_of(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(VOCABULARY, size=(2, length))


def our_log_probabilities(workdir: Path) -> dict[int, np.ndarray]:
    config = load_config(workdir)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        _, params = load_params(workdir, config, "last")
        apply = jax.jit(TransformerLM(config.model).apply)
        return {length: jax.nn.log_softmax(apply({"params": params}, tokens_of(length))) for length in LENGTHS}


@torch.no_grad()
def their_log_probabilities(model: torch.nn.Module) -> dict[int, np.ndarray]:
    return {length: model(torch.tensor(tokens_of(length))).logits.log_softmax(-1).numpy() for length in LENGTHS}


def pairs(ours: dict, theirs: dict) -> dict[int, tuple]:
    return {length: (ours[length], theirs[length]) for length in LENGTHS}


class Case(NamedTuple):
    """A model of transformers, what the table says of it, and how it is saved."""

    family: Callable[..., torch.nn.Module]
    heads: int
    attention: dict
    options: str
    save: Callable[[torch.nn.Module, Path], None]
    oracle: str = "transformers"


PATCHED = "transformers with the method patched, which ignores bias_max"
CASES = {
    "bloom-4": Case(bloom, 4, {}, "one file", save_whole),
    "bloom-12": Case(bloom, 12, {}, ".bin file", save_bin),
    "bloom-16": Case(bloom, 16, {}, "shards", save_shards),
    "mpt-12": Case(mpt, 12, {}, "one file", save_whole),
    "mpt-16-clip": Case(mpt, 16, {"clip_qkv": 0.5}, "clip_qkv 0.5, .bin file", save_bin),
    "mpt-4-scale": Case(mpt, 4, {"softmax_scale": 0.5}, "softmax_scale 0.5", save_whole),
    "mpt-12-bias_max": Case(mpt, 12, {"alibi_bias_max": 16}, "alibi_bias_max 16", save_shards, PATCHED),
    "falcon-4": Case(falcon, 4, {}, "rounded bias", save_whole, "transformers, sdpa"),
    "falcon-12": Case(falcon, 12, {}, "rounded bias, shards", save_shards, "transformers, sdpa"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_imported_models_equal_transformers(case, tmp_path):
    model = case.family(case.heads, **case.attention)
    case.save(model, tmp_path / "theirs")
    import_model("auto", tmp_path / "theirs", tmp_path / "ours", train_length=LENGTHS[0])
    both = pairs(our_log_probabilities(tmp_path / "ours"), their_log_probabilities(model))
    compare(case.family.__name__, case.heads, case.options, case.oracle, both)


DEFINED = {  # by llm-foundry, and not in the class of transformers
    "grouped": (
        {"attn_type": "grouped_query_attention", "kv_n_heads": 3, "qk_ln": True},
        {"no_bias": False, "norm_type": "layernorm", "logit_scale": "inv_sqrt_d_model", "tie_word_embeddings": True},
        "3 key/value heads, qk_ln, biases, logit_scale",
    ),
    "multiquery": (
        {"attn_type": "multiquery_attention", "kv_n_heads": 1, "qk_gn": True, "clip_qkv": 2.0, "alibi_bias_max": 16},
        {"no_bias": True, "norm_type": "rmsnorm", "tie_word_embeddings": False},
        "1 key/value head, qk_gn, clip_qkv 2, RMSNorm, untied, alibi_bias_max 16",
    ),
}


@pytest.mark.parametrize(("attention", "changes", "options"), DEFINED.values(), ids=DEFINED)
def test_imported_mpts_equal_their_definition(attention, changes, options, tmp_path):
    config = MPT | {"model_type": "mpt", "n_heads": 12, "attn_config": {"alibi": True} | attention} | changes
    weights, folder = random_weights(config, VOCABULARY), tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    prefixed = {
        name if name.startswith("lm_head") else f"transformer.{name}": weight for name, weight in weights.items()
    }
    save_file(prefixed, folder / "model.safetensors")
    import_model("mpt", folder, tmp_path / "ours", train_length=LENGTHS[0])
    model = Mpt(config, weights)
    theirs = {length: model.log_probabilities(tokens_of(length)) for length in LENGTHS}
    compare("mpt", 12, options, "independent float64", pairs(our_log_probabilities(tmp_path / "ours"), theirs))
