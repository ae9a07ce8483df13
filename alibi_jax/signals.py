"""The signals that ask a run to stop, and their handlers."""

import contextlib
import signal
from collections.abc import Callable, Iterator

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
