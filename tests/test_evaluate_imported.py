"""An imported model is evaluated, on any text that its own tokenizer divides, and trained on."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from alibi_jax.config import Config, EvaluateConfig, ModelConfig, load_config, to_json
from alibi_jax.data.corpus import open_corpus
from alibi_jax.errors import ConfigError
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import non_overlapping
from alibi_jax.evaluate.report import write_report
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.run.parse import main
from experiments import imported as experiment
from imported import imported_bloom

WORDS = ["north", "south", "east", "west", "the", "café", "\n"]
SWEEP = EvaluateConfig(lengths=(16, 64), strides=("L", "L/4"), far_stride="L/4", max_tokens=256)


def text(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 4000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an imported model, bloom, and a text."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "text.txt").write_text(text(1))
    imported_bloom(folder, text(0), dtype="bfloat16")
    return folder


def data_of(folder, run="bloom"):
    """The data options over those in the folder's own config."""
    own = load_config(folder / run).data
    path, directory = str(folder / "text.txt"), str(folder / "corpora")
    return dataclasses.replace(own, source="files", train_path=path, directory=directory)


def options(folder):
    data = data_of(folder)
    return ["--data.source", "files", "--data.train-path", data.train_path, "--data.directory", data.directory]


def test_an_imported_model_is_scored_on_a_text_of_ones_own(folder, capsys):
    assert main(["prepare", str(folder / "bloom"), *options(folder)]) == 0
    sweep = ["--lengths", "16", "64", "--far-stride", "L/4", "--max-tokens", "256"]
    assert main(["evaluate", str(folder / "bloom"), *options(folder), *sweep]) == 0
    assert "bloom" in capsys.readouterr().out
    records = read_records([folder / "bloom/evaluation/valid"])
    corpus = open_corpus(data_of(folder))
    assert {record.pair for record in records} == {(16, 16), (16, 4), (64, 64), (64, 16)}
    first = records[0]
    assert (first.run, first.train_length, first.checkpoint_step) == ("bloom", 16, 0)
    assert first.num_bytes == corpus.num_bytes("valid", 256) and first.corpus_fingerprint == corpus.fingerprint
    assert first.config.keys() == {"imported", "model", "data", "evaluate", "mesh"}, (
        "nothing of a training it never had"
    )
    assert first.config["imported"] == {"family": "bloom", "source": str(folder / "theirs")}
    page = write_report(records, folder / "report", "BLOOM", "command").read_text()
    assert "1 run trained at 16 tokens" in page and "ALiBi, trained at 16 tokens" in page and "far context" in page


def test_a_folder_that_moved_is_scored_by_the_tokenizer_in_it(folder, tmp_path):
    moved = shutil.copytree(folder / "bloom", tmp_path / "moved", ignore=shutil.ignore_patterns("evaluation"))
    (folder / "bloom").rename(folder / "away")
    try:
        data = dataclasses.replace(data_of(folder, "away"), tokenizer_path=str(moved))
        assert load_config(moved).data.tokenizer_path == str(moved)
        evaluate_run(moved, dataclasses.replace(SWEEP, lengths=(16,)), data=data)
    finally:
        (folder / "away").rename(folder / "bloom")


def test_another_tokenizer_is_refused(folder, tmp_path):
    data = data_of(folder)
    message = r"data.tokenizer: got bytes, expected the model's own tokenizer, whose file is in .*bloom"
    with pytest.raises(ConfigError, match=message):
        evaluate_run(folder / "bloom", SWEEP, data=dataclasses.replace(data, tokenizer="bytes", tokenizer_path=""))
    shutil.copy(folder / "bloom/tokenizer_config.json", tmp_path)
    edited = json.loads((folder / "bloom/tokenizer.json").read_text())
    edited["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(edited))
    with pytest.raises(ConfigError, match=r"data.tokenizer: got .*, expected the model's own tokenizer"):
        evaluate_run(folder / "bloom", SWEEP, data=dataclasses.replace(data, tokenizer_path=str(tmp_path)))


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(folder, tmp_path, caplog):
    bare = shutil.copytree(
        folder / "bloom", tmp_path / "bare", ignore=shutil.ignore_patterns("evaluation", "tokenizer*")
    )
    data = dataclasses.replace(data_of(folder), tokenizer="bpe", tokenizer_path="", bpe_vocab_size=281)
    with pytest.raises(
        ConfigError, match=r"data.tokenizer: got 281 tokens, expected at most 280, the rows of the model's"
    ):
        evaluate_run(bare, SWEEP, data=data)
    assert "has no tokenizer: that of data.tokenizer has to be the model's own" in caplog.text


def test_how_far_it_reads_as_is_and_with_its_slopes_stretched(folder, tmp_path):
    data = data_of(folder)
    places = {"text": Path(data.train_path), "directory": Path(data.directory), "out": tmp_path}
    page = experiment.Imported(folder / "bloom", lengths=(16, 32), max_tokens=256, **places)()
    assert "# How far does bloom read?" in page and "| NTK |" in page and "far context" in page
    assert "Sliding window, stride L/4:" in page and f"by the tokenizer in {folder / 'bloom'}" in page
    assert (tmp_path / "report.html").exists() and (tmp_path / "results.md").read_text() in page
    records = non_overlapping(read_records([tmp_path / name for name in ("as_is", "PI", "NTK")]))
    nats = {(record.run, record.length): record.statistics["mean_nats"] for record in records}
    assert len({nats[name, 16] for name in ("as is", "PI", "NTK")}) == 1, (
        "nothing is stretched up to the training length"
    )
    assert len({nats[name, 32] for name in ("as is", "PI", "NTK")}) == 3
    half = {"slope_divisor": 2.0}
    evaluate = dataclasses.replace(SWEEP, lengths=(32,), strides=("L",))
    divided = evaluate_run(folder / "bloom", evaluate, tmp_path / "divided", data=data, slopes=half)
    assert read_records([divided])[0].statistics["mean_nats"] == nats["PI", 32]


def test_settings_that_a_model_has_not_are_left_out_and_say_why():
    settings, without = experiment.settings_of(ModelConfig(num_heads=12, width=48, vocab_size=8), 16)
    assert list(settings) == ["as is", "PI"] and "12 heads" in without["NTK"]
    settings, without = experiment.settings_of(ModelConfig(vocab_size=8, slope_length=16), 16)
    assert list(settings) == ["as is", "NTK"] and "stretched so" in without["PI"]


def test_a_model_without_slopes_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(to_json(Config(model=ModelConfig(position="rotary"))))
    with pytest.raises(ConfigError, match="a model of position rotary, expected one of ALiBi"):
        experiment.Imported(tmp_path).config()
