"""`train --init-from DIR`: a new run from the parameters of another folder."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.config import Config, DataConfig, MeshConfig, replace, to_json
from alibi_jax.data.batches import Batches
from alibi_jax.data.corpus import open_corpus
from alibi_jax.errors import ConfigError
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.init_from import initial_params
from alibi_jax.model import TransformerLM
from alibi_jax.run.parse import parse
from alibi_jax.sharding import make_mesh
from alibi_jax.train import programs, train
from conftest import assert_close
from runs import assert_identical, saved_state, tiny_config


def source_config(config: Config) -> Config:
    """The config of the run that the other one begins from: another seed, and an optimizer with other moments."""
    return replace(replace(config, "train", steps=2, seed=7), "optimizer", name="nag", momentum=0.9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config and a folder: in it the run `source`, and the run `run` of that config, which began with its parameters."""
    folder = tmp_path_factory.mktemp("init_from")
    words = np.random.default_rng(0).choice(["north", "south", "east", "west", "\n"], 3000)
    (folder / "text.txt").write_text(" ".join(words))
    data = DataConfig(source="files", train_path=str(folder / "text.txt"), directory=str(folder / "corpora"))
    config = tiny_config(data)
    train(source_config(config), folder / "source")
    train(config, folder / "run", init_from=folder / "source")
    return config, folder


def test_the_first_loss_is_that_of_the_other_runs_parameters_on_the_first_batch(trained):
    config, folder = trained
    recipe = config.train
    batches = Batches(open_corpus(config.data).tokens("train"), recipe.train_length, recipe.batch_size, recipe.seed)
    params = saved_state(source_config(config), folder / "source").params
    inputs, targets = map(jnp.asarray, batches.batch_at(0))
    params = jax.tree.map(jnp.asarray, params)
    nats = jax.jit(TransformerLM(config.model).apply, static_argnames="method")(
        {"params": params}, inputs, targets, method="nats"
    )
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    first = next(line for line in lines if "loss" in line)
    assert first["step"] == 1
    assert_close(first["loss"], np.mean(nats), "loss")
    kept = json.loads((folder / "run/init_from.json").read_text())
    assert (kept["source"], kept["step"], len(kept["checksum"])) == (str(folder / "source"), 2, 64)


def test_a_run_goes_on_exactly_without_the_other_folder_and_from_no_third(trained, tmp_path):
    config, folder = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    train(config, tmp_path / "run", init_from=folder / "source")
    assert_identical(saved_state(config, tmp_path / "run"), saved_state(config, folder / "run"))


@pytest.mark.parametrize("same", [True, False], ids=["moved", "another"])
def test_the_other_folder_may_move_but_not_change_for_another(trained, tmp_path, same):
    config, folder = trained
    other = shutil.copytree(folder / ("source" if same else "run"), tmp_path / "other")
    if same:
        assert train(config, folder / "run", init_from=other) == train(config, folder / "run")
        return
    with pytest.raises(
        ConfigError, match=r"init_from: got .*other for the run in .*run, which has begun from .*source, "
    ):
        train(config, folder / "run", init_from=other)


def test_a_run_that_began_from_its_seed_takes_no_other_parameters(trained):
    config, folder = trained
    with pytest.raises(ConfigError, match=r"which has begun from parameters of its own, expected the same"):
        train(source_config(config), folder / "source", init_from=folder / "run")


def test_parameters_that_do_not_fit_are_all_named(trained, tmp_path):
    config, folder = trained
    other = replace(config, "model", mlp_width=24, final_norm=False, position="learned", learned_length=16)
    with pytest.raises(ConfigError) as caught:
        train(other, tmp_path / "run", init_from=folder / "source")
    message = str(caught.value)
    assert "missing: position/table;" in message or "missing: position" in message
    assert "not in the config's model: final_norm/bias, final_norm/scale;" in message
    assert "of another shape: layer_0/mlp/down (32, 16), expected (24, 16), layer_0/mlp/up (16, 32)" in message
    with pytest.raises(ConfigError, match=r"Pass --model.scan-layers False: it decides how layers are stored"):
        train(replace(config, "model", scan_layers=True), tmp_path / "run", init_from=folder / "source")


@pytest.mark.parametrize("there", [True, False], ids=["config alone", "nothing"])
def test_a_folder_without_a_checkpoint_is_refused(trained, tmp_path, there):
    config, _ = trained
    if there:
        (tmp_path / "other").mkdir()
        (tmp_path / "other/config.json").write_text(to_json(config))
    with pytest.raises(
        ConfigError, match=r"init_from: got .*other, which has no checkpoint" if there else r"config: got .*other"
    ):
        train(config, tmp_path / "run", init_from=tmp_path / "other")


def test_parameters_are_sharded_as_the_run_is(trained):
    config, folder = trained
    expected = saved_state(source_config(config), folder / "source").params
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        shardings = programs(config, mesh).shardings.params
        _, params = initial_params(folder / "source", config, shardings)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    assert not params["layer_0"]["mlp"]["up"].sharding.is_fully_replicated
    assert_identical(params, expected)


def test_a_trained_run_is_scored_on_no_other_text(trained, tmp_path):
    config, folder = trained
    (tmp_path / "text.txt").write_text("another text of some words\n" * 40)
    data = dataclasses.replace(config.data, train_path=str(tmp_path / "text.txt"))
    with pytest.raises(
        ConfigError, match=r"corpus: got .* which .*source was trained on. The text was changed, is another by"
    ):
        evaluate_run(folder / "source", data=data)


def test_the_command_line_names_the_folder_also_under_supervise(trained):
    _, folder = trained
    train_line = ["train", str(folder / "source"), "--init-from", str(folder / "source"), "--workdir", "new"]
    assert parse(train_line).init_from == str(folder / "source")
    assert parse(["supervise", "--", *train_line]).command == tuple(train_line)
    with pytest.raises(SystemExit):
        parse([*train_line[:3], " "])
