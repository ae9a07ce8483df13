"""What only tells never ends the work: nobody reads the output, or its disk is full."""

import io
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from alibi_jax.config import to_json
from alibi_jax.errors import Refused
from alibi_jax.run.output import LossyStream, lossy_output, no_leftovers
from alibi_jax.run.parse import main
from alibi_jax.run.progress import Bar
from alibi_jax.run.workdir import saved_steps
from runs import tiny_config


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["pipe", "full disk"])
def nowhere(request):
    """A function of a kind of text stream, which makes one that cannot be written."""
    opened = []

    def make(kind: type = io.TextIOWrapper) -> io.TextIOWrapper:
        if request.param == "pipe":
            reading, number = os.pipe()
            os.close(reading)
        else:
            number = os.open("/dev/full", os.O_WRONLY)
        opened.append(kind(os.fdopen(number, "wb"), line_buffering=True))
        return opened[-1]

    yield make
    for stream in opened:
        try:
            stream.close()
        except OSError:
            pass  # what waited in its buffer


def test_lines_are_lost_and_nothing_is_raised(nowhere):
    stream = nowhere()
    with pytest.raises(OSError):
        print("a line", file=stream, flush=True)
    lossy = LossyStream(nowhere())
    for _ in range(10_000):
        print("a line", file=lossy, flush=True)
    assert lossy.encoding and lossy.fileno() > 2


def test_what_waits_is_given_up_at_the_end(nowhere, monkeypatch):
    monkeypatch.setattr(sys, "stdout", nowhere())
    stream = sys.stdout
    with lossy_output():
        print("a line")
        logging.getLogger("alibi_jax").warning("another")
    assert sys.stdout is stream
    stream.flush()  # as Python does at its end
    with pytest.raises(ZeroDivisionError), lossy_output():
        print(1 // 0)
    assert sys.stdout is stream


def test_closed_streams_stay_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with lossy_output(), Bar("train", 2) as bar:
        assert sys.stderr is None
        bar.update(2, "loss")


@pytest.mark.parametrize("kind", [io.TextIOWrapper, Terminal])
def test_bar_goes_on(nowhere, monkeypatch, kind):
    monkeypatch.setattr(sys, "stderr", nowhere(kind))
    with Bar("train", 100) as bar:
        assert bar.live == (kind is Terminal)
        for step in range(101):
            bar.update(step, "loss")


def test_run_goes_on_to_its_end(monkeypatch, tiny_data, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    (tmp_path / "config.json").write_text(to_json(tiny_config(tiny_data)))
    with open("/dev/full", "w") as full, os.fdopen(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", pipe)
        assert main(["train", str(tmp_path / "config.json"), "--workdir", str(tmp_path / "run")]) == 0
        assert saved_steps(tmp_path / "run") == [2, 4]
        assert main(["evaluate", str(tmp_path / "missing")]) == Refused.status


def test_python_ends_without_a_word_and_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    code = """
import os, sys
from alibi_jax.run.output import lossy_output
with lossy_output():
    file = open(sys.argv[1], "w")
    assert file.fileno() > 2 and sys.stderr is None
    print("x" * 100_000)
"""
    command = f'"{sys.executable}" -c \'{code}\' "{tmp_path}/file" 2>&- | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_reads_left_over_are_not_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.exc_value))
    orbax = SimpleNamespace(cr_code=SimpleNamespace(co_filename="/lib/orbax/checkpoint/serialization.py"))
    mine = SimpleNamespace(cr_code=SimpleNamespace(co_filename="/lib/mine.py"))
    with no_leftovers():
        for error, owner in [
            (RuntimeError("Event loop is closed"), None),
            (Exception("while reading"), orbax),
            (RuntimeError("another"), None),
            (KeyboardInterrupt(), mine),
        ]:
            sys.unraisablehook(SimpleNamespace(exc_type=type(error), exc_value=error, object=owner))
    assert [repr(error) for error in shown] == ["RuntimeError('another')", "KeyboardInterrupt()"]
