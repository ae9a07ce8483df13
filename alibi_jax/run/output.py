"""Standard output and standard error on which no work depends: if nobody reads them or their disk is full, it goes on."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LossyStream:
    """A text stream that drops what cannot be written (a closed pipe, a full disk, a lost terminal) without an error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes text, or drops it; returns its length."""
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered, or drops it."""
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _drain(stream: TextIO) -> None:
    """Writes what a stream has buffered, or drops it: Python would try again when it ends, and exit with status 120."""
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
    """Makes sys.stdout and sys.stderr lossy during the block, for everything that writes to them: prints, logs, bars."""
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
    """Hides Python's reports of unfinished reads and writes: where one of several fails, Orbax closes the event loop in which
    the others end, and drops their coroutines. The failure itself is raised."""
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
