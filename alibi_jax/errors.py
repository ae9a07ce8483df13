"""Every error that a user can act on, and the exit status of the command that meets it.

Four bases carry the status: `Refused` (bad input, before any work), `Failed` (a run that could not go on), `Diverged` and
`Interrupted`. The command line prints the message of such an error without a traceback; every message says what was got, what
is expected, and what to do.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

LONGEST_TEXT = 200  # characters of a value in a message
MANY = 20  # names in a message
GAVE_UP = 4  # exit status of `supervise` after as many restarts as its patience without a new checkpoint
KILLED = 130  # exit status of a command that was stopped at once


class Refused(ValueError):
    """Bad input, refused before any work."""

    status: ClassVar[int] = 2


class Failed(RuntimeError):
    """A run that could not go on: a full disk, a damaged checkpoint, a lost host."""

    status: ClassVar[int] = 1


class Diverged(RuntimeError):
    """A loss or a gradient that is not finite; the last good checkpoint is kept. The same command would meet it again."""

    status: ClassVar[int] = 3


class Interrupted(RuntimeError):
    """A signal asked the run to stop; its state is saved, and the same command goes on from it."""

    status: ClassVar[int] = 75


class ConfigError(Refused):
    """A configuration that cannot be run."""


class DataError(Refused):
    """Text or a corpus that cannot be used."""


class WeightsError(Refused):
    """Files of another program's model that cannot be imported."""


class ResultsError(Refused):
    """Losses or records of an evaluation that cannot be used."""


class LengthError(Refused):
    """An input longer than a position method is defined for, or a position past its table."""


class CheckpointError(Failed):
    """A checkpoint that cannot be read or written; what was saved before is untouched."""


class MetricsError(Failed):
    """Metrics that cannot be written or read."""


class HostsError(Failed):
    """Hosts that could not connect, or of which one was lost."""


class HeldError(Failed):
    """A folder that another run holds; the same command can go on once that run has ended."""

    status: ClassVar[int] = 5


def require(condition: bool, field: str, got: Any, expected: str, do: str) -> None:
    """Raises ConfigError with the three parts of every message here unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field}: got {got}, expected {expected}. {do}")


def shown(value: Any) -> str:
    """Returns the value as text that can be read: Python refuses to write an integer of more than 4,300 digits."""
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value[:3]))}{', ...' if len(value) > 3 else ',' if len(value) == 1 else ''})"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text):,} characters)"


def listed(names: Iterable[str]) -> str:
    """Returns names for a message: the first of them, and how many more there are."""
    names = list(names)
    return ", ".join(names[:MANY]) + (f" and {len(names) - MANY} more" if len(names) > MANY else "")
