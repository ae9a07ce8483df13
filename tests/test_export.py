"""Exported models: the same bits when they are imported again, a refusal that names every field, nothing left behind."""

import dataclasses
import errno
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from alibi_jax.config import (
    Config,
    MeshConfig,
    ModelConfig,
    differing_fields,
    load_config,
)
from alibi_jax.convert import exporting, shards
from alibi_jax.convert.exporting import export_run
from alibi_jax.convert.importing import import_model
from alibi_jax.data.corpus import prepare
from alibi_jax.data.tokenizer.file import FileTokenizer
from alibi_jax.errors import ConfigError
from alibi_jax.evaluate.run import load_params
from alibi_jax.run.parse import main
from alibi_jax.sharding import make_mesh
from runs import assert_identical, random_run

SIZES = {"num_layers": 2, "width": 24, "num_heads": 3, "mlp_width": 96, "vocab_size": 50}
BLOOM = {"activation": "gelu_tanh", "embedding_norm": True, "embedding_multiplier": 1.0}
MPT = {"activation": "gelu_erf", "biases": (), "norm_biases": False, "embedding_multiplier": 1.0}
EVERYTHING = {  # of a model that no other library has
    "num_kv_heads": 1,
    "gated_mlp": True,
    "activation": "silu",
    "norm": "rms",
    "qk_norm": "channels",
    "position": "t5",
    "adaptive_cutoffs": (20, 35),
    "adaptive_factor": 2,
}


def saved_parameters(folder) -> tuple[Config, dict]:
    """(config, parameters) of a folder's last checkpoint."""
    config = load_config(folder)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        return config, jax.tree.map(np.asarray, load_params(folder, config, "last")[1])


def unstacked(config: Config, params: dict) -> dict:
    """The parameters with an entry for each layer."""
    layers = params.get("layers")
    if layers is None:
        return params
    each = {f"layer_{i}": jax.tree.map(lambda array, i=i: array[i], layers) for i in range(config.model.num_layers)}
    return {name: part for name, part in params.items() if name != "layers"} | each


def same_model(one: Config, other: Config) -> bool:
    fields = [f"model.{name}" for name in ("scan_layers", "compute_dtype")]
    return not differing_fields(one, other, ("data", "optimizer", "train", *fields))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("bloom", BLOOM | {"scan_layers": True}),
        ("bloom", BLOOM | {"tied_embedding": False, "parameter_dtype": "bfloat16"}),
        ("mpt", MPT | {"clip_qkv": 3.0, "score_multiplier": 0.7, "bias_max": 16.0}),
        ("safetensors", EVERYTHING | {"scan_layers": True, "parameter_dtype": "bfloat16"}),
    ],
    ids=["bloom", "bloom-untied-bfloat16", "mpt", "own"],
)
def test_an_export_is_imported_again_to_the_bit(name, model, tmp_path):
    run = random_run(tmp_path / "run", SIZES | model)
    export_run(tmp_path / "run", name, tmp_path / "out")
    assert same_model(run[0], import_model("auto", tmp_path / "out", tmp_path / "again"))
    assert_identical(unstacked(*saved_parameters(tmp_path / "again")), unstacked(*run))


def test_an_import_is_exported_again_to_the_bit_and_in_shards(tmp_path, monkeypatch):
    run = random_run(tmp_path / "run", SIZES | MPT)
    export_run(tmp_path / "run", "mpt", tmp_path / "first")
    import_model("mpt", tmp_path / "first", tmp_path / "imported")
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)
    export_run(tmp_path / "imported", "mpt", tmp_path / "second")
    files = sorted((tmp_path / "second").glob("*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size < 12_000 for file in files)
    first = load_file(tmp_path / "first" / "model.safetensors")
    second = {name: array for file in files for name, array in load_file(file).items()}
    assert first.keys() == second.keys() and "transformer.blocks.1.attn.Wqkv.weight" in first
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert json.loads((tmp_path / "first/config.json").read_text()) == json.loads(
        (tmp_path / "second/config.json").read_text()
    )
    import_model("auto", tmp_path / "second", tmp_path / "again")
    assert_identical(unstacked(*saved_parameters(tmp_path / "again")), unstacked(*run))


def test_the_tokenizer_of_the_corpus_comes_along(tiny_data, tmp_path, capsys):
    data = dataclasses.replace(tiny_data, tokenizer="bpe", bpe_vocab_size=270)
    corpus = prepare(data)
    random_run(tmp_path / "run", SIZES | BLOOM | {"vocab_size": 270}, data, corpus.fingerprint)
    export_run(tmp_path / "run", "bloom", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    end = corpus.tokenizer.first_input
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (end, end, None)
    imported = import_model("auto", tmp_path / "out", tmp_path / "again")
    tokenizer = FileTokenizer.train(imported.data, ())
    text = "the north and the south\n"
    np.testing.assert_array_equal(tokenizer.encode(text), corpus.tokenizer.encode(text))
    export_run(tmp_path / "again", "bloom", tmp_path / "twice")
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "twice" / path.name).read_bytes() == path.read_bytes(), path.name
    corpus.folder.rename(tmp_path / "elsewhere")
    assert main(["export", str(tmp_path / "run"), "--format", "bloom", "--out", str(tmp_path / "without")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"exported: {tmp_path / 'without'}\n"
    assert not (tmp_path / "without" / "tokenizer.json").exists() and str(corpus.folder) in captured.err


@pytest.mark.parametrize(
    ("name", "model", "refused"),
    [
        ("bloom", {}, {"activation": ("'relu'", "'gelu_tanh'"), "embedding_norm": ("False", "True")}),
        (
            "bloom",
            BLOOM | {"position": "rotary", "mlp_width": 95},
            {"position": ("'rotary'", "'alibi'"), "mlp_width": ("95", "96")},
        ),
        (
            "bloom",
            BLOOM | {"slope_divisor": 2.0, "bias_max": 4.0},
            {"slope_divisor": ("2.0", "1.0"), "bias_max": ("4.0", "8.0")},
        ),
        (
            "bloom",
            BLOOM | {"num_kv_heads": 1, "clip_qkv": 1.0},
            {"num_kv_heads": ("1", "None"), "clip_qkv": ("1.0", "None")},
        ),
        (
            "bloom",
            BLOOM | {"final_norm": False, "norm": "rms"},
            {"final_norm": ("False", "True"), "norm": ("'rms'", "'layer'")},
        ),
        ("mpt", BLOOM, {"biases": ("('qkv', 'out', 'up', 'down')", "()"), "norm_biases": ("True", "False")}),
        (
            "mpt",
            MPT | {"tied_embedding": False, "logit_multiplier": 2.0},
            {"tied_embedding": ("False", "True"), "logit_multiplier": ("2.0", "1.0")},
        ),
        (
            "mpt",
            MPT | {"bias_max": 4.5, "slopes": "equal"},
            {"bias_max": ("4.5", "4.0"), "slopes": ("'equal'", "'geometric'")},
        ),
    ],
    ids=["not", "position", "slopes", "heads", "norm", "biases", "tied", "mpt-slopes"],
)
def test_a_refusal_names_all_fields(name, model, refused):
    config = Config(ModelConfig(**SIZES | model))
    with pytest.raises(ConfigError) as error:
        exporting.check_fits(name, config.model, exporting.FORMATS[name].config(config))
    for field, (got, needed) in refused.items():
        assert f"model.{field}: got {got}, needed {needed}" in str(error.value)
    assert "--format safetensors" in str(error.value)


def test_what_training_alone_or_the_machine_needs_is_no_reason_to_refuse():
    model = BLOOM | {"num_kv_heads": 3, "residual_dropout": 0.1, "attention": "reference", "remat": True}
    config = Config(ModelConfig(**SIZES | model))
    exporting.check_fits("bloom", config.model, exporting.FORMATS["bloom"].config(config))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    random_run(tmp_path / "run", SIZES | BLOOM)

    def full(path, content):
        if path.name == "config.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(exporting, "write_atomically", full)
    with pytest.raises(ConfigError, match=r"out: got .*No space left on device"):
        export_run(tmp_path / "run", "bloom", tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="out: got .* expected a new or an empty folder"):
        export_run(tmp_path, "bloom", tmp_path / "out")
    with pytest.raises(ConfigError, match="workdir: got .* no folder"):
        export_run(tmp_path / "none", "bloom", tmp_path / "new")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
