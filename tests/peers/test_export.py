"""Exported models in transformers: the same log-probabilities, and the same tokens of a text."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alibi_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from alibi_jax.convert.exporting import export_run
from alibi_jax.data.corpus import open_corpus
from alibi_jax.train import train
from parity import compare
from peers.test_import import LENGTHS, our_log_probabilities, pairs, their_log_probabilities
from runs import random_run

pytestmark = pytest.mark.peers
SIZES = {"num_layers": 2, "width": 24, "num_heads": 3, "mlp_width": 96, "embedding_multiplier": 1.0}


def test_a_trained_run_exported_as_bloom_loads_in_transformers(tiny_data, tmp_path):
    data = dataclasses.replace(tiny_data, tokenizer="bpe", bpe_vocab_size=270)
    config = Config(
        model=ModelConfig(**SIZES, activation="gelu_tanh", embedding_norm=True, scan_layers=True),
        data=data,
        optimizer=OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=0),
        train=TrainConfig(train_length=LENGTHS[0], batch_size=8, steps=2, validate_every=0),
    )
    train(config, tmp_path / "run")
    export_run(tmp_path / "run", "bloom", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.float32 and type(theirs).__name__ == "BloomForCausalLM"
    both = pairs(our_log_probabilities(tmp_path / "run"), their_log_probabilities(theirs))
    compare("bloom", 3, "exported: a trained run", "transformers", both)
    ours, tokenizer = open_corpus(data).tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the north and the south,\nwest  of naïve ☃ and <|endoftext|"
    assert tokenizer(text)["input_ids"] == ours.encode(text)[:-1].tolist()
    assert (
        tokenizer.eos_token_id
        == theirs.config.eos_token_id
        == theirs.generation_config.eos_token_id
        == ours.first_input
    )
    assert tokenizer.decode(ours.encode(text)[:-1].tolist()) == text


def test_a_model_exported_as_mpt_loads_in_transformers(tmp_path):
    model = SIZES | {"vocab_size": 61, "activation": "gelu_erf", "biases": (), "norm_biases": False}
    random_run(tmp_path / "run", model | {"clip_qkv": 0.7, "score_multiplier": 1.5, "parameter_dtype": "bfloat16"})
    export_run(tmp_path / "run", "mpt", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", max_seq_len=LENGTHS[1])
    assert theirs.dtype == torch.bfloat16 and type(theirs).__name__ == "MptForCausalLM"
    both = pairs(our_log_probabilities(tmp_path / "run"), their_log_probabilities(theirs.float()))
    compare("mpt", 3, "exported in bfloat16: clip_qkv, softmax_scale", "transformers", both)
