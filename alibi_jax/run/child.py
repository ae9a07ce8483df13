"""A supervised process: started in a process group of its own, watched, asked to stop, killed with all that it started."""

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

from alibi_jax.errors import Failed
from alibi_jax.run.signals import ALWAYS

PIPE = "ALIBI_JAX_SUPERVISOR"  # environment variable: the file descriptor to which a supervised run reports its steps
TICK = 0.05  # seconds between two looks at the child
INSIST_SECONDS = 2.0  # from a second request to stop to SIGKILL
KILL_SECONDS = 30.0  # after SIGKILL; a process that still exists then waits in the kernel
GUARD = Path(__file__).with_name("guard.py")


def print_line(text: str) -> None:
    """Prints a line on stderr with the time; a terminal that is gone or a full disk ends no supervisor."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):
        print(f"supervise: {now} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _guarded(child: int, seconds: float) -> Iterator[None]:
    """Runs guard.py beside the child, in a session of its own: what ends this process's group leaves it alive."""
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
        guard.kill()  # before its input ends, on which it would end the child
        guard.wait()
        guard.stdin.close()


class Child:
    """A command that can be run many times, and the signals to stop that this process received."""

    def __init__(self, command: Sequence[str], stop_seconds: float, stall_seconds: float) -> None:
        self.command, self.asked = list(command), []
        self.stop_seconds, self.stall_seconds = stop_seconds, stall_seconds

    def ask(self, number: int, _: Any = None) -> None:
        """Notes a signal to pass on. After a second SIGTERM or Ctrl-C the child has INSIST_SECONDS left."""
        self.asked.append(number)

    def run(self) -> int:
        """Runs the command and returns its exit status: minus the number of a signal that ended it; Failed.status where it
        could not be started.

        It is a process group of its own, so that Ctrl-C on a terminal reaches it once: from here. What it leaves running in
        that group is killed when it ends.
        """
        reading, writing = os.pipe()
        environment = os.environ | {PIPE: str(writing)}
        try:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[writing], process_group=0
            )
        except OSError as error:  # the program is gone, or there is no room for another process just now
            print_line(f"could not run {self.command[0]}: {error.strerror or error}")
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
        too long. Times are summed ticks, so that a suspended machine counts one."""
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
                print_line(f"asked to stop by {signal.Signals(self.asked[-1]).name}, it did not end in time: killed")
                return
            if 0 < self.stall_seconds < idle:
                print_line(f"no step for {self.stall_seconds:g} s: killed")
                return
            time.sleep(TICK)

    def pause(self, seconds: float) -> None:
        """Waits so many seconds, or until asked to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.asked:
            time.sleep(0.05)


def _send(process: subprocess.Popen, number: int) -> None:
    """Sends a signal to the child alone, which ends what it started; and wakes its group: a stopped process handles none."""
    process.send_signal(number)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)


def _status(process: subprocess.Popen) -> int:
    """Returns the exit status of a child that has ended or was killed; TimeoutError if it does not end."""
    try:
        return process.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"supervise: got process {process.pid} alive {KILL_SECONDS:g} s after SIGKILL, expected it to end. It waits in the "
            "kernel, for a file server or a driver; once it has ended, run the same command again."
        ) from error


def _kill(process: subprocess.Popen) -> None:
    """Kills the child, if it is alive, and all that it started and left in its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: on macOS, where all have ended
        os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def _pipe() -> int | None:
    """Returns the file descriptor that PIPE names, for this process alone; None without a supervisor."""
    text = os.environ.pop(PIPE, None)
    if text is None:
        return None
    os.set_inheritable(int(text), False)
    os.set_blocking(int(text), False)  # a stopped supervisor does not read
    return int(text)


def is_supervised() -> bool:
    """Returns whether a supervisor started this process; it then acts on a second signal to stop."""
    return _pipe() is not None


def tell_supervisor() -> None:
    """Reports progress, by a step or a validation, to the supervisor if there is one."""
    pipe = _pipe()
    if pipe is not None:
        with contextlib.suppress(OSError):
            os.write(pipe, b".")
