"""A training command that is started again when it dies, until it is done.

Every host of a run has a supervisor of its own: where one host dies the others are aborted too (status 134) or fail, all
are started again, and they find each other as they did at first.
"""

import contextlib
import datetime
import functools
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alibi_jax.errors import GAVE_UP, Diverged, Failed, HeldError, Interrupted, Refused, require
from alibi_jax.run.checkpoint import is_whole
from alibi_jax.run.signals import ALWAYS, stop_handler
from alibi_jax.run.workdir import saved_steps
from alibi_jax.storage import Location

FINAL = {
    0: "done",
    Refused.status: "its input was refused",
    Diverged.status: "it diverged",
}  # would end the same way again
LONGEST_PAUSE = 30.0  # seconds before a restart; the first comes after one
PIPE = "ALIBI_JAX_SUPERVISOR"  # environment variable: the file descriptor that a supervised run writes its steps to
TICK = 0.05  # seconds between two looks at the child
INSIST_SECONDS = 2.0  # from a second request to stop to SIGKILL
KILL_SECONDS = 30.0  # after SIGKILL; a process that is still there waits in the kernel
GUARD = Path(__file__).with_name("guard.py")


def _print(text: str) -> None:
    """One line on stderr; a terminal that is gone or a full disk ends no supervisor."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):
        print(f"supervise: {now} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _guarded(child: int, seconds: float) -> Iterator[None]:
    """Runs guard.py beside the child. It is in a session of its own, so what ends this process's group leaves it alive."""
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), str(child), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.kill()  # before its input ends, which it would act on
        guard.wait()
        guard.stdin.close()


class _Child:
    """The command, run once or many times, and the signals that asked to stop it."""

    def __init__(self, command: Sequence[str], stop_seconds: float, stall_seconds: float) -> None:
        self.command, self.asked = list(command), []
        self.stop_seconds, self.stall_seconds = stop_seconds, stall_seconds

    def ask(self, number: int, _: Any = None) -> None:
        """Notes a signal. Each is passed on; after a second SIGTERM or Ctrl-C the child has INSIST_SECONDS left."""
        self.asked.append(number)

    def run(self) -> int:
        """Its exit status; minus the signal's number where a signal ended it; Failed.status where it could not be started.

        It is a process group of its own, for Ctrl-C on a terminal to reach it once: from here. What it leaves running in
        that group is killed when it ends.
        """
        reading, writing = os.pipe()
        environment = os.environ | {PIPE: str(writing)}
        try:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[writing], process_group=0
            )
        except OSError as error:  # no such program any more, or no room for another process just now
            _print(f"could not run {self.command[0]}: {error.strerror or error}")
            os.close(reading)
            return Failed.status
        finally:
            os.close(writing)
        try:
            with _guarded(process.pid, self.stop_seconds):
                self._watch(process, reading)
        finally:
            _kill(process)
            os.close(reading)
        return _status(process)

    def _watch(self, process: subprocess.Popen, steps: int) -> None:
        """Returns when the child has ended or has to be killed: asked to stop but not gone in time, or without a step for
        too long. Times are summed ticks, so that a pause of the whole machine counts as one."""
        sent, left, idle = 0, math.inf, 0.0
        while process.poll() is None:
            for number in self.asked[sent:]:
                _send(process, number)
                sent += 1
                left = min(left, self.stop_seconds if sum(n in ALWAYS for n in self.asked) < 2 else INSIST_SECONDS)
            if select.select([steps], [], [], 0)[0] and os.read(steps, 2**16):
                idle = 0.0
            left, idle = left - TICK, idle + TICK
            if left < 0:
                _print(f"asked to stop by {signal.Signals(self.asked[-1]).name} and still there in the end: killed")
                return
            if 0 < self.stall_seconds < idle:
                _print(f"no step for {self.stall_seconds:g} s: taken for dead, killed")
                return
            time.sleep(TICK)

    def pause(self, seconds: float) -> None:
        """Waits, unless asked to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.asked:
            time.sleep(0.05)


def _send(process: subprocess.Popen, number: int) -> None:
    """To the child alone, which ends what it started; and wakes its group, for a stopped process acts on nothing."""
    process.send_signal(number)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)


def _status(process: subprocess.Popen) -> int:
    """The exit status of a child that has ended or was killed."""
    try:
        return process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"supervise: got process {process.pid} still there {KILL_SECONDS:g} s after SIGKILL, expected it to end. It waits "
            "in the kernel, for a file server or a driver; once it is gone, run the same command again."
        ) from error


def _kill(process: subprocess.Popen) -> None:
    """Kills the child, if it is there, and all that it started and left in its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: what is left has ended
        os.killpg(process.pid, signal.SIGKILL)


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _say(status: int, step: int, what: str) -> None:
    saved = f"last checkpoint: step {step}" if step else "no checkpoint yet"
    _print(f"the run ended with {_name(status)}; {saved}; {what}")


def supervise(
    command: Sequence[str],
    workdir: Location,
    patience: int,
    last_step: int,
    stop_seconds: float = 300.0,
    stall_seconds: float = 0.0,
) -> int:
    """Runs `command`, which trains in `workdir`, until it is done; returns an exit status.

    It is started again whatever ended it, after 1, 2, 4 ... 30 seconds (30 where another run holds the folder), unless
    that is in FINAL or this process was asked to stop: such a signal is passed on, and a run that is still there after
    `stop_seconds` is killed, as is a run without a step for `stall_seconds` (0: never). A new checkpoint sets pause and
    patience back. GAVE_UP after `patience` restarts in a row without one; 0 once the checkpoint of `last_step` is whole,
    whatever ended the run then; 128 + the signal's number for a child that a signal ended, as shells say it.
    """
    require(patience >= 0, "patience", patience, "0 restarts or more", "Raise --patience.")
    for name, seconds in (("stop_seconds", stop_seconds), ("stall_seconds", stall_seconds)):
        option = name.replace("_", "-")
        require(0 <= seconds < math.inf, name, seconds, "0 seconds or more", f"Correct --{option}.")
    child, restarts = _Child(command, stop_seconds, stall_seconds), 0
    best = max(saved_steps(workdir), default=0)
    with stop_handler(child.ask):
        while True:
            status = child.run()
            step = max(saved_steps(workdir), default=0)
            if child.asked or status in FINAL:
                _say(status, step, "stopped as asked" if child.asked else FINAL[status])
                return 128 - status if status < 0 else status
            if step >= last_step and is_whole(
                workdir, step
            ):  # its peers may be done and gone: nobody would be there to finish with
                _say(status, step, "which is its last: done")
                return 0
            restarts, best = (restarts, best) if step <= best else (0, step)
            if restarts == patience:
                _say(status, step, f"gave up after {patience} restarts without a new checkpoint")
                return GAVE_UP
            seconds = LONGEST_PAUSE if status == HeldError.status else min(2.0 ** min(restarts, 10), LONGEST_PAUSE)
            restarts += 1
            _say(status, step, f"restart {restarts} of {patience} in {seconds:g} s")
            child.pause(seconds)
            if child.asked:
                _say(status, step, "stopped as asked before the restart")
                return Interrupted.status


@functools.cache
def _pipe() -> int | None:
    """The file descriptor that PIPE names, for this process alone; None in a run without a supervisor."""
    text = os.environ.pop(PIPE, None)
    if text is None:
        return None
    os.set_inheritable(int(text), False)
    os.set_blocking(int(text), False)  # a supervisor that is stopped does not read
    return int(text)


def is_supervised() -> bool:
    """Whether a supervisor started this process. Then it is the one that acts on a second signal."""
    return _pipe() is not None


def tell_supervisor() -> None:
    """In a supervised run: says that it has got on, by a step or a validation."""
    pipe = _pipe()
    if pipe is not None:
        with contextlib.suppress(OSError):
            os.write(pipe, b".")
