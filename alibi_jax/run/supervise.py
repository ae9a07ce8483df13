"""A training command that is restarted when it dies, until it is done.

Every host of a run has a supervisor of its own: where one host dies the others are aborted too (status 134) or fail, all
are restarted, and they connect again as they did at first.
"""

import math
import signal
from collections.abc import Sequence

from alibi_jax.errors import GAVE_UP, Diverged, HeldError, Interrupted, Refused, require
from alibi_jax.run.checkpoint import is_whole
from alibi_jax.run.child import Child, print_line
from alibi_jax.run.signals import stop_handler
from alibi_jax.run.workdir import saved_steps
from alibi_jax.storage import Location

FINAL = {  # exit status -> what it means; a restart would end the same way
    0: "done",
    Refused.status: "its input was refused",
    Diverged.status: "it diverged",
}
LONGEST_PAUSE = 30.0  # seconds before a restart; the first comes after one


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _report(status: int, step: int, what: str) -> None:
    saved = f"last checkpoint: step {step}" if step else "no checkpoint yet"
    print_line(f"the run ended with {_name(status)}; {saved}; {what}")


def supervise(
    command: Sequence[str],
    workdir: Location,
    patience: int,
    last_step: int,
    stop_seconds: float = 300.0,
    stall_seconds: float = 0.0,
) -> int:
    """Runs `command`, which trains in `workdir`, until it is done, and returns an exit status.

    Whatever ended it, it is restarted after 1, 2, 4 ... 30 seconds (30 where another run holds the folder), unless its
    status is in FINAL or this process was asked to stop. Such a signal is passed on, and a run that has not ended after
    `stop_seconds` is killed, as is a run without a step for `stall_seconds` (0: never). A new checkpoint resets pause and
    patience. Returns GAVE_UP after `patience` restarts in a row without one; 0 once the checkpoint of `last_step` is whole,
    whatever ended the run then; like a shell, 128 + the number of a signal that ended the child.
    """
    require(patience >= 0, "patience", patience, "0 restarts or more", "Raise --patience.")
    for name, seconds in (("stop_seconds", stop_seconds), ("stall_seconds", stall_seconds)):
        option = name.replace("_", "-")
        require(0 <= seconds < math.inf, name, seconds, "0 seconds or more", f"Correct --{option}.")
    child, restarts = Child(command, stop_seconds, stall_seconds), 0
    best = max(saved_steps(workdir), default=0)
    with stop_handler(child.ask):
        while True:
            status = child.run()
            step = max(saved_steps(workdir), default=0)
            if child.asked or status in FINAL:
                _report(status, step, "stopped as asked" if child.asked else FINAL[status])
                return 128 - status if status < 0 else status
            # Other hosts may be done and gone: the run could not connect to them to finish.
            if step >= last_step and is_whole(workdir, step):
                _report(status, step, "which is its last: done")
                return 0
            restarts, best = (restarts, best) if step <= best else (0, step)
            if restarts == patience:
                _report(status, step, f"gave up after {patience} restarts without a new checkpoint")
                return GAVE_UP
            seconds = LONGEST_PAUSE if status == HeldError.status else min(2.0 ** min(restarts, 10), LONGEST_PAUSE)
            restarts += 1
            _report(status, step, f"restart {restarts} of {patience} in {seconds:g} s")
            child.pause(seconds)
            if child.asked:
                _report(status, step, "stopped as asked before the restart")
                return Interrupted.status
