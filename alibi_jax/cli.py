"""From a command to an exit status: errors a user can act on are one message, without a traceback."""

import logging
import sys
from collections.abc import Callable

from alibi_jax.checkpoint import CheckpointError
from alibi_jax.config import ConfigError
from alibi_jax.data.sources import DataError
from alibi_jax.loop import Diverged, Interrupted

FAILED, REFUSED, INTERRUPTED = 1, 2, 75  # 75: stopped on request with everything saved; the same command goes on


def run_command(parse: Callable[[], Callable[[], str]]) -> int:
    """Parses a command, runs it, prints what it says; returns the exit status."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of what is meant: read-only folders, unscored steps
    try:
        print(parse()())
    except (ConfigError, DataError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except (CheckpointError, Diverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return INTERRUPTED
    return 0
