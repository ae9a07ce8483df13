"""From a command to an exit status: errors a user can act on are one message, without a traceback."""

import gc
import io
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from alibi_jax.errors import KILLED, Diverged, Failed, HeldError, Interrupted, Refused
from alibi_jax.run.display import plain
from alibi_jax.run.hosts import is_first, several
from alibi_jax.run.output import lossy_output, no_leftovers
from alibi_jax.run.signals import interruptible

LAST_SECONDS = 5.0  # the first host ends after the others: without what it keeps for all they would be aborted

Parse = Callable[[], Callable[[], str]]  # from the command line to a command, which returns what it prints


def exit_with(parse: Parse) -> NoReturn:
    """Runs a command as `run_command` does, and ends the process with its exit status; Ctrl-C ends the command."""
    status = interruptible(lambda: run_command(parse))
    if status == KILLED:  # XLA's threads may still be at work, and Python's own end frees what they use: once a SIGSEGV
        os._exit(status)
    sys.exit(status)


def run_command(parse: Parse) -> int:
    """Parses and runs a command, prints its result, and returns the exit status. Other errors are bugs, with a traceback.

    One of several hosts that fails ends at once: in an orderly shutdown it would wait for the others, which wait for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # another program may have replaced them
            stream.reconfigure(errors="backslashreplace")  # for what the terminal's encoding lacks
    with lossy_output(), no_leftovers():
        return _run(parse)


def _run(parse: Parse) -> int:
    for name in ("absl", "asyncio"):  # Orbax logs its errors there with tracebacks, and raises them too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    log = logging.getLogger("alibi_jax")
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)  # what "auto" chose
    status = _status(parse)
    if status == Failed.status:
        gc.collect()  # coroutines left over are dropped here, not at Python's end
    if status in (Refused.status, Failed.status, Diverged.status, HeldError.status, KILLED) and several():
        sys.stderr.flush()
        if is_first():
            time.sleep(LAST_SECONDS)
        os._exit(status)
    return status


class _Plain(logging.Formatter):
    """Formats lines of the log as text, as error messages are."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record), keep="\n")


def _print_error(message: str) -> None:
    """Prints a message as text: no file's name or content is a command to the terminal."""
    print(plain(message, keep="\n"), file=sys.stderr)


def _status(parse: Parse) -> int:
    try:
        text = parse()()
        if is_first():
            print(plain(text, keep="\n"))
    except Interrupted as stop:
        _print_error(str(stop))
        return stop.status
    except (Refused, Failed, Diverged) as error:
        _print_error(f"error: {error}")
        return error.status
    except FileNotFoundError as error:
        _print_error(f"error: {error}")
        return Refused.status
    except OSError as error:
        _print_error(f"error: {error}")
        return Failed.status
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from what was finished", file=sys.stderr)
        return KILLED
    return 0
