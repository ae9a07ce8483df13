"""A run that is killed or asked to stop at any moment goes on as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alibi_jax import loop
from alibi_jax.config import replace, to_json
from alibi_jax.data.corpus import prepare
from alibi_jax.errors import Interrupted
from alibi_jax.run.signals import stop_requested
from alibi_jax.train import train
from children import LIMIT, MAIN, be_quick, exit_status, latest, run_command, start, wait_for
from flags import QUICK
from runs import DROPOUT, assert_identical, saved_state, tiny_config


def run(config, workdir: Path, killed_after: int | None = None) -> None:
    """A child trains; it may kill itself as soon as the checkpoint of a step is whole."""
    be_quick(workdir.parent)
    calls, put_batch = [], loop.put_batch

    def put_batch_or_die(rows, mesh):
        calls.append(rows)
        if len(calls) == 2 * killed_after + 1:  # inputs and targets of each step
            wait_for(lambda: (workdir / "checkpoints" / str(killed_after)).exists())
            os.kill(os.getpid(), signal.SIGKILL)
        return put_batch(rows, mesh)

    if killed_after is not None:
        loop.put_batch = put_batch_or_die
    train(config, workdir)


def lines(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def values(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.endswith("_per_second")} for line in lines(workdir)
    ]


@pytest.mark.versions
def test_killed_run_goes_on_bit_for_bit(tiny_data, tmp_path):
    config = tiny_config(tiny_data, model=DROPOUT, gradient_accumulation=2)
    prepare(tiny_data, quiet=True)
    killed = start(run, config, tmp_path / "killed", 2)
    assert exit_status(killed) == -signal.SIGKILL and latest(tmp_path / "killed") == 2
    whole = start(run, config, tmp_path / "whole")  # which loads what the killed one compiled
    assert exit_status(start(run, config, tmp_path / "killed")) == 0
    assert exit_status(whole) == 0
    state = saved_state(config, tmp_path / "killed")
    assert state.step == 4
    assert_identical(state, saved_state(config, tmp_path / "whole"))
    assert values(tmp_path / "killed") == values(tmp_path / "whole")


def kill_while_saving(child, workdir: Path, share: float) -> None:
    """Kills a child that saves every step: `share` of the time a save takes after it has begun its third.

    The first save takes longer than the others, and so says little about them.
    """
    step = latest(workdir) + 2

    def moment(condition: Callable[[], bool]) -> float:
        wait_for(lambda: condition() or not child.is_alive())
        return time.monotonic()

    began = moment(lambda: any(workdir.glob(f"checkpoints/{step}*")))
    ended = moment(lambda: latest(workdir) >= step)
    moment(lambda: any(workdir.glob(f"checkpoints/{step + 1}*")))
    time.sleep(share * (ended - began))
    child.kill()
    assert exit_status(child) == -signal.SIGKILL, f"the child ended by itself at step {latest(workdir)}"


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_while_saving_leave_a_run_that_goes_on(tiny_data, tmp_path, kills):
    config = tiny_config(tiny_data, model=DROPOUT, steps=6 * kills, checkpoint_every=1, log_every=1000, max_to_keep=1)
    prepare(tiny_data, quiet=True)
    whole, killed, torn = tmp_path / "whole", tmp_path / "killed", 0
    for share in np.random.default_rng(kills).uniform(0, 1.5, kills):
        kill_while_saving(start(run, config, killed), killed, share)
        torn += any(killed.glob("checkpoints/*tmp*"))
    print(f"{kills} kills, {torn} in the middle of a save, the last after step {latest(killed)}")
    assert torn > 0
    assert exit_status(start(run, config, killed)) == 0
    seldom = replace(config, "train", checkpoint_every=config.train.steps)
    assert exit_status(start(run, seldom, whole)) == 0
    assert_identical(saved_state(config, killed), saved_state(config, whole))


@pytest.fixture
def endless(tiny_data, tmp_path) -> list[str]:
    """Arguments of a training run that will not end while a test runs."""
    config = tiny_config(tiny_data, steps=10**6, checkpoint_every=10**6)
    (tmp_path / "config.json").write_text(to_json(config))
    prepare(tiny_data, quiet=True)
    return ["train", str(tmp_path / "config.json"), "--workdir", str(tmp_path / "run")]


def stopped_at(errors: str, name: str, workdir: Path) -> int:
    """The step a message names, once the whole message is as it should be."""
    output = re.search(
        rf"{name}: step (\d+) of 1000000 is saved in (.*)\. Run the same command to go on from it\.", errors
    )
    assert output, errors
    assert output[2] == str(workdir) and "Traceback" not in errors
    return int(output[1])


def test_sigterm_and_ctrl_c_save_and_the_same_command_goes_on(endless, tmp_path):
    workdir = tmp_path / "run"
    environment = os.environ | {"XLA_FLAGS": QUICK}
    command = [sys.executable, MAIN, *endless]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        wait_for(lambda: len(lines(workdir)) > 3 or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == Interrupted.status == 75, errors
    first = stopped_at(errors, "SIGTERM", workdir)
    assert latest(workdir) == first == lines(workdir)[-1]["step"]

    child = start(run_command, endless, tmp_path / "errors")
    wait_for(lambda: len(lines(workdir)) > first + 3 or not child.is_alive())
    os.kill(child.pid, signal.SIGINT)
    assert exit_status(child) == Interrupted.status
    second = stopped_at((tmp_path / "errors").read_text(), "SIGINT", workdir)
    assert latest(workdir) == second > first
    assert [line["step"] for line in lines(workdir)] == list(range(1, second + 1))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_requests_to_stop(name):
    """Each is one; SIGTERM and Ctrl-C act at once the second time, but in a supervised run, and what comes twice by itself."""
    number, before = signal.Signals[name], signal.getsignal(signal.Signals[name])
    for supervised in (False, True):
        with stop_requested(supervised) as names:
            os.kill(os.getpid(), number)
            assert names == [name]
            ends = name in ("SIGTERM", "SIGINT") and not supervised
            assert signal.getsignal(number) == (signal.SIG_DFL if ends else signal.SIG_IGN)
        assert signal.getsignal(number) == before


def test_a_hangup_that_is_ignored_stays_so():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested() as names:
            os.kill(os.getpid(), signal.SIGHUP)
        assert names == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving():
    with open("/dev/full", "w") as full, stop_requested() as names:
        errors = os.dup(2)
        os.dup2(full.fileno(), 2)
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.dup2(errors, 2)
            os.close(errors)
        assert names == ["SIGHUP"]


def test_second_ctrl_c_acts_at_once(endless, tmp_path):
    child = start(run_command, endless, tmp_path / "errors")
    wait_for(lambda: len(lines(tmp_path / "run")) > 3 or not child.is_alive())
    os.kill(child.pid, signal.SIGSTOP)  # so that both come before the run can act on the first
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGCONT)
    wait_for(lambda: "a second one stops at once" in (tmp_path / "errors").read_text())
    os.kill(child.pid, signal.SIGINT)
    assert exit_status(child) in (-signal.SIGINT, Interrupted.status)
