"""A supervised run is started again when it dies, and only where that helps."""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from alibi_jax.config import Config, to_json
from alibi_jax.data.corpus import prepare
from alibi_jax.errors import GAVE_UP, ConfigError, Diverged, HeldError, Interrupted, Refused
from alibi_jax.run import supervise
from alibi_jax.run.checkpoint import WRITTEN
from alibi_jax.run.child import PIPE, TICK, Child, _pipe, is_supervised, tell_supervisor
from alibi_jax.run.lock import only_run
from alibi_jax.run.origin import Origin, origin_item
from alibi_jax.run.parse import main
from alibi_jax.train import train
from children import be_quick, exit_status, latest, run_command, start, wait_for
from runs import assert_identical, saved_state, tiny_config

# Its n-th run does the n-th of its arguments, STEP:END: saves a step, then ends with a status or by a signal (-9).
STAND_IN = """
import os, pathlib, sys
workdir, *plan = sys.argv[1:]
runs = pathlib.Path(workdir, "runs")
with runs.open("a") as file:
    file.write("x")
step, _, end = plan[len(runs.read_text()) - 1].partition(":")
if step:
    pathlib.Path(workdir, "checkpoints", step).mkdir(parents=True, exist_ok=True)
os.kill(os.getpid(), -int(end)) if int(end) < 0 else sys.exit(int(end))
"""
OBEDIENT = """
import os, pathlib, signal, sys, time
def note(number, _):
    if sys.argv[2] == "hangs":
        signal.signal(number, signal.SIG_DFL)
    with open(os.path.join(sys.argv[1], "asked"), "a") as file:
        file.write("x")
    if sys.argv[2] == "saves":
        time.sleep(1)
        sys.exit(75)
signal.signal(signal.SIGTERM, note)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(100)
"""

# It does as its second argument says: "deaf" ignores SIGTERM, "stopped" stops itself once it could save. It starts a
# process of its own, whose number it leaves.
STUCK = """
import os, pathlib, signal, subprocess, sys, time
def save(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGHUP):  # the kernel's, to stopped processes whose parent is gone
    signal.signal(number, signal.SIG_IGN if sys.argv[2] == "deaf" else save)
other = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(100)"])
pathlib.Path(sys.argv[1], "other").write_text(str(other.pid))
number = pathlib.Path(sys.argv[1], "number")
number.write_text(str(os.getpid()))
number.rename(pathlib.Path(sys.argv[1], "ready"))  # whole or absent: we may be killed as soon as it is there
if sys.argv[2] == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(100)
"""
STALLED = """
import pathlib, sys, time
runs = pathlib.Path(sys.argv[1], "runs")
with runs.open("a") as file:
    file.write("x")
if runs.read_text() == "x":
    time.sleep(100)
"""


def stand_in(code: str, workdir: Path, *plan: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, str(workdir), *plan]


@pytest.fixture
def pauses(monkeypatch):
    """The pauses asked for, which are not waited for."""
    asked = []
    monkeypatch.setattr(Child, "pause", lambda _, seconds: asked.append(seconds))
    return asked


PLANS = {  # what the runs do, patience -> status, number of runs, the last line
    "done": (["1:0"], 5, 0, 1, "status 0; last checkpoint: step 1; done"),
    "crashes": ([":-9", ":134", ":1", ":75", "1:0"], 5, 0, 5, "done"),
    "refused": ([":2"], 5, Refused.status, 1, "status 2; no checkpoint yet; its input was refused"),
    "diverged": (["4:3"], 5, Diverged.status, 1, "status 3; last checkpoint: step 4; it diverged"),
    "no progress": ([":1"] * 3, 2, GAVE_UP, 3, "gave up after 2 restarts without a new checkpoint"),
    "progress": (["1:1", "2:1", "3:-6", "4:75", "4:0"], 1, 0, 5, "done"),
    "stuck": (["1:1", "1:-11"], 1, GAVE_UP, 2, "ended with SIGSEGV; last checkpoint: step 1; gave up after 1"),
    "held, then free": ([":5", "1:0"], 1, 0, 2, "done"),
    "no patience": (["1:1", ":1"], 0, GAVE_UP, 1, "gave up after 0 restarts"),
}


@pytest.mark.parametrize("case", PLANS)
def test_is_started_again_where_that_helps(tmp_path, capfd, pauses, case):
    plan, patience, expected, runs, output = PLANS[case]
    if case == "no patience":
        (tmp_path / "checkpoints/1").mkdir(parents=True)
    assert supervise.supervise(stand_in(STAND_IN, tmp_path, *plan), tmp_path, patience, 10**6) == expected
    lines = capfd.readouterr().err.splitlines()
    assert len((tmp_path / "runs").read_text()) == len(lines) == runs == len(pauses) + 1
    assert all(re.match(r"supervise: 20\d\d-\d\d-\d\dT\S+ the run ended with (SIG|status)", line) for line in lines)
    assert output in lines[-1], lines


def test_last_step_ends_it_once_its_checkpoint_is_whole(tmp_path, capfd, pauses):
    """Not a folder that was renamed to it, or lacks files: what the run itself refuses."""
    command, place = stand_in(STAND_IN, tmp_path, *["4:1"] * 6), tmp_path / "checkpoints/4"
    assert supervise.supervise(command, tmp_path, 1, 4) == GAVE_UP
    for name in WRITTEN:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    for step, expected in ((2, GAVE_UP), (4, 0)):
        origin = origin_item(Origin(Config(), "text"), step)
        (place / "checksums/metadata").write_text(json.dumps({"origin": origin}))
        assert supervise.supervise(command, tmp_path, 1, 4) == expected
    assert capfd.readouterr().err.endswith("last checkpoint: step 4; which is its last: done\n")


def test_pauses_grow_until_a_new_checkpoint(tmp_path, capfd, pauses):
    plan = [*[":1"] * 7, "1:1", "1:1", "2:0"]
    assert supervise.supervise(stand_in(STAND_IN, tmp_path, *plan), tmp_path, 7, 10**6) == 0
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 1, 2]
    assert "SIGKILL" not in capfd.readouterr().err


def ask(times: int, when) -> threading.Thread:
    """This process is asked to stop, each time once `when` has come."""

    def run() -> None:
        for number in range(times):
            wait_for(lambda number=number: when(number))
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("kind, times, expected", [("saves", 1, Interrupted.status), ("hangs", 2, 128 + 15)])
def test_signals_are_passed_on_and_end_it(tmp_path, capfd, kind, times, expected):
    def ready(number: int) -> bool:
        return (tmp_path / ("asked" if number else "ready")).exists()

    thread = ask(times, ready)
    assert supervise.supervise(stand_in(OBEDIENT, tmp_path, kind), tmp_path, 5, 10**6) == expected
    thread.join()
    assert (tmp_path / "asked").read_text() == "x"  # once: a second one would have ended it while it saved
    assert "stopped as asked" in capfd.readouterr().err


def is_there(path: Path) -> bool:
    """Whether the process whose number the file holds has not ended."""
    number = int(path.read_text())
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("kind, expected", [("stopped", Interrupted.status), ("deaf", 128 + 9)])
def test_a_child_that_does_not_act_is_woken_and_in_the_end_killed(tmp_path, capfd, kind, expected):
    thread = ask(1, lambda _: (tmp_path / "ready").exists() and (kind == "deaf" or stopped(tmp_path / "ready")))
    seconds = 60 if kind == "stopped" else 0.2
    assert supervise.supervise(stand_in(STUCK, tmp_path, kind), tmp_path, 5, 10**6, seconds) == expected
    thread.join()
    assert (tmp_path / "saved").exists() == (kind == "stopped")
    assert ("it did not end in time: killed" in capfd.readouterr().err) == (kind == "deaf")
    wait_for(lambda: not is_there(tmp_path / "other"))  # what it started goes with it


def stopped(path: Path) -> bool:
    return psutil.Process(int(path.read_text())).status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize("kind, seconds", [("stopped", 60), ("deaf", 0.2)])
def test_a_child_ends_with_a_supervisor_that_was_killed(tmp_path, kind, seconds):
    command = stand_in(STUCK, tmp_path, kind)
    process = start(supervise.supervise, command, tmp_path, 5, 10**6, seconds)
    wait_for(lambda: (tmp_path / "ready").exists() and (kind == "deaf" or stopped(tmp_path / "ready")))
    wait_for(lambda: len(psutil.Process(process.pid).children()) == 2)  # the child and its guard
    process.kill()
    wait_for(lambda: not is_there(tmp_path / "ready") and not is_there(tmp_path / "other"))
    assert (tmp_path / "saved").exists() == (kind == "stopped")


def test_a_run_without_a_step_for_too_long_is_started_again(tmp_path, capfd, pauses):
    assert supervise.supervise(stand_in(STALLED, tmp_path), tmp_path, 50, 10**6, stall_seconds=1.0) == 0
    errors = capfd.readouterr().err
    assert "no step for 1 s: killed" in errors and "ended with SIGKILL" in errors


def test_steps_put_a_stall_off(monkeypatch, capfd):
    """Counted in the supervisor's own ticks: one where nobody ran is one."""

    class Running:
        poll = staticmethod(lambda: None)

    reading, writing = os.pipe()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) in (10, 25):
            os.write(writing, b"..")

    monkeypatch.setattr(time, "sleep", sleep)
    Child([], 60, 20 * TICK - 0.01)._watch(Running, reading)
    assert len(slept) == 25 + 19
    os.close(reading)
    os.close(writing)


def test_steps_are_told_to_the_supervisor_alone(monkeypatch):
    reading, writing = os.pipe()
    _pipe.cache_clear()
    monkeypatch.setenv(PIPE, str(writing))
    assert is_supervised() and PIPE not in os.environ and not os.get_inheritable(writing)
    for _ in range(2**17):  # nobody reads: it does not wait
        tell_supervisor()
    os.close(reading)
    tell_supervisor()
    os.close(writing)
    _pipe.cache_clear()
    assert not is_supervised()
    tell_supervisor()


def test_a_program_that_cannot_be_run_is_tried_again(tmp_path, capfd, pauses):
    assert supervise.supervise([str(tmp_path / "gone")], tmp_path, 2, 1) == GAVE_UP
    errors = capfd.readouterr().err
    assert errors.count("gone: No such file or directory") == 3 and "Traceback" not in errors


def test_a_supervisor_without_a_terminal_goes_on(tmp_path, monkeypatch, pauses):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert supervise.supervise(stand_in(STAND_IN, tmp_path, ":1", ":0"), tmp_path, 5, 10**6) == 0
        with contextlib.suppress(OSError):
            full.close()


def test_asked_to_stop_between_two_runs(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Child, "pause", lambda child, _: child.ask(signal.SIGTERM))
    command = stand_in(STAND_IN, tmp_path, ":1", ":0")
    assert supervise.supervise(command, tmp_path, 5, 10**6) == Interrupted.status
    assert (tmp_path / "runs").read_text() == "x" and "stopped as asked" in capfd.readouterr().err


def test_pause_ends_when_asked_to_stop():
    child = Child([], 1, 0)
    child.ask(signal.SIGTERM)
    begun = time.monotonic()
    child.pause(100.0)
    assert time.monotonic() - begun < 10


def test_what_cannot_be_supervised_is_refused(capsys, tmp_path):
    for command in (["supervise"], ["supervise", "--"], ["supervise", "--", "evaluate", "x"], ["supervise", "train"]):
        assert main(command) == Refused.status
        assert "expected train CONFIG ..., the one command" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["supervise", "--", "train", "configs/quickstart.py", "--train.stepz", "1"])
    for options in ({"patience": -1}, {"stop_seconds": -1.0}, {"stall_seconds": float("nan")}):
        with pytest.raises(ConfigError, match=rf"{next(iter(options))}: got (-1|nan)"):
            supervise.supervise([], tmp_path, **({"patience": 1, "last_step": 1} | options))


def supervised(config, folder: Path):
    """A supervisor of a training run in folder/run; what both say is in folder/errors."""
    (folder / "config.json").write_text(to_json(config))
    command = ["train", str(folder / "config.json"), "--workdir", str(folder / "run")]
    return start(run_command, ["supervise", "--", *command], folder / "errors")


def trainer(workdir: Path) -> int:
    """The process that trains in a folder, as its lock says."""
    return int(re.search(r"process (\d+)", (workdir / "lock").read_text())[1])


def undisturbed(config, workdir: Path) -> None:
    be_quick(workdir.parent)
    train(config, workdir)


def test_killed_training_is_finished_as_if_nothing_had_happened(tiny_data, tmp_path):
    config = tiny_config(tiny_data, steps=300, checkpoint_every=100, log_every=100)
    prepare(tiny_data, quiet=True)
    process, workdir = supervised(config, tmp_path), tmp_path / "run"
    wait_for(lambda: latest(workdir) >= 100 or not process.is_alive())
    os.kill(trainer(workdir), signal.SIGKILL)
    whole = start(undisturbed, config, tmp_path / "whole")  # which loads what the killed one compiled
    ended, errors = exit_status(process), (tmp_path / "errors").read_text()
    assert ended == 0, errors
    assert re.search(r"ended with SIGKILL; last checkpoint: step \d+; restart 1 of 5 in 1 s\n", errors), errors
    assert "ended with status 0; last checkpoint: step 300; done" in errors
    assert exit_status(whole) == 0
    assert_identical(saved_state(config, workdir), saved_state(config, tmp_path / "whole"))


def free(workdir: Path) -> bool:
    try:
        with only_run(workdir):
            return True
    except HeldError:
        return False


def test_training_saves_and_ends_with_its_supervisor(tiny_data, tmp_path):
    config, workdir = tiny_config(tiny_data, steps=10**6, checkpoint_every=10**6), tmp_path / "run"
    prepare(tiny_data, quiet=True)
    log = workdir / "metrics.jsonl"
    process = supervised(config, tmp_path)
    wait_for(lambda: (log.exists() and log.stat().st_size > 0) or not process.is_alive())
    process.terminate()
    ended, errors = exit_status(process), (tmp_path / "errors").read_text()
    assert ended == Interrupted.status, errors
    assert "SIGTERM: step" in errors and "stopped as asked" in errors
    first, size = latest(workdir), log.stat().st_size
    assert first > 0

    process = supervised(config, tmp_path)
    wait_for(lambda: log.stat().st_size > size or not process.is_alive())
    assert not free(workdir)
    process.kill()
    wait_for(lambda: free(workdir))
    assert latest(workdir) > first
