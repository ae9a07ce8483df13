"""From a recipe to a report: what a newcomer runs, in small, stopped and run again."""

import itertools
import json
import logging
import runpy
import shutil
from pathlib import Path
from threading import Timer

import jax
import numpy as np
import pytest

from alibi_jax.config import DataConfig, MeshConfig, replace, to_json
from alibi_jax.data.corpus import prepare
from alibi_jax.errors import CheckpointError, ConfigError, Refused
from alibi_jax.evaluate import run as evaluate_module
from alibi_jax.evaluate.run import evaluate_run, load_params
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.parse import main
from alibi_jax.sharding import make_mesh
from alibi_jax.train import train
from experiments.reach import Head, Reach, fractions_visited, trained_inputs
from runs import tiny_config

ROOT = Path(__file__).parents[1]
EVALUATE = {"split": "test", "lengths": (16, 64), "strides": ("L", "L/4"), "max_tokens": 300, "batch_tokens": 512}


def changed(folder: Path) -> dict[str, int]:
    """When each file below was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_experiment_is_resumed_and_its_finished_parts_are_not_repeated(tiny_data, tmp_path, monkeypatch):
    config = replace(tiny_config(tiny_data, validate_every=2, validate_lengths=(16, 32)), "evaluate", **EVALUATE)
    (tmp_path / "tiny.json").write_text(to_json(config))
    experiment = runpy.run_path(str(ROOT / "experiments" / "extrapolation.py"))["Extrapolation"]
    out = tmp_path / "out"

    def run(*positions):
        return experiment(config=tmp_path / "tiny.json", out=out, positions=positions)()

    run("alibi")
    before = changed(out / "alibi")
    text = run("alibi", "rotary")
    assert changed(out / "alibi") == before
    again = changed(out / "rotary")
    assert run("alibi", "rotary").split("\n\n")[0] == text.split("\n\n")[0]
    assert changed(out / "rotary") == again
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "report.html",
        "extrapolation.png",
        "sweep.csv",
        "table.md",
        "results.md",
        "config.json",
        "minutes",
    }
    assert "rotary" in text and "64 (4x)" in text and "report.html" in text
    records = [json.loads(line) for line in (out / "alibi/evaluation/test/sweep.jsonl").read_text().splitlines()]
    assert {(r["length"], r["stride"]) for r in records} == {(16, 16), (16, 1), (16, 4), (64, 64), (64, 16)}
    assert all(len(np.load(out / "alibi/evaluation/test" / r["nats_file"])) == 300 for r in records)
    logged = [json.loads(line) for line in (out / "alibi/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "valid_loss_16" in line] == [2, 4]
    assert [line["step"] for line in logged if "valid_loss_32" in line] == [2, 4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run trained on a mesh of its own."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("to be or not to be, that is the question\n" * 400)
    config = tiny_config(DataConfig(), steps=2)
    config = replace(
        config, "data", source="files", train_path=str(folder / "text.txt"), directory=str(folder / "corpora")
    )
    config = replace(replace(config, "evaluate", **EVALUATE), "mesh", data=2, fsdp=2, tensor=2)
    train(config, folder / "run")
    return config, folder


@pytest.mark.versions
def test_commands_evaluate_on_another_mesh_and_report(trained, tmp_path, capsys):
    _, folder = trained
    assert main(["evaluate", str(folder / "run"), "--out", str(tmp_path / "a"), "--label", "mine"]) == 0
    assert "mine" in capsys.readouterr().out
    options = ["--max-tokens", "200", "--mesh.data", "4", "--mesh.tensor", "2"]
    assert main(["evaluate", str(folder / "run"), "--out", str(tmp_path / "b"), "--label", "other", *options]) == 0
    record = json.loads((tmp_path / "b" / "sweep.jsonl").read_text().splitlines()[0])
    assert (record["num_tokens"], record["config"]["evaluate"]["max_tokens"], record["config"]["mesh"]["data"]) == (
        200,
        200,
        4,
    )
    one, other = (np.load(tmp_path / name / "nats" / "64-16.npy") for name in "ab")
    np.testing.assert_allclose(one[:192], other[:192], atol=1e-5)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "report")]) == 0
    assert "64 (4x)" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    assert main(["evaluate", str(folder / "run"), "--out", str(tmp_path / "a")]) == Refused.status
    assert "results of another evaluation (run mine, now run)" in capsys.readouterr().err


def remove_while_read(monkeypatch, steps: list[int]) -> None:
    """The run at work removes each of these checkpoints once it has been chosen, file by file and the folder last."""
    restore = Checkpoints.restore

    def restore_too_late(self, step, **abstract):
        if step in steps:
            steps.remove(step)
            place = self.folder / str(step)
            shutil.rmtree(place / "params")
            Timer(0.3, shutil.rmtree, [place]).start()
        return restore(self, step, **abstract)

    monkeypatch.setattr(Checkpoints, "restore", restore_too_late)


def test_checkpoint_that_is_removed_while_it_is_read_is_replaced(trained, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("alibi_jax"), "propagate", True)
    for name, which, steps in (("last", "last", [7]), ("best", "best", [5, 7])):
        config, run = trained[0], shutil.copytree(trained[1] / "run", tmp_path / name)
        for step, loss in ((5, 0.25), (7, 0.5)):
            place = shutil.copytree(run / "checkpoints/2", run / f"checkpoints/{step}")
            (place / "metrics/metrics").write_text(json.dumps({"validation_nats": loss}))
            item = json.loads((place / "checksums/metadata").read_text())
            item["origin"]["step"] = step
            (place / "checksums/metadata").write_text(json.dumps(item))
        remove_while_read(monkeypatch, list(steps))
        with caplog.at_level(logging.INFO), jax.set_mesh(make_mesh(MeshConfig())):
            step, _ = load_params(run, config, which)
        assert step == {"last": 5, "best": 2}[which]
        assert f"step 7 was removed while it was read; step {step} is taken instead" in caplog.text


def test_checkpoint_that_is_damaged_is_not_tried_again(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained[1] / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints/2/params")
    monkeypatch.setattr(evaluate_module, "REMOVING_SECONDS", 0.0)
    with jax.set_mesh(make_mesh(MeshConfig())), pytest.raises(CheckpointError, match="could not read step 2"):
        load_params(run, trained[0], "best")


def test_a_corpus_that_is_not_the_one_trained_on_is_refused(trained, tmp_path):
    config, folder = trained
    run = shutil.copytree(folder / "run", tmp_path / "run")
    Path(config.data.train_path).write_text("another text altogether\n" * 400)
    shutil.rmtree(config.data.directory)  # else the run finds its own there
    prepare(config.data, quiet=True)
    with pytest.raises(ConfigError, match=r"corpus: got text and tokenizer of fingerprint"):
        evaluate_run(run, mesh=MeshConfig())


def test_reach_counts_what_each_bound_visits_and_none_beats_the_oracle(tmp_path):
    q, k, _ = np.random.default_rng(0).normal(size=(3, 1024, 16))
    fractions = fractions_visited(Head(q / 4, k, 2.0**-4), 2.0**-25)
    steps = list(fractions.values())
    assert all(sharper <= blunter + 1e-12 for blunter, sharper in itertools.pairwise(steps[:2]))
    assert all(fractions["oracle, range"] <= fraction for fraction in steps[:-1])
    assert fractions["oracle, list"] <= min(steps)
    own_and_nearest = 2 / 9  # blocks, of 8
    assert own_and_nearest <= fractions["oracle, list"] < fractions["norms, own score (the theorem)"] < 1
    assert "| random, 256 |" in Reach(lengths=(256,), out=tmp_path)()
    assert (tmp_path / "reach.csv").read_text().startswith("model,length,layer,head,slope,bound,share_visited")


def test_reach_reads_a_trained_model(tmp_path, tiny_data):
    config = tiny_config(tiny_data)
    train(config, tmp_path / "run")
    layers = trained_inputs(tmp_path / "run", 128)
    assert [layer["queries"].shape for layer in layers] == [(1, 128, 4, 4)] * config.model.num_layers
    with pytest.raises(ConfigError, match="expected alibi"):
        train(tiny_config(tiny_data, model={"position": "none"}), tmp_path / "none")
        trained_inputs(tmp_path / "none", 128)
