"""The command line: bad input is answered with one message and an exit status, and nothing is started."""

import json

import pytest

from alibi_jax import loop
from alibi_jax.config import DataConfig, EvaluateConfig, MeshConfig, replace, to_json
from alibi_jax.data.corpus import prepare
from alibi_jax.errors import KILLED, Diverged, Failed, Refused
from alibi_jax.run import commands
from alibi_jax.run.parse import main, parse
from runs import tiny_config


@pytest.fixture
def call(capsys):
    """(exit status, everything printed) of one command line."""

    def run(*arguments) -> tuple[int, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, " ".join((printed.out + printed.err).replace("│", " ").split())

    return run


@pytest.fixture
def recipe(tiny_data, tmp_path):
    """The path of a config that can be run."""
    path = tmp_path / "tiny.json"
    path.write_text(to_json(tiny_config(tiny_data)))
    return path


@pytest.fixture
def untouched(tmp_path):
    """After the test: no corpus was prepared and no run was started."""
    yield
    assert not (tmp_path / "corpora").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(call, arguments):
    status, text = call(*arguments)
    assert status == (0 if arguments else Refused.status)
    assert all(f"alibi-jax {name}" in text for name in ("prepare", "train", "supervise", "evaluate", "report"))


OPTIONS = {
    "prepare": ("--force", "--data.source", "--data.tokenizer"),
    "train": (
        "--workdir",
        "--model.position",
        "alibi",
        "rotary",
        "--train.train-length",
        "tokens of a training sequence",
    ),
    "supervise": ("--patience", "that follows --"),
    "evaluate": ("--lengths", "--strides", "--out", "--label", "folder of a trained run"),
    "report": ("--out", "--title", "folders of results that `evaluate` wrote"),
}


@pytest.mark.parametrize("command", OPTIONS)
@pytest.mark.versions
def test_help_of_each_command_lists_its_options(call, command):
    status, text = call(command, "--help")
    assert status == 0
    assert [option for option in OPTIONS[command] if option not in text] == []


REFUSED_OPTIONS = {
    "unknown option": (["--model.widht", "32"], "--model.width"),
    "wrong type": (["--train.steps", "many"], "many"),
    "unknown choice": (["--model.position", "alibo"], "alibo"),
    "heads": (
        ["--model.num-heads", "3"],
        "num_heads: got 3 heads for width 16, expected a number of heads that divides",
    ),
    "batch over mesh": (["--train.batch-size", "12"], "got 12, expected a multiple of 8"),
    "accumulation": (["--train.gradient-accumulation", "3"], "got 3 micro-batches of a batch of 8"),
    "mesh": (
        ["--mesh.data", "3"],
        "data 3 x fsdp 1 x tensor 1 x sequence 1 on 8 devices, expected sizes that multiply",
    ),
    "warm-up": (["--optimizer.warmup-steps", "9"], "warmup_steps: got 9, expected at most train.steps, 4"),
    "length 0": (["--evaluate.lengths", "0"], "evaluate.lengths: got 0, expected 1 to 2147483647"),
    "negative length": (["--evaluate.lengths", "-5"], "-5"),
    "stride": (["--evaluate.lengths", "8", "--evaluate.strides", "16"], "got 16 tokens at length 8, expected 1 to the"),
}


@pytest.mark.parametrize("case", REFUSED_OPTIONS)
@pytest.mark.versions
def test_bad_option_starts_nothing(call, recipe, tmp_path, untouched, case):
    options, message = REFUSED_OPTIONS[case]
    status, text = call("train", recipe, "--workdir", tmp_path / "run", *options)
    assert status == Refused.status == 2
    assert message in text and "Traceback" not in text


COMMANDS = {
    "misspelt recipe": (
        ("train", "quickstat"),
        "config: got 'quickstat', which does not exist and is no recipe's name, expected a .py recipe",
        "or one of books, books_small, cc100_1b3, quickstart",
        "Did you mean 'quickstart'?",
    ),
    "misspelt": (
        ("trian", "configs/quickstart.py"),
        "command: got 'trian', expected one of prepare, train,",
        "'train'?",
    ),
    "misspelt option": (("--versoin",), "command: got '--versoin'", "Did you mean '--version'?"),
    "stride of nothing": (
        ("evaluate", "RECIPE", "--strides", "0"),
        "strides: got '0', expected 1 token or more",
        "Raise it",
    ),
    "no command": (("-v",), "command: got '-v', expected one of", "See --help."),
    "long": (("e" * 10**5,), "(100,002 characters), expected one of", "See --help."),
    "no workdir": (("train", "RECIPE", "--workdir", ""), "workdir: got '', expected the name of a folder", "Name one"),
    "blank workdir": (("evaluate", " "), "path: got ' ', expected the name of a file or folder", "Name one"),
    "no out": (("evaluate", "RECIPE", "--out", ""), "out: got '', expected the name of a folder", "Name one"),
    "no report": (("report", "run", "--out", ""), "out: got '', expected the name of a folder", "Name one"),
    "no directory": (
        ("prepare", "RECIPE", "--data.directory", ""),
        "data.directory: got '', expected a folder",
        "Name one",
    ),
    "long workdir": (("train", "RECIPE", "--workdir", "a" * 5000), "expected names of at most 255 bytes", "Shorten it"),
    "long folder": (("report", "a" * 5000), "expected names of at most 255 bytes", "Shorten it"),
    "no folders": (("report",), "folders: got none, expected one or more folders", "Name them"),
    "no folder": (("report", ""), "path: got '', expected the name of a file or folder", "Name one"),
    "no recipe": (("train", ""), "train: got no config, expected a recipe", "Try"),
    "other stride": (
        ("train", "RECIPE", "--evaluate.strides", "\u00b2"),
        "evaluate.strides: got '\u00b2', expected 'L'",
        "Write",
    ),
    "long stride": (
        ("train", "RECIPE", "--evaluate.strides", "9" * 5000),
        "expected 'L', 'L/4' or a number of tokens",
        "Write",
    ),
    "no limit": (
        ("train", "RECIPE", "--evaluate.memory-limit-gib", "inf"),
        "memory_limit_gib: got inf, expected 0 to",
        "Lower",
    ),
    "least limit": (
        ("train", "RECIPE", "--evaluate.memory-limit-gib", "1e-300"),
        "got 1e-300, expected 0, for the free memory",
        "Raise",
    ),
    "profile": (
        ("train", "RECIPE", "--profile", "1-" + "9" * 5000),
        "expected first-last, steps counted from 1",
        "Write",
    ),
    "port": (
        ("train", "RECIPE", "--hosts.coordinator", "here:99999"),
        "got 'here:99999', expected address:port",
        "Such as",
    ),
    "wide": (("train", "RECIPE", "--model.width", 10**23), "expected 1 to 1048576", "Lower it"),
    "digits": (("train", "RECIPE", "--train.steps", "9" * 5000), "--train.steps", "--help"),
    "learning rate": (
        ("train", "RECIPE", "--optimizer.peak-learning-rate", "nan"),
        "got nan, expected 1e-12 to",
        "Pass a",
    ),
    "topology": (
        ("plan", "RECIPE", "--topology", "cpu:" + "9" * 5000),
        "which is not a topology",
        "Choose one of these",
    ),
    "plan's file": (
        ("plan", "RECIPE", "--topology", "cpu:1", "--json", "none/x.json"),
        "json: got 'none/x.json'",
        "Make",
    ),
    "plan's folder": (
        ("plan", "RECIPE", "--topology", "cpu:1", "--json", ""),
        "json: got '.', expected the name",
        "Make",
    ),
    "batch": (("train", "RECIPE", "--train.batch-size", 2**28), "2147483647 tokens per update", "int32"),
    "searched": (
        ("plan", "RECIPE", "--topology", "cpu:1", "--tries", 3),
        "plan.tries: got 3 with plan.search False",
        "Set",
    ),
    "not used": (("prepare", "RECIPE", "--data.source", "stdlib"), "expected data.source 'files'", "it has no effect"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_bad_command_line_is_one_message(call, recipe, tmp_path, untouched, monkeypatch, case):
    arguments, *messages = COMMANDS[case]
    monkeypatch.chdir(tmp_path)
    status, text = call(*(recipe if argument == "RECIPE" else argument for argument in arguments))
    assert status == Refused.status
    assert "Traceback" not in text and [message for message in messages if message not in text] == [], text[:2000]


def test_evaluation_of_no_windows_is_refused_before_work(call, recipe, tiny_data, tmp_path):
    prepare(tiny_data, quiet=True)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(recipe.read_text())
    status, text = call("evaluate", run, "--lengths", 16, 32, "--strides")
    assert status == Refused.status and "evaluate.strides: got none, expected one or more" in text
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_attention_of_another_platform_is_refused_before_work(call, recipe, tiny_data, tmp_path):
    prepare(tiny_data, quiet=True)
    run = tmp_path / "run"
    status, text = call("train", recipe, "--workdir", run, "--model.attention", "pallas_tpu")
    assert status == Refused.status and "model.attention: got 'pallas_tpu' at length 16" in text and not run.exists()
    run.mkdir()
    (run / "config.json").write_text(recipe.read_text())
    status, text = call("evaluate", run, "--attention", "pallas_gpu")
    assert status == Refused.status and "attention: got 'pallas_gpu' at length 16" in text
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_bad_config_starts_nothing(call, recipe, tmp_path, untouched):
    run = ("--workdir", tmp_path / "run")
    (tmp_path / "broken.json").write_text("{")
    values = json.loads(recipe.read_text())
    values["model"]["widht"] = 3
    (tmp_path / "unknown.json").write_text(json.dumps(values))
    for command, message in [
        (("train", *run), "train: got no config, expected a recipe"),
        (("train", tmp_path / "none.json", *run), "none.json, which does not exist"),
        (("train", tmp_path / "broken.json", *run), "text that is not JSON"),
        (("train", tmp_path / "unknown.json", *run), "model.widht: got an unknown key, expected one of"),
        (("train", tmp_path / "unknown.json", *run), "Did you mean 'width'?"),
    ]:
        status, text = call(*command)
        assert status == Refused.status and message in text and "Traceback" not in text, text


TEXTS = {
    "missing": (None, "which matches no file"),
    "empty": (b"", "got an empty file, expected text"),
    "not UTF-8": (b"north \xff south\n" * 100, "got byte 0xff at byte offset 6, which is not UTF-8"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_text_starts_nothing(call, recipe, tmp_path, case):
    content, message = TEXTS[case]
    path = tmp_path / "text.txt"
    path.unlink() if content is None else path.write_bytes(content)
    for command in (("prepare", recipe), ("train", recipe, "--workdir", tmp_path / "run")):
        status, text = call(*command)
        assert status == Refused.status and message in text and "Traceback" not in text, text
    assert not (tmp_path / "run").exists() and not any((tmp_path / "corpora").glob("*files*"))


def test_text_shorter_than_a_sequence(call, recipe, tmp_path):
    status, text = call("train", recipe, "--workdir", tmp_path / "run", "--train.train-length", 10**6)
    assert status == Refused.status and "train.train_length: got 1000000 with a training stream of" in text
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_written(call, recipe, tiny_data, tmp_path):
    prepare(tiny_data, quiet=True)
    status, text = call("train", recipe, "--workdir", tmp_path / "text.txt" / "run")
    assert status == Refused.status and "which cannot be written (Not a directory)" in text


def test_evaluation_needs_a_trained_run(call, recipe, tiny_data, tmp_path):
    prepare(tiny_data, quiet=True)
    run = tmp_path / "run"
    status, text = call("evaluate", run)
    assert status == Refused.status and "which does not exist" in text and not run.exists()
    run.mkdir()
    (run / "config.json").write_text(recipe.read_text())
    status, text = call("evaluate", run)
    assert status == Failed.status == 1 and "expected a trained run. Train it first." in text
    (run / "config.json").write_text(recipe.read_text()[:50])
    status, text = call("evaluate", run)
    assert status == Refused.status and "text that is not JSON" in text


def begun(run, config):
    """A run's folder with its two files and a checkpoint of step 2 in which nothing is."""
    fingerprint = prepare(config.data, quiet=True).fingerprint
    (run / "checkpoints" / "2").mkdir(parents=True)
    (run / "config.json").write_text(to_json(config))
    (run / "corpus.txt").write_text(fingerprint)
    return run


def test_damaged_checkpoint_is_one_message(call, recipe, tiny_data, tmp_path):
    run = begun(tmp_path / "run", tiny_config(tiny_data))
    for command in (("train", recipe, "--workdir", run), ("evaluate", run)):
        status, text = call(*command)
        assert status == Failed.status and "step 2" in text and "Traceback" not in text, text


def test_run_of_another_config_is_refused(call, recipe, tiny_data, tmp_path):
    run = begun(tmp_path / "run", replace(tiny_config(tiny_data), "model", width=32))
    status, text = call("train", recipe, "--workdir", run)
    assert status == Refused.status and "model.width: 32 -> 16; expected the same" in text


def test_report_needs_results(call, tmp_path):
    status, text = call("report", tmp_path, "--out", tmp_path / "report")
    assert (
        status == Refused.status and "expected the results of an evaluation. Name a folder that evaluate wrote" in text
    )
    assert not (tmp_path / "report").exists()


def test_programming_error_is_not_dressed_up_as_bad_input(call, recipe, monkeypatch):
    monkeypatch.setattr(commands, "train", lambda *_, **__: int("one"))
    with pytest.raises(ValueError, match="invalid literal"):
        call("train", recipe)


def test_diverged_run_has_a_status_of_its_own(call, recipe, monkeypatch):
    def diverges(*_, **__):
        raise loop.Diverged("training: got loss nan")

    monkeypatch.setattr(commands, "train", diverges)
    assert (
        call("train", recipe)
        == (Diverged.status, "error: training: got loss nan")
        == (3, "error: training: got loss nan")
    )


def test_second_interrupt_is_no_traceback(call, recipe, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "prepare", interrupted)
    assert call("prepare", recipe) == (KILLED, "stopped at once; the same command goes on from what was finished")


def test_the_first_host_alone_reads_what_it_wrote(monkeypatch):
    """The others may see it late, or not at all."""
    monkeypatch.setattr(commands, "evaluate_run", lambda *_: "nowhere")
    monkeypatch.setattr(commands, "is_first", lambda: False)
    assert commands.Evaluate("runs/x", EvaluateConfig(), MeshConfig(), DataConfig())() == ""


def test_a_run_goes_on_with_its_own_text_and_a_new_one_takes_the_edited(call, recipe, tmp_path):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    train = "train", recipe, "--workdir", run, "--train.steps", "1"
    assert call(*train)[0] == 0
    text.write_text(text.read_text().replace("north", "NORTH"))
    status, output = call(*train)
    assert status == 0 and "which the run was begun with; its text was edited or touched since" in output
    status, output = call("prepare", recipe)
    assert (
        status == 0
        and "is of another text" in output
        and (run / "corpus.txt").read_text()[:12] not in output.split(";")[-1]
    )
    text.unlink()
    status, output = call("evaluate", run, "--lengths", "16", "--strides", "L", "--far-stride", "L")
    assert status == 0 and "could not be compared with its text: data.train_path: got" in output


def test_an_altered_corpus_is_neither_scored_nor_trained_on(call, recipe, tmp_path):
    run = tmp_path / "run"
    assert call("train", recipe, "--workdir", run, "--train.steps", "1")[0] == 0
    (stream,) = (tmp_path / "corpora").glob("*/valid.bin")
    content = bytearray(stream.read_bytes())
    content[100:200] = bytes(100)
    stream.write_bytes(content)
    for command in (
        ("evaluate", run),
        ("train", recipe, "--workdir", run, "--train.steps", "1"),
        ("prepare", recipe, "--verify"),
    ):
        status, output = call(*command)
        assert status == Refused.status and "valid.bin: got other content in bytes 0 to 4,194,304" in output
    assert call("prepare", recipe, "--force")[0] == 0
    status, output = call("prepare", recipe, "--verify")
    assert (
        status == 0
        and "whole: " in output
        and call("evaluate", run, "--lengths", "16", "--strides", "L", "--far-stride", "L")[0] == 0
    )


def test_force_and_verify_together_are_refused(call, recipe, untouched):
    status, output = call("prepare", recipe, "--force", "--verify")
    assert status == Refused.status and "expected one of them" in output


def test_unknown_words_are_counted_and_warned_of(call, recipe, tmp_path, tiny_data):
    (tmp_path / "valid.txt").write_text("north <unk> café\nsouth pole here " * 8, encoding="utf-8")
    options = (
        "--data.tokenizer",
        "words",
        "--data.valid-path",
        tmp_path / "valid.txt",
        "--model.vocab-size",
        "8",
        "--train.steps",
        "1",
    )
    assert call("train", recipe, "--workdir", tmp_path / "run", *options)[0] == 0
    status, output = call("evaluate", tmp_path / "run", "--lengths", "32", "--strides", "8", "--out", tmp_path / "slid")
    assert status == 0 and "32 (2x)" in output and "Next: " in output, output  # sliding windows alone are results, too
    status, output = call(
        "evaluate", tmp_path / "run", "--lengths", "100000", "--strides", "L", "--out", tmp_path / "long"
    )
    assert status == 0 and "refused" in output and "Next: " not in output, output  # nothing to report
    status, output = call("evaluate", tmp_path / "run", "--lengths", "16", "--strides", "L", "--far-stride", "L")
    assert status == 0 and "evaluate: 42.1% of the words are outside the vocabulary" in output
    (record,) = map(json.loads, (tmp_path / "run/evaluation/valid/sweep.jsonl").read_text().splitlines())
    assert record["num_bytes"] == len(" north <unk> café \n south pole here".encode()) * 8 + 2
    assert (record["num_tokens"], record["unknown_words"]) == (57, 24)


def test_an_evaluation_is_as_the_run_says_wherever_its_folder_stands(tmp_path):
    (tmp_path / "config.json").write_text('{"evaluate": {"lengths": [8, 24], "strides": ["L"]}}')
    for arguments in ([tmp_path, "--split", "test"], ["--split", "test", tmp_path]):
        command = parse(["evaluate", *map(str, arguments)])
        assert command.workdir == str(tmp_path)
        assert command.evaluate == EvaluateConfig(lengths=(8, 24), strides=("L",), split="test")


def test_a_recipe_in_place_of_a_run_is_refused_before_text_is_prepared(call, recipe, untouched):
    status, text = call("evaluate", recipe)
    assert status == Refused.status and "which is no folder, expected the folder of a trained run" in text
