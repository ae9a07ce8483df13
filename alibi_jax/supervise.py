"""A training command that is started again when it dies, until it is done.

Every host of a run has a supervisor of its own: where one host dies the others are aborted too (status 134) or fail, all
are started again, and they find each other as they did at first.
"""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from alibi_jax.checks import require
from alibi_jax.status import DIVERGED, GAVE_UP, INTERRUPTED, REFUSED
from alibi_jax.storage import Location
from alibi_jax.workdir import saved_steps

FINAL = {0: "done", REFUSED: "its input was refused", DIVERGED: "it diverged"}  # would end the same way again
LONGEST_PAUSE = 30.0  # seconds before a restart; the first comes after one
PIPE = "ALIBI_JAX_SUPERVISOR"  # environment variable: the file descriptor that ends with the supervisor
TIME_TO_SAVE = 60.0  # seconds between a lost supervisor's SIGTERM and SIGKILL


class _Child:
    """The command, run once or many times, and the signals that asked to stop it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command, self.asked = list(command), []

    def ask(self, number: int, _: Any = None) -> None:
        """Notes SIGTERM or SIGINT. Each is passed on, so that a second one ends the child at once."""
        self.asked.append(number)

    def run(self) -> int:
        """Its exit status; minus the signal's number where a signal ended it.

        It is a process group of its own, for Ctrl-C on a terminal to reach it once: from here. And it holds the reading
        end of a pipe that nobody writes to: when this process ends, however it does, `follow_supervisor` reads its end.
        """
        reading, writing = os.pipe()
        environment = os.environ | {PIPE: str(reading)}
        try:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[reading], process_group=0
            )
            return self._wait(process)
        finally:
            os.close(reading)
            os.close(writing)

    def _wait(self, process: subprocess.Popen) -> int:
        sent = 0
        while True:
            for number in self.asked[sent:]:
                process.send_signal(number)
                sent += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.2)

    def pause(self, seconds: float) -> None:
        """Waits, unless asked to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.asked:
            time.sleep(0.05)


@contextlib.contextmanager
def _asks(child: _Child) -> Iterator[None]:
    previous = {number: signal.signal(number, child.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _say(status: int, step: int, what: str) -> None:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    saved = f"last checkpoint: step {step}" if step else "no checkpoint yet"
    print(f"supervise: {now} the run ended with {_name(status)}; {saved}; {what}", file=sys.stderr, flush=True)


def supervise(command: Sequence[str], workdir: Location, patience: int, last_step: int) -> int:
    """Runs `command`, which trains in `workdir`, until it is done; returns an exit status.

    It is started again whatever ended it, after 1, 2, 4 ... 30 seconds, unless that is in FINAL or this process was asked
    to stop (SIGTERM, SIGINT: passed on). A new checkpoint sets pause and patience back. GAVE_UP after `patience` restarts
    in a row without one; 0 once the checkpoint of `last_step` is there, whatever ended the run then; 128 + the signal's
    number for a child that a signal ended, as shells say it.
    """
    require(patience >= 0, "patience", patience, "0 restarts or more", "Raise --patience.")
    child, best, restarts = _Child(command), max(saved_steps(workdir), default=0), 0
    with _asks(child):
        while True:
            status = child.run()
            step = max(saved_steps(workdir), default=0)
            if child.asked or status in FINAL:
                _say(status, step, "stopped as asked" if child.asked else FINAL[status])
                return 128 - status if status < 0 else status
            if step >= last_step:  # its peers may be done and gone: nobody would be there to finish with
                _say(status, step, "which is its last: done")
                return 0
            restarts, best = (restarts, best) if step <= best else (0, step)
            if restarts == patience:
                _say(status, step, f"gave up after {patience} restarts without a new checkpoint")
                return GAVE_UP
            seconds = min(2.0 ** min(restarts, 10), LONGEST_PAUSE)
            restarts += 1
            _say(status, step, f"restart {restarts} of {patience} in {seconds:g} s")
            child.pause(seconds)
            if child.asked:
                _say(status, step, "stopped as asked before the restart")
                return INTERRUPTED


def follow_supervisor() -> None:
    """In a supervised process: once its supervisor is gone, saves as on SIGTERM, and ends after TIME_TO_SAVE at the latest."""
    pipe = os.environ.pop(PIPE, None)
    if pipe is None:
        return

    def follow() -> None:
        os.read(int(pipe), 1)  # nothing is ever written: it returns when the writing end is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIME_TO_SAVE)
        os.kill(os.getpid(), signal.SIGKILL)

    os.set_inheritable(int(pipe), False)
    threading.Thread(target=follow, name="follow supervisor", daemon=True).start()
