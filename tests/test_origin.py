"""A checkpoint says which run it is of, and a run takes no other."""

import json
import shutil

import pytest

from alibi_jax.config import DataConfig, load_config, replace, to_json
from alibi_jax.errors import CheckpointError, ConfigError, Failed
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.run.origin import Origin, check_origin, origin_item, read_origin
from alibi_jax.run.parse import main
from alibi_jax.run.workdir import saved_steps
from alibi_jax.train import train
from runs import tiny_config

pytestmark = pytest.mark.usefixtures("programs_once")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config, folder of a run of four steps, with checkpoints of steps 2 and 4)"""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("to be or not to be, that is the question\n" * 400)
    data = DataConfig(source="files", train_path=str(folder / "text.txt"), directory=str(folder / "corpora"))
    config = tiny_config(data)
    config = replace(config, "evaluate", lengths=(16,), strides=("L",), far_stride="L/2", max_tokens=64)
    return train(config, folder / "run"), folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """(config, a copy of the run)"""
    shutil.copytree(trained[1], tmp_path / "run")
    return trained[0], tmp_path / "run"


def change_origin(workdir, step: int, change) -> None:
    path = workdir / f"checkpoints/{step}/checksums/metadata"
    item = json.loads(path.read_text())
    change(item)
    path.write_text(json.dumps(item))


def test_checkpoint_keeps_its_step_its_text_and_the_whole_config(run):
    config, workdir = run
    for step in (2, 4):
        corpus = (workdir / "corpus.txt").read_text()
        assert read_origin(workdir / f"checkpoints/{step}") == (step, Origin(config, corpus))


def test_another_run_is_told_by_its_fields_or_its_text(tmp_path):
    config = tiny_config(DataConfig())
    own, place = Origin(config, "a" * 64), tmp_path / "4"
    check_origin(place, own, own)
    check_origin(place, own, Origin(replace(replace(config, "mesh", fsdp=2), "data", directory="moved"), None))
    check_origin(place, own, Origin(replace(config, "model", remat=True, remat_saves="attention"), None))
    with pytest.raises(ConfigError, match=r"4, which belongs to another run .*: train\.seed: 0 -> 1; expected"):
        check_origin(place, own, Origin(replace(config, "train", seed=1), "a" * 64))
    with pytest.raises(ConfigError, match=r"text and tokenizer of fingerprint a{12} -> b{12}; expected"):
        check_origin(place, own, Origin(config, "b" * 64))


@pytest.mark.parametrize("last", [4, 3])
def test_checkpoint_under_another_step_is_refused(run, last):
    """As the run's last step, of which three would be missing, or in its middle."""
    config, workdir = run
    shutil.rmtree(workdir / "checkpoints/4")
    (workdir / "checkpoints/2").rename(workdir / f"checkpoints/{last}")
    with pytest.raises(
        CheckpointError, match=f"could not read step {last} .*at step 2, .* was renamed.* Name the folder 2 again"
    ):
        train(config, workdir)
    with pytest.raises(CheckpointError, match="saved at step 2"):
        evaluate_run(workdir)
    (workdir / f"checkpoints/{last}").rename(workdir / "checkpoints/2")
    train(config, workdir)
    assert saved_steps(workdir) == [2, 4]


def test_checkpoint_of_another_run_is_refused(run, tmp_path):
    config, workdir = run
    other = replace(config, "train", seed=1)
    change_origin(workdir, 4, lambda item: item.update(origin=origin_item(Origin(other, "text"), 4)))
    for command in (lambda: train(config, workdir), lambda: evaluate_run(workdir)):
        with pytest.raises(ConfigError, match=r"checkpoints/4, .*train\.seed: 1 -> 0; text and tokenizer"):
            command()
    shutil.rmtree(workdir / "checkpoints/4")
    train(config, workdir)
    assert saved_steps(workdir) == [2, 4]


def test_edited_config_evaluates_no_other_model(run):
    config, workdir = run
    (workdir / "config.json").write_text(to_json(replace(config, "model", bias_max=4.0)))
    with pytest.raises(ConfigError, match=r"model\.bias_max: 8\.0 -> 4\.0"):
        evaluate_run(workdir)
    (workdir / "config.json").write_text(to_json(replace(config, "evaluate", max_tokens=32)))
    evaluate_run(workdir)


@pytest.mark.parametrize("gone", [["config.json"], ["corpus.txt"], ["config.json", "corpus.txt"]], ids="-".join)
def test_files_that_are_gone_are_written_as_the_checkpoint_says(run, gone):
    config, workdir = run
    before = {name: (workdir / name).read_bytes() for name in gone}
    for name in gone:
        (workdir / name).unlink()
    with pytest.raises(ConfigError, match=r"train\.log_every: 1 -> 2"):
        train(replace(config, "train", log_every=2), workdir)
    train(config, workdir)
    assert {name: (workdir / name).read_bytes() for name in gone} == before
    for name in gone:
        (workdir / name).unlink()
    change_origin(workdir, 4, lambda item: item.pop("origin"))
    with pytest.raises(ConfigError, match=rf"checkpoints in .*run without {' and '.join(gone)}, which name"):
        train(config, workdir)


def test_checkpoint_from_before_loads(run):
    config, workdir = run
    for step in (2, 4):
        change_origin(workdir, step, lambda item: item.pop("origin"))
    evaluate_run(workdir)
    shutil.rmtree(workdir / "checkpoints/4")
    train(config, workdir)
    assert saved_steps(workdir) == [2, 4] and read_origin(workdir / "checkpoints/4")


def test_checkpoint_of_earlier_names_is_of_the_same_run(run):
    """As written before the biases of each layer and the embedding's multiplier had fields of their own."""
    config, workdir = run

    def as_earlier(item):
        model = item["origin"]["config"]["model"]
        del model["biases"], model["embedding_multiplier"], model["parameter_dtype"]
        model |= {"use_biases": True, "scale_embedding": True}

    change_origin(workdir, 4, as_earlier)
    assert read_origin(workdir / "checkpoints/4")[1].config == config


STRANGE = {
    "null": None,
    "list": [],
    "no step": {"corpus": "", "config": {}},
    "step of text": {"step": "4", "corpus": "", "config": {}},
    "config of another program": {"step": 4, "corpus": "", "config": {"model": {"hidden_size": 3}}},
    "config of text": {"step": 4, "corpus": "", "config": "{}"},
}


@pytest.mark.parametrize("strange", STRANGE)
def test_strange_origin_is_one_message(run, strange, tmp_path, capfd):
    config, workdir = run
    change_origin(workdir, 4, lambda item: item.update(origin=STRANGE[strange]))
    (tmp_path / "config.json").write_text(to_json(config))
    assert main(["train", str(tmp_path / "config.json"), "--workdir", str(workdir)]) == Failed.status
    message = capfd.readouterr().err
    assert message.startswith("error: checkpoints: could not read step 4 in ") and message.count("\n") == 1
    assert f"(rm -r {workdir}/checkpoints/4), then run the same command again: it goes on from step 2." in message


def test_config_stays_as_it_was(run):
    config, workdir = run
    train(replace(config, "mesh", fsdp=2), workdir)
    assert load_config(workdir) == config
