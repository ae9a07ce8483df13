"""Ends a supervised process whose supervisor is gone: `python guard.py PID SECONDS`, beside it, with a pipe as its input.

It is a process of its own, for the supervised one may be stopped or deep in C++, where none of its threads can act; and
it imports nothing heavy, for it starts with every run.
"""

import contextlib
import os
import signal
import sys
import time


def end(child: int, seconds: float) -> None:
    """Asks the process to save and stop; after so many seconds, or once it is gone, kills what is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
        os.killpg(child, signal.SIGCONT)  # a stopped process acts on nothing else
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            os.kill(child, 0)  # ProcessLookupError once it is gone
            time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # nothing is ever written: it returns when the supervisor's end of the pipe is closed
    end(int(sys.argv[1]), float(sys.argv[2]))
