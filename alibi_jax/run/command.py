"""From a command to an exit status: errors a user can act on are one message, without a traceback."""

import gc
import io
import logging
import os
import sys
import time
from collections.abc import Callable

from alibi_jax.errors import KILLED, Diverged, Failed, HeldError, Interrupted, Refused
from alibi_jax.run.display import plain
from alibi_jax.run.hosts import is_first, several
from alibi_jax.run.output import lossy_output, no_leftovers

LAST_SECONDS = 5.0  # the first host ends after the others: without what it keeps for all they would be aborted


def run_command(parse: Callable[[], Callable[[], str]]) -> int:
    """Parses a command, runs it, prints what it says; returns the exit status. Other errors are bugs, with a traceback.

    Of several hosts one that fails ends at once: in an orderly shutdown it would wait for the others, which wait for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every program that runs commands leaves them so
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding shows what it can
    with lossy_output(), no_leftovers():
        return _run(parse)


def _run(parse: Callable[[], Callable[[], str]]) -> int:
    for name in ("absl", "asyncio"):  # Orbax logs there, with tracebacks, what it raises as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    log = logging.getLogger("alibi_jax")
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)  # what "auto" chose
    status = _status(parse)
    if status == Failed.status:
        gc.collect()  # what was left over is dropped here, not at Python's end
    if status in (Refused.status, Failed.status, Diverged.status, HeldError.status, KILLED) and several():
        sys.stderr.flush()
        if is_first():
            time.sleep(LAST_SECONDS)
        os._exit(status)
    return status


class _Plain(logging.Formatter):
    """Lines of the log as text, as messages are."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record), keep="\n")


def _say(message: str) -> None:
    """Prints a message as text: no file's name or content is a command to the terminal."""
    print(plain(message, keep="\n"), file=sys.stderr)


def _status(parse: Callable[[], Callable[[], str]]) -> int:
    try:
        said = parse()()
        if is_first():
            print(plain(said, keep="\n"))
    except Interrupted as stop:
        _say(str(stop))
        return stop.status
    except (Refused, Failed, Diverged) as error:
        _say(f"error: {error}")
        return error.status
    except FileNotFoundError as error:
        _say(f"error: {error}")
        return Refused.status
    except OSError as error:
        _say(f"error: {error}")
        return Failed.status
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from what was finished", file=sys.stderr)
        return KILLED
    return 0
