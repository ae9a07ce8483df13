"""Configs: everything wrong is said before work starts, with got / expected / what to do."""

import dataclasses
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from alibi_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    differing_fields,
    from_json,
    load_config,
    parse_stride,
    replace,
    to_json,
)
from alibi_jax.errors import ConfigError


def test_json_round_trip():
    config = Config(
        model=ModelConfig(position="t5", num_heads=4), evaluate=EvaluateConfig(lengths=(8, 16), strides=("L", "4"))
    )
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"positon": "alibi"}}', r"model\.positon.*Did you mean 'position'"),
        ('{"modle": {}}', r"modle.*Did you mean 'model'"),
        ('{"model": {"width": "128"}}', r"width: got '128', expected int"),
        ('{"model": {"width": true}}', r"width: got True, expected int"),
        ('{"model": {"position": "alibbi"}}', r"position: got 'alibbi', expected 'alibi' \| 'sinusoidal'"),
        ('{"model": []}', r"model: got list, expected a JSON object"),
        ('{"train": {"validate_lengths": [1.5]}}', r"validate_lengths: got \(1\.5,\)"),
        ("{", r"not JSON"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        from_json(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(width=100, num_heads=8), r"8 heads for width 100.*Use width 96"),
        (lambda: ModelConfig(position="rotary", width=6, num_heads=2), r"even head width"),
        (lambda: ModelConfig(position="sinusoidal", width=7, num_heads=1), r"even width"),
        (lambda: ModelConfig(attention_dropout=1.0), r"attention_dropout: got 1\.0"),
        (lambda: ModelConfig(num_layers=0), r"num_layers: got 0"),
        (lambda: ModelConfig(num_kv_heads=3), r"num_kv_heads: got 3 heads of keys and values for 8 attention heads"),
        (lambda: ModelConfig(biases=("out", "qkv")), r"biases: got .* in the order qkv, out, up, down"),
        (lambda: ModelConfig(biases=("up", "up")), r"biases: got .* each name once"),
        (lambda: ModelConfig(embedding_multiplier="width"), r"got 'width', expected float \| 'sqrt_width'"),
        (
            lambda: ModelConfig(slope_scaling="ntk"),
            r"slope_scaling: got 'ntk' with slope_divisor 1 and no slope_length",
        ),
        (lambda: ModelConfig(slope_scaling="ntk", num_heads=1, slope_divisor=2.0), r"'ntk' with 1 heads"),
        (lambda: ModelConfig(slope_scaling="ntk", num_heads=6, width=12, slope_divisor=2.0), r"'ntk' with 6 heads"),
        (lambda: ModelConfig(slope_scaling="ntk", slopes="equal", slope_length=9), r"'ntk' with 8 heads .*'equal'"),
        (lambda: ModelConfig(slope_rounding="bfloat16", slopes="learned"), r"slope_rounding: got .*'learned'"),
        (
            lambda: ModelConfig(slope_rounding="bfloat16", slope_scaling="ntk", slope_divisor=2.0),
            r"slope_rounding: got 'bfloat16' .* slope_scaling 'ntk', expected fixed slopes that are divided alike",
        ),
        (lambda: ModelConfig(t5_max_distance=16), r"t5_max_distance"),
        (lambda: DataConfig(source="files"), r"data\.train_path"),
        (lambda: DataConfig(source="tfds"), r"data\.tfds_name"),
        (lambda: DataConfig(tokenizer="bpe", bpe_vocab_size=256), r"at least 257"),
        (lambda: OptimizerConfig(final_learning_rate=1.0), r"between 0 and the peak"),
        (lambda: TrainConfig(batch_size=10, gradient_accumulation=4), r"4 micro-batches of a batch of 10"),
        (lambda: TrainConfig(validate_lengths=(0,)), r"lengths: got 0, expected 1 to 2147483647"),
        (lambda: EvaluateConfig(lengths=(0,)), r"lengths: got 0, expected 1 to 2147483647"),
        (lambda: EvaluateConfig(lengths=(-4,)), r"got -4"),
        (lambda: Config(evaluate=EvaluateConfig(lengths=(64,), strides=("L", "65"))), r"65 tokens at length 64"),
        (lambda: Config(evaluate=EvaluateConfig(strides=("129",))), r"129 tokens at length 128"),
        (lambda: Config(evaluate=EvaluateConfig(far_stride="200")), r"200 tokens at length 128"),
        (lambda: EvaluateConfig(strides=("half",)), r"'HALF'|'half'"),
        (lambda: MeshConfig(data=-1, fsdp=-1), r"at most one of them -1"),
        (lambda: MeshConfig(tensor=0), r"tensor 0"),
        (
            lambda: Config(
                model=ModelConfig(position="learned", learned_length=64), train=TrainConfig(train_length=128)
            ),
            r"at most 64, the longest input of position 'learned'",
        ),
        (lambda: Config(optimizer=OptimizerConfig(warmup_steps=2000)), r"at most train\.steps, 1000"),
    ],
)
def test_impossible_values_are_refused_when_made(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@hypothesis.given(st.integers(1, 10_000), st.integers(1, 100))
def test_strides_are_shares_or_tokens(length, divisor):
    assert parse_stride("L", length) == length
    assert parse_stride(f"L/{divisor}", length) == max(1, length // divisor)
    assert parse_stride(str(length), length) == length
    with pytest.raises(ConfigError, match="lower the stride|Lower the stride"):
        parse_stride(str(length + 1), length)


def test_overrides_are_typed_and_name_the_nearest_option(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(Config()))
    config = load_config(tmp_path, ["--model.position", "rotary", "--train.validate-lengths", "64", "128"])
    assert config.model.position == "rotary"
    assert config.train.validate_lengths == (64, 128)
    with pytest.raises(SystemExit):
        load_config(tmp_path, ["--model.positoin", "rotary"])
    assert "--model.position" in capsys.readouterr().err


def test_every_field_has_a_meaning_in_the_help(capsys):
    with pytest.raises(SystemExit):
        load_config("configs/quickstart.py", ["--help"])
    shown = capsys.readouterr().out
    for section in ("model", "data", "optimizer", "train", "evaluate", "mesh"):
        for field in dataclasses.fields(getattr(Config(), section)):
            assert f"--{section}.{field.name.replace('_', '-')}" in shown


def test_differing_fields_are_named_and_sections_can_be_left_out():
    one, other = Config(), replace(replace(Config(), "model", width=256), "mesh", fsdp=2)
    assert differing_fields(one, other) == ["model.width: 128 -> 256", "mesh.fsdp: 1 -> 2"]
    assert differing_fields(one, other, ignore=("mesh",)) == ["model.width: 128 -> 256"]
    assert differing_fields(one, other, ignore=("mesh", "model.width")) == []


def test_configs_are_frozen_and_json_holds_every_field():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.width = 3
    written = json.loads(to_json(Config()))
    assert {f.name for f in dataclasses.fields(ModelConfig)} == set(written["model"])


def test_replacing_a_choice_sets_the_fields_of_the_one_before_to_their_defaults():
    config = Config(model=ModelConfig(bias_max=10.0), data=DataConfig(source="tfds", tfds_name="lm1b"))
    assert replace(config, "model", position="rotary").model == ModelConfig(position="rotary")
    assert replace(config, "data", source="files", train_path="t").data == DataConfig(source="files", train_path="t")
    assert replace(config, "model", width=256).model.bias_max == 10.0
    with pytest.raises(ConfigError, match=r"model\.bias_max: got 12\.0 with model\.position 'none'"):
        replace(config, "model", position="none", bias_max=12.0)


def test_fields_that_did_nothing_in_a_run_do_not_keep_it_from_being_read(tmp_path):
    """Earlier versions let them be set."""
    sections = {"model": {"position": "rotary", "bias_max": 10.0}, "optimizer": {"warmup_steps": 0, "momentum": 0.5}}
    (tmp_path / "config.json").write_text(json.dumps(sections))
    config = load_config(tmp_path)
    assert config == Config(model=ModelConfig(position="rotary"), optimizer=OptimizerConfig(warmup_steps=0))
    with pytest.raises(
        ConfigError, match=r"model\.bias_max: got 10\.0 .*, or set model\.bias_max to its default, 8\.0"
    ):
        load_config(tmp_path / "config.json")


def test_fields_of_earlier_versions_are_read_as_what_they_were(tmp_path):
    """What a run's config.json of such a version holds, and so its checkpoints; a recipe gets the usual error."""
    earlier = {"activation": "gelu", "use_biases": False, "scale_embedding": False}
    today = ModelConfig(activation="gelu_tanh", biases=(), embedding_multiplier=1.0)
    assert from_json(json.dumps({"model": earlier})).model == today
    assert from_json('{"model": {"activation": "relu", "use_biases": true, "scale_embedding": true}}') == Config()
    with pytest.raises(ConfigError, match=r"model\.use_biases: got an unknown key"):
        from_json('{"model": {"use_biases": true, "biases": []}}')
    recipe = (
        "from alibi_jax.config import *\ndef get_config():\n    return Config(model=ModelConfig(use_biases=False))\n"
    )
    (tmp_path / "recipe.py").write_text(recipe)
    with pytest.raises(ConfigError, match=r"recipe\.py, line 3: .*Did you mean 'biases'"):
        load_config(tmp_path / "recipe.py")
    with pytest.raises(ConfigError, match=r"activation: got 'gelu', expected 'relu' \| 'gelu_tanh' \| 'gelu_erf'"):
        ModelConfig(activation="gelu")
