"""Standard output and standard error that only tell: where nobody reads them, or their disk is full, the work goes on."""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import TracebackType
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


def show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback, as sys.excepthook does, but none of TensorStore's: where one of several reads or writes fails, the
    others find the event loop closed that Orbax waited in, and say so from threads of C++. The error itself is raised."""
    if kind is not RuntimeError or str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)
