"""How this process was started: for lines to paste into a shell, for records of what was run, and to start it once more."""

import shlex
import shutil
import sys
from pathlib import Path

from alibi_jax.run.display import decoded

COMMAND = "alibi-jax"  # the command that an installation puts on PATH


def _start() -> list[str]:
    """Returns the command line before the program's own arguments: ["python", "-m", "experiments.pods"].

    sys.argv has the full path of the module's file in place of -m and its name. Empty in a child of multiprocessing, whose
    sys.argv is its parent's.
    """
    start = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    return start if start + sys.argv[1:] == sys.orig_argv else []


def _script(start: list[str]) -> str:
    return Path(start[-1]).name if start else ""


def _is_ours(start: list[str]) -> bool:
    return start[-2:] == ["-m", "alibi_jax"] or _script(start) in ("main.py", COMMAND)


def program() -> str:
    """Returns what starts the commands in a shell, as the user wrote it; `alibi-jax` inside another program."""
    start = _start()
    if not _is_ours(start):
        return COMMAND
    if _script(start) != COMMAND:
        return shlex.join(start)
    return COMMAND if shutil.which(COMMAND) == start[-1] else shlex.quote(start[-1])


def command_line(*arguments: str) -> str:
    """Returns a line for a shell that runs a command of this program, such as the next one."""
    return f"{program()} {shlex.join(arguments)}"


def recorded_command() -> str:
    """Returns this process's own command line for a record: `python -m experiments.pods --quick`, whichever Python it was."""
    start = _start()
    start = [COMMAND] if _script(start) == COMMAND else ["python", *start[1:]]
    return decoded(shlex.join([*start, *sys.argv[1:]]))


def own_command(arguments: list[str]) -> list[str]:
    """Returns the words that start a command of this program in a process of its own, by the same Python."""
    start = _start()
    return [sys.executable, *(start[1:] if _is_ours(start) else ("-m", "alibi_jax")), *arguments]
