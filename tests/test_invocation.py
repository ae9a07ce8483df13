"""Lines to paste and records name the command as it was started."""

import sys

import pytest

from alibi_jax.run.invocation import command_line, own_command, recorded_command

STARTS = {  # orig_argv, sys.argv[0] -> a line to paste, the record, what a supervisor starts
    "script": (["py3", "main.py"], "main.py", "py3 main.py", "python main.py", ["main.py"]),
    "path": (["a b/py", "/x/main.py"], "/x/main.py", "'a b/py' /x/main.py", "python /x/main.py", ["/x/main.py"]),
    "module": (
        ["python", "-m", "alibi_jax"],
        "/x/alibi_jax/__main__.py",
        "python -m alibi_jax",
        "python -m alibi_jax",
        ["-m", "alibi_jax"],
    ),
    "flags": (
        ["python", "-X", "dev", "-m", "alibi_jax"],
        "/x/alibi_jax/__main__.py",
        "python -X dev -m alibi_jax",
        "python -X dev -m alibi_jax",
        ["-X", "dev", "-m", "alibi_jax"],
    ),
    "elsewhere": (["/v/python", "v/alibi-jax"], "v/alibi-jax", "v/alibi-jax", "alibi-jax", ["v/alibi-jax"]),
    "experiment": (
        [".venv/bin/python", "-m", "experiments.pods"],
        "/x/experiments/pods.py",
        "alibi-jax",
        "python -m experiments.pods",
        ["-m", "alibi_jax"],
    ),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_command_is_named_as_it_was_started(monkeypatch, case):
    start, first, pasted, recorded, again = STARTS[case]
    arguments = ["train", "a b.py"]
    monkeypatch.setattr(sys, "orig_argv", [*start, *arguments])
    monkeypatch.setattr(sys, "argv", [first, *arguments])
    assert command_line("evaluate", "runs/a b") == f"{pasted} evaluate 'runs/a b'"
    assert recorded_command() == f"{recorded} train 'a b.py'"
    assert own_command(arguments) == [sys.executable, *again, *arguments]


def test_the_installed_command_is_named_without_its_folder(monkeypatch, tmp_path):
    script = tmp_path / "alibi-jax"
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "orig_argv", ["/v/python", str(script), "train", "quickstart"])
    monkeypatch.setattr(sys, "argv", [str(script), "train", "quickstart"])
    assert command_line("train", "quickstart") == recorded_command() == "alibi-jax train quickstart"
    assert own_command(["train"]) == [sys.executable, str(script), "train"]


def test_bytes_that_are_not_utf8_are_recorded_as_text(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", "report", "\udcc3\udcbc"])
    monkeypatch.setattr(sys, "argv", ["main.py", "report", "\udcc3\udcbc"])
    assert recorded_command() == "python main.py report 'ü'"


def test_a_child_of_multiprocessing_does_not_know(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "spawn_main()", "--multiprocessing-fork"])
    monkeypatch.setattr(sys, "argv", ["main.py", "train", "quickstart", "--workdir", "run", "--label", "x"])
    assert command_line("train") == "alibi-jax train"
    assert own_command(["train"]) == [sys.executable, "-m", "alibi_jax", "train"]
