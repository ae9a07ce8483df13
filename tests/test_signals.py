"""Ctrl-C ends a command whenever it comes, and nothing else is to be seen of it."""

import gc
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from alibi_jax.errors import KILLED, Refused
from alibi_jax.run.signals import interruptible
from children import LIMIT, MAIN


@pytest.fixture(autouse=True)
def ctrl_c_as_in_a_terminal():
    """Whoever runs the tests in the background has it ignored, and children would have, too."""
    numbers = signal.SIGINT, signal.SIGALRM
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def begun(*options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *options, "report", "nothing"],
        cwd=Path(MAIN).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WAYS = {"script": [MAIN], "module": ["-m", "alibi_jax"], "experiment": ["-m", "experiments.pods"]}


@pytest.mark.parametrize(
    ("way", "module"),
    [
        ("script", "numpy"),
        ("script", "jax._src.lib"),
        ("script", "orbax.checkpoint"),
        ("module", "jax._src.lib"),
        ("experiment", "jax._src.lib"),
    ],
)
def test_ends_at_once_while_modules_are_imported(way, module):
    with begun("-X", "importtime", *WAYS[way]) as process:
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == module:
                break
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == KILLED
    assert "Traceback" not in rest and "ignored" not in rest


@pytest.mark.slow
def test_ends_at_any_moment_of_a_command(tries=60):
    """From 0.2 seconds on, when Python itself has begun; the command takes some three, and refuses what it is given."""
    ended = []
    for _ in range(tries):
        with begun(MAIN) as process:
            time.sleep(random.uniform(0.2, 3))
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=LIMIT)
        ended.append(process.returncode)
        assert "Traceback" not in errors and "ignored" not in errors and output == "", errors
    print({status: ended.count(status) for status in set(ended)})
    assert set(ended) <= {KILLED, Refused.status}  # refused: before the signal came


def test_a_command_that_is_interrupted_says_so_and_cleans_up(capsys):
    cleaned = []

    def command() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(LIMIT)
        finally:
            cleaned.append(True)

    assert interruptible(command) == KILLED and cleaned == [True]
    assert interruptible(lambda: 7) == 7


def test_a_command_that_is_interrupted_ends_without_python_s_own_end(monkeypatch, capsys):
    """Threads of C++ may still be at work then."""

    def interrupted(*_):
        raise KeyboardInterrupt

    def ended(status: int):
        raise SystemExit(f"at once with {status}")

    monkeypatch.setattr("alibi_jax.run.commands.read_records", interrupted)
    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(sys, "argv", ["main.py", "report", "somewhere"])
    with pytest.raises(SystemExit, match="at once with 130"):
        runpy.run_path(MAIN, run_name="__main__")
    assert capsys.readouterr().err.startswith("stopped at once")


def test_a_callback_of_a_library_does_not_swallow_it(capsys):
    """Where Python says "Exception ignored in" and goes on."""

    class Thing:
        pass

    def command() -> int:
        thing = Thing()
        watched = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        gc.collect()
        assert watched() is None
        time.sleep(LIMIT)

    began = time.monotonic()
    assert interruptible(command) == KILLED
    assert time.monotonic() - began < LIMIT / 2 and capsys.readouterr().err == ""


def test_a_command_in_the_background_of_a_script_is_left_alone():
    """A shell has Ctrl-C ignored there: it is meant for the script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def command() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    assert interruptible(command) == 0
