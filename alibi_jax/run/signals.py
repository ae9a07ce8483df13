"""The signals that ask a run to stop, and their handlers."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from alibi_jax.errors import KILLED

ALWAYS = (signal.SIGTERM, signal.SIGINT)
# A terminal that closes, what batch systems send some time before the end, a limit of processor time. Whoever had them
# ignored before the run began, such as nohup, meant it.
UNLESS_IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
SHOW_CURSOR = "\x1b[?25h"  # the bar hides it, and a second signal would leave it so


@contextlib.contextmanager
def stop_handler(handler: Callable) -> Iterator[None]:
    """Calls handler(number, frame) for each signal that asks to stop. SIGQUIT is left as it is: it ends a run at once."""
    numbers = [*ALWAYS, *(number for number in UNLESS_IGNORED if signal.getsignal(number) != signal.SIG_IGN)]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def stop_requested(supervised: bool = False) -> Iterator[list[str]]:
    """Collects the names of the signals that ask a run to stop: SIGTERM, Ctrl-C, a terminal that closes, a batch system's.

    A second SIGTERM or Ctrl-C ends the process at once. It is left to the operating system: Python would act on it only
    after the computation it waits for, and an exception in the middle of a save can leave Orbax waiting for ever. What is
    saved by then is whole all the same. The others are sent more than once by themselves, and in a supervised run the
    supervisor passes on a signal that a batch system has sent to every process: there repeats are ignored.
    """
    names: list[str] = []

    def note(number: int, _: Any) -> None:
        names.append(signal.Signals(number).name)
        ends = number in ALWAYS and not supervised
        signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)
        cursor = SHOW_CURSOR if os.isatty(2) else ""
        advice = "; a second one stops at once" if ends else ""
        with contextlib.suppress(OSError):  # the terminal may be what is gone
            os.write(2, f"{cursor}{names[-1]}: saving after this step{advice}.\n".encode())

    with stop_handler(note):
        yield names


def interruptible(command: Callable[[], int]) -> int:
    """Runs a command that Ctrl-C ends; its exit status, or KILLED. Before and after it Ctrl-C is left to `main.py`.

    Ctrl-C is an exception in whatever runs just then. In a callback of a library, such as JAX's of the garbage collector,
    Python reports it as ignored and goes on: then it is raised once more, a moment later.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background by a shell script
        return command()

    def again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, again
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return command()
    except KeyboardInterrupt:
        return KILLED
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
