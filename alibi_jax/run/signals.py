"""The signals that ask a run to stop, and their handlers."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from alibi_jax.errors import KILLED

ALWAYS = (signal.SIGTERM, signal.SIGINT)
# A terminal that closes, what batch systems send some time before the end, a limit of processor time. Whoever had them
# ignored before the run began, such as nohup, meant it.
UNLESS_IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


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
