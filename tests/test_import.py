"""Foreign checkpoints become folders of runs; bad ones are one clear error, and nothing is left behind."""

import hashlib
import json
import logging
import shutil
import struct

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from alibi_jax.config import load_config
from alibi_jax.convert import bloom
from alibi_jax.convert.importing import import_model
from alibi_jax.convert.matching import todays_names
from alibi_jax.convert.parameters import load_parameters
from alibi_jax.convert.source import open_folder
from alibi_jax.errors import ConfigError, HeldError, Refused, WeightsError
from alibi_jax.evaluate.run import load_params
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.lock import only_run
from alibi_jax.run.parse import main
from alibi_jax.sharding import make_mesh
from imported import bloom_folder
from test_aside import limited
from torch_files import save_zip

INDEX = "model.safetensors.index.json"
FIRST = "word_embeddings.weight"  # the tensor that the files begin with


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return bloom_folder(tmp_path_factory.mktemp("whole") / "bloom", "a text of some words, a text")


@pytest.fixture
def source(whole, tmp_path):
    """A copy of a BLOOM's folder, to be spoilt."""
    return shutil.copytree(whole, tmp_path / "bloom")


def change(source, edit, save=save_file, name="model.safetensors"):
    """Writes the tensors again after edit(tensors)."""
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    (source / "model.safetensors").unlink()
    save(tensors, source / name)


def cast(dtype):
    """An edit of all tensors to a type."""
    return lambda tensors: tensors.update({name: tensor.astype(dtype) for name, tensor in tensors.items()})


def describe(source, **changes):
    """Changes keys of config.json; None removes one."""
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def shard(source, spoil=lambda places: None):
    """Divides the tensors over two files with an index."""
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, source / file)
    places = {name: file for file, half in halves.items() for name in half}
    spoil(places)
    (source / INDEX).write_text(json.dumps({"weight_map": places}))


def refused(source, match, error=WeightsError, family="bloom", **options):
    """The import fails with this message, and leaves neither its folder, nor that folder's parent, nor anything aside."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(error, match=match):
        import_model(family, source, source.parent / "runs" / "run", **options)
    assert sorted(source.parent.rglob("*")) == before


def loaded(source, dtype="float32"):
    """The parameters by path, and those that were read, without a checkpoint."""
    opened = open_folder(source)
    model = bloom.FAMILY.architecture(opened.fields).model
    model = type(model)(**(vars(model) | {"parameter_dtype": dtype, "compute_dtype": dtype, "scan_layers": True}))
    stored = todays_names(bloom.FAMILY, opened.tensors)
    read = []
    tree = load_parameters(bloom.FAMILY.tensors(model), stored, model, read.append)
    assert sum(read) == sum(tensor.num_bytes for tensor in stored.values())
    return traverse_util.flatten_dict(tree, sep="/")


def test_an_import_is_the_folder_of_a_run_that_says_where_it_is_from(whole, tmp_path, capsys):
    folder = tmp_path / "runs" / "run"
    assert main(["import", "auto", str(whole), "--workdir", str(folder)]) == 0
    printed = capsys.readouterr()
    assert f"Next: alibi-jax evaluate {folder} --data.source files --data.train-path TEXT" in printed.out
    assert printed.err.count("import bloom: ") == 1 and "1/1 MB" in printed.err
    config = load_config(folder)
    assert (config.model.parameter_dtype, config.model.scan_layers, config.train.train_length) == ("float32", True, 16)
    assert (config.data.tokenizer, config.data.tokenizer_path) == ("file", str(folder))
    kept = json.loads((folder / "imported.json").read_text())
    assert (kept["family"], kept["source"], kept["config"]["n_head"]) == ("bloom", str(whole), 4)
    read = [path for path in whole.iterdir() if path.name != "special_tokens_map.json"]
    expected = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in read}
    assert {name: file["sha256"] for name, file in kept["files"].items()} == expected
    assert (folder / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]
    with jax.set_mesh(make_mesh(config.mesh)):
        restored = traverse_util.flatten_dict(load_params(folder, config, "best")[1], sep="/")
    for path, array in loaded(whole).items():
        np.testing.assert_array_equal(restored[path], array)
    assert main(["train", str(folder), "--workdir", str(folder)]) == 2
    assert "Start a new run from its parameters: alibi-jax train" in capsys.readouterr().err


def test_layers_are_stacked_and_every_kind_of_file_gives_the_same(whole, source):
    tensors = load_file(whole / "model.safetensors")
    expected = loaded(whole)
    np.testing.assert_array_equal(expected["layers/mlp/up"][1], tensors["h.1.mlp.dense_h_to_4h.weight"].T)
    shard(source)
    sharded = loaded(source)
    for path in source.glob("model*"):
        path.unlink()
    save_zip(source / "pytorch_model.bin", {f"transformer.{name}": tensor for name, tensor in tensors.items()})
    pickled = loaded(source)
    for path, array in expected.items():
        np.testing.assert_array_equal(sharded[path], array)
        np.testing.assert_array_equal(pickled[path], array)


BITS = {"bfloat16": 8, "float16": 11, "float32": 24}


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_numbers_are_rounded_once_and_it_is_logged(source, caplog, kept):
    caplog.set_level(logging.INFO, "alibi_jax")
    exact = load_file(source / "model.safetensors")[FIRST]
    for theirs in ("float32", "float16", "bfloat16"):
        change(source, cast(theirs))
        exact = exact.astype(theirs)
        caplog.clear()
        table = loaded(source, kept)["embedding/table"]
        assert table.dtype == kept
        np.testing.assert_array_equal(np.asarray(table), exact.astype(kept))
        lost = BITS[theirs] > BITS[kept]
        assert (f"rounded from {theirs} to {kept}, {BITS[theirs]} significant bits" in caplog.text) == lost


def test_auto_is_bfloat16_only_where_all_tensors_are(source, tmp_path, monkeypatch):
    """The checkpoint itself is not written: its own tests are test_checkpoint.py's."""
    monkeypatch.setattr("alibi_jax.convert.importing.Checkpoints.save", lambda *_: None)
    change(source, cast("bfloat16"))
    config = import_model("bloom", source, tmp_path / "all", train_length=7)
    assert (config.model.parameter_dtype, config.model.compute_dtype) == ("bfloat16", "bfloat16")
    assert config.train.train_length == 7
    change(source, lambda tensors: tensors.update({"ln_f.bias": tensors["ln_f.bias"].astype("float32")}))
    assert import_model("bloom", source, tmp_path / "some").model.parameter_dtype == "float32"
    with pytest.raises(ConfigError, match="expected a new or an empty folder"):
        import_model("bloom", source, tmp_path / "some")


def test_numbers_that_are_not_finite_are_warned_of_by_name(source, caplog):
    def spoil(tensors):
        tensors["h.1.mlp.dense_h_to_4h.bias"][3] = np.nan
        tensors["ln_f.weight"][:] = 3.4e38  # finite in float32, infinite in bfloat16
        tensors["h.1.self_attention.query_key_value.weight"][:] = np.inf
        tensors["h.0.input_layernorm.bias"] = np.full(16, 1e300)

    change(source, spoil)
    loaded(source, "bfloat16")
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    names = "ln_f.weight", "h.0.input_layernorm.bias", "h.1.self_attention.query_key_value.weight"
    (line,) = warned
    assert line.startswith("import: NaN or infinity in ") and line.count("h.1.") == 2
    assert all(line.count(name) == 1 for name in (*names, "h.1.mlp.dense_h_to_4h.bias"))


def test_unknown_missing_and_misshapen_tensors_are_named_together(source):
    def spoil(tensors):
        tensors["h.0.mlp.gate.weight"] = tensors.pop("h.0.mlp.dense_h_to_4h.weight")
        tensors["ln_f.weight"] = tensors["ln_f.weight"][:5].copy()
        tensors["ln_f.bias"] = np.arange(16)
        tensors["lm_head.weight"] = tensors[FIRST] + 1

    change(source, spoil)
    refused(
        source,
        r"unknown: h.0.mlp.gate.weight; missing: h.0.mlp.dense_h_to_4h.weight; of another shape: ln_f.weight \[5\] in place "
        r"of \[16\]; of another type than .*: ln_f.bias int64; unlike the tensor it is tied to: lm_head.weight and word_emb",
    )


def test_many_problems_are_counted(source):
    change(source, lambda tensors: tensors.update({f"more.{i}": np.zeros(1) for i in range(50)}))
    refused(source, r"unknown: more.0, more.1, .*, more.26 and 30 more; expected")


def test_a_tied_tensor_may_be_there_and_its_own_may_not(source):
    expected = loaded(source)["embedding/table"]
    change(source, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(FIRST)}))
    np.testing.assert_array_equal(loaded(source)["embedding/table"], expected)
    change(
        source, lambda tensors: tensors.update({f"transformer.{FIRST}": tensors["lm_head.weight"], FIRST: np.zeros(1)})
    )
    refused(source, "got tensors .*word_embeddings.weight and .*word_embeddings.weight, expected one of them")


def lie(source, change):
    """Changes the entry of the first tensor in the header, which keeps its length."""
    data = (source / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header[FIRST])
    written = json.dumps(header, separators=(",", ":")).encode()
    (source / "model.safetensors").write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


DAMAGED = {
    "cut in the tensors": (lambda source: cut(source / "model.safetensors", -100), "damaged file"),
    "cut in the header": (lambda source: cut(source / "model.safetensors", 100), "damaged file"),
    "empty": (lambda source: cut(source / "model.safetensors", 0), "got an empty file"),
    "offsets past the end": (lambda source: lie(source, lambda e: e["data_offsets"].reverse()), "damaged file"),
    "offsets of others": (lambda source: lie(source, lambda e: e.update(data_offsets=[64, 128])), "damaged file"),
    "shape": (lambda source: lie(source, lambda e: e.update(shape=[2**40, 2**40])), "damaged file"),
    "dtype": (lambda source: lie(source, lambda e: e.update(dtype="F8_E4M3")), "damaged file"),
    "pointer of Git LFS": (
        lambda source: (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "got a pointer of Git LFS, expected the file itself. Run `git lfs pull`",
    ),
    "no tensors": (
        lambda source: (source / "model.safetensors").unlink(),
        r"got no tensors \(there are: config.json, tok",
    ),
    "no folder": (shutil.rmtree, "got no folder, expected one with config.json"),
    "no config": (lambda source: (source / "config.json").unlink(), "config.json: got no such file"),
    "config no JSON": (lambda source: (source / "config.json").write_text("{'a': 1}"), "got text that is not JSON"),
    "config a list": (lambda source: (source / "config.json").write_text("[]"), "got list, expected a JSON object"),
    "shard missing": (
        lambda source: (shard(source), (source / "model-2.safetensors").unlink()),
        "got no model-2.safetensors, expected all 2 shards",
    ),
    "shard without a tensor": (
        lambda source: shard(source, lambda places: places.update(more="model-1.safetensors")),
        r"got shards without tensors that the index says they hold: more \(model-1.safetensors\)",
    ),
    "shard elsewhere": (
        lambda source: shard(source, lambda places: places.update(more="../bloom/model-1.safetensors")),
        "names of files beside the index",
    ),
    "index of numbers": (
        lambda source: (source / INDEX).write_text('{"weight_map": {"a": 1}}'),
        "names of files beside",
    ),
    "shard cut": (
        lambda source: (shard(source), cut(source / "model-2.safetensors", -1)),
        "model-2.safetensors: got a dam",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(source, case):
    spoil, match = DAMAGED[case]
    spoil(source)
    refused(source, match)


def test_a_path_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"path: got .*nowhere, which is no folder, expected a folder with config.json"
    ):
        import_model("auto", tmp_path / "nowhere", tmp_path / "run")
    assert not any(tmp_path.iterdir())


CONFIGS = {
    "key missing": ({"n_layer": None}, "bloom", "config.json: n_layer: got no such key"),
    "key unknown": ({"rope": 1}, "bloom", "config.json: got unknown keys: rope, expected"),
    "value not implemented": (
        {"apply_residual_connection_post_layernorm": True},
        "bloom",
        "apply_residual_connection_post_layernorm: got true, expected false",
    ),
    "sizes that do not fit": (
        {"n_head": 3},
        "bloom",
        "config.json: n_head: got 3, expected a divisor of the width, 16",
    ),
    "another family": ({}, "mpt", "config.json: model_type: got 'bloom', expected 'mpt'.* Import it as its own family"),
    "no known family": (
        {"model_type": "llama"},
        "auto",
        "model_type: got 'llama', expected that of a family which is impl",
    ),
    "no family": ({"model_type": None}, "auto", "model_type: got None, expected that of a family"),
    "unknown name": ({}, "gpt2", "family: got 'gpt2', expected auto or one of bloom, mpt"),
    "no length": ({"seq_length": None}, "bloom", "train_length: got none.* Pass --train-length N"),
    "tokenizer too large": ({}, "bloom", "tokenizer: got 270 tokens, expected at most 260, the rows of the model"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_do_not_fit_are_refused(source, case):
    changes, family, match = CONFIGS[case]
    describe(source, **changes)
    if case == "tokenizer too large":
        describe(source, vocab_size=260)
        change(source, lambda tensors: tensors.update({FIRST: tensors[FIRST][:260].copy()}))
    refused(source, match, Refused, family)


def test_a_bucket_and_a_file_are_no_place_for_an_import(source, tmp_path):
    (tmp_path / "file").touch()
    for place, match in ((tmp_path / "file", "which is there"), (tmp_path / "a*b", "a path without")):
        with pytest.raises(ConfigError, match=match):
            import_model("bloom", source, place)
    with pytest.raises(
        ConfigError, match=r"workdir: got gs://bucket/run, expected a folder on a disk|the package gcsfs"
    ):
        import_model("bloom", source, "gs://bucket/run")


@pytest.mark.parametrize("size", [20, 200, 12_000], ids=["at once", "tokenizer", "checkpoint"])
def test_a_disk_that_fills_leaves_nothing(source, capsys, size):
    with limited(size):
        status = main(["import", "bloom", str(source), "--workdir", str(source.parent / "runs" / "run")])
    assert status == (1 if size == 12_000 else 2)
    error = capsys.readouterr().err
    assert "could not write step 0 in " in error if status == 1 else "cannot be written (File too large)" in error
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize("at", ["load_parameters", "Checkpoints.save"])
def test_ctrl_c_leaves_nothing(source, monkeypatch, at):
    """Also while Orbax's threads write."""
    work = load_parameters if at == "load_parameters" else Checkpoints.save

    def stop(*arguments, **options):
        work(*arguments, **options)
        raise KeyboardInterrupt("stop")

    monkeypatch.setattr(f"alibi_jax.convert.importing.{at}", stop)
    refused(source, "stop", KeyboardInterrupt)


def test_what_a_killed_import_left_is_removed_and_another_one_at_work_is_seen(source, tmp_path, monkeypatch):
    aside = tmp_path / ".run.import"
    (aside / "checkpoints").mkdir(parents=True)
    with only_run(aside), pytest.raises(HeldError, match="another import is at work"):
        import_model("bloom", source, tmp_path / "run")
    monkeypatch.setattr("alibi_jax.convert.importing.Checkpoints.save", lambda *_: None)
    import_model("bloom", source, tmp_path / "run")
    assert not aside.exists() and not list((tmp_path / "run" / "checkpoints").iterdir())
