"""`train --init-from DIR`: a new run from the parameters of another folder."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.config import MeshConfig, load_config, replace, to_json
from alibi_jax.data.batches import Batches
from alibi_jax.data.corpus import open_corpus
from alibi_jax.errors import ConfigError
from alibi_jax.evaluate.run import evaluate_run, load_params
from alibi_jax.init_from import initial_params, keep_init_from
from alibi_jax.model import TransformerLM
from alibi_jax.run.parse import parse
from alibi_jax.sharding import make_mesh
from alibi_jax.train import programs, train
from conftest import assert_close
from imported import imported_bloom
from runs import assert_identical, saved_state, tiny_config


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    """A config and a folder: in it the imported model `bloom`, of bfloat16, and the run `run`, which began with it."""
    folder = tmp_path_factory.mktemp("init_from")
    words = " ".join(np.random.default_rng(0).choice(["north", "south", "east", "west", "\n"], 3000))
    (folder / "text.txt").write_text(words)
    imported_bloom(folder, words, dtype="bfloat16", vocab_size=272)
    own = load_config(folder / "bloom")
    data = replace(
        own, "data", source="files", train_path=str(folder / "text.txt"), directory=str(folder / "corpora")
    ).data
    model = dataclasses.replace(own.model, compute_dtype="float32")
    config = dataclasses.replace(tiny_config(data), model=model)
    resolved = train(config, folder / "run", init_from=folder / "bloom")
    assert (own.model.parameter_dtype, resolved.model.parameter_dtype) == ("bfloat16", "float32")
    return resolved, folder


def params_of(folder):
    """The imported model's parameters, as float32."""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        _, params = load_params(folder / "bloom", load_config(folder / "bloom"), "best")
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float32), params)


def test_the_first_loss_is_that_of_the_imported_model_on_the_first_batch(began):
    config, folder = began
    recipe = config.train
    batches = Batches(open_corpus(config.data).tokens("train"), recipe.train_length, recipe.batch_size, recipe.seed)
    score = jax.jit(TransformerLM(config.model).apply, static_argnames="method")
    nats = score({"params": params_of(folder)}, *map(jnp.asarray, batches.batch_at(0)), method="nats")
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    first = next(line for line in lines if "loss" in line)
    assert first["step"] == 1
    assert_close(first["loss"], np.mean(nats), "loss")
    kept = json.loads((folder / "run/init_from.json").read_text())
    assert (kept["source"], kept["step"], len(kept["checksum"])) == (str(folder / "bloom"), 0, 64)
    assert {x.dtype for x in jax.tree.leaves(saved_state(config, folder / "run").params)} == {np.dtype("float32")}


def test_a_run_goes_on_exactly_without_the_other_folder_and_from_no_third(began, tmp_path):
    config, folder = began
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    train(config, tmp_path / "run", init_from=folder / "bloom")
    assert_identical(saved_state(config, tmp_path / "run"), saved_state(config, folder / "run"))


@pytest.mark.parametrize("same", [True, False], ids=["moved", "another"])
def test_the_other_folder_may_move_but_not_change_for_another(began, tmp_path, same):
    config, folder = began
    other = shutil.copytree(folder / ("bloom" if same else "run"), tmp_path / "other")
    if same:
        assert train(config, folder / "run", init_from=other) == train(config, folder / "run")
        return
    with pytest.raises(
        ConfigError, match=r"init_from: got .*other for the run in .*run, which has begun from .*bloom, "
    ):
        train(config, folder / "run", init_from=other)


def test_a_run_that_began_from_its_seed_takes_no_other_parameters(began, tmp_path):
    config, folder = began
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "init_from.json").unlink()
    with pytest.raises(ConfigError, match=r"which has begun from parameters of its own, expected the same"):
        train(config, run, init_from=folder / "bloom")


def test_a_run_that_saved_nothing_and_begins_again_without_the_folder_says_so(tmp_path, caplog):
    keep_init_from(tmp_path, {"source": "bloom"})
    keep_init_from(tmp_path, None)
    assert "init_from.json is removed" in caplog.text and not any(tmp_path.iterdir())
    keep_init_from(tmp_path, None)
    assert len(caplog.records) == 1


def test_parameters_that_do_not_fit_are_all_named(began, tmp_path):
    config, folder = began
    other = replace(config, "model", mlp_width=24, final_norm=False, position="learned", learned_length=16)
    with pytest.raises(ConfigError) as caught:
        train(other, tmp_path / "run", init_from=folder / "bloom")
    message = str(caught.value)
    assert "missing: position/table;" in message or "missing: position" in message
    assert "not in the config's model: final_norm/bias, final_norm/scale;" in message
    assert "of another shape: layers/mlp/down (2, 64, 16), expected (2, 24, 16), layers/mlp/down" not in message
    assert "of another shape: layers/mlp/down (2, 64, 16), expected (2, 24, 16), layers/mlp/up (2, 16, 64)" in message
    with pytest.raises(ConfigError, match=r"Pass --model.scan-layers: it decides how layers are stored"):
        train(replace(config, "model", scan_layers=False), tmp_path / "run", init_from=folder / "bloom")


@pytest.mark.parametrize("there", [True, False], ids=["config alone", "nothing"])
def test_a_folder_without_a_checkpoint_is_refused(began, tmp_path, there):
    config, _ = began
    if there:
        (tmp_path / "other").mkdir()
        (tmp_path / "other/config.json").write_text(to_json(config))
    with pytest.raises(
        ConfigError, match=r"init_from: got .*other, which has no checkpoint" if there else r"config: got .*other"
    ):
        train(config, tmp_path / "run", init_from=tmp_path / "other")


def test_parameters_are_sharded_as_the_run_is(began):
    config, folder = began
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        shardings = programs(config, mesh).shardings.params
        _, params = initial_params(folder / "bloom", config, shardings)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    assert not params["layers"]["mlp"]["up"].sharding.is_fully_replicated
    assert_identical(params, params_of(folder))


def test_a_trained_run_is_scored_on_no_other_text(began, tmp_path):
    config, folder = began
    (tmp_path / "text.txt").write_text("another text of some words\n" * 40)
    data = dataclasses.replace(config.data, train_path=str(tmp_path / "text.txt"))
    with pytest.raises(
        ConfigError, match=r"corpus: got .* which .*run was trained on. The text was changed, is another by"
    ):
        evaluate_run(folder / "run", data=data)


def test_the_command_line_names_the_folder_also_under_supervise(began):
    _, folder = began
    train_line = ["train", str(folder / "bloom"), "--init-from", str(folder / "bloom"), "--workdir", "new"]
    assert parse(train_line).init_from == str(folder / "bloom")
    assert parse(["supervise", "--", *train_line]).command == tuple(train_line)
    with pytest.raises(SystemExit):
        parse([*train_line[:3], " "])
