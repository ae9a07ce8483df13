"""Standard output and standard error that only tell: where nobody reads them, or their disk is full, the work goes on."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LossyStream:
    """A text stream that loses without an error what cannot be written (a closed pipe, a full disk, a lost terminal)."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _drain(stream: TextIO) -> None:
    """Writes what waits in a stream's buffers, or gives it up: Python would try again at its end and exit with status 120."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _occupy_descriptors() -> None:
    """Opens the null device in place of a closed standard stream: the next file opened would get its number, and what
    libraries in C++ print to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextlib.contextmanager
def lossy_output() -> Iterator[None]:
    """Makes sys.stdout and sys.stderr lossy while a command runs, for all who write to them: prints, logs, bars."""
    _occupy_descriptors()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and LossyStream(stream) for stream in streams)  # None where it was closed
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in filter(None, streams):
            _drain(stream)


@contextlib.contextmanager
def no_leftovers() -> Iterator[None]:
    """Shows none of what Python reports of reads and writes left over: where one of several fails, Orbax closes the event
    loop in which the others end, and drops their coroutines. The failure itself is raised."""
    hook = sys.unraisablehook

    def show(unraisable: Any) -> None:
        closed = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        if not closed and not (code and "/orbax/" in code.co_filename):
            hook(unraisable)

    sys.unraisablehook = show
    try:
        yield
    finally:
        sys.unraisablehook = hook
