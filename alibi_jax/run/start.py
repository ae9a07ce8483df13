"""The first moments of a command, before anything heavy is imported: Ctrl-C, and memory in huge pages."""

import os
import platform
import signal
import sys

from alibi_jax.errors import KILLED

TUNABLES = "GLIBC_TUNABLES"  # environment variable, read once, when a process starts
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # malloc asks the kernel for huge pages, so large arrays fault far fewer of them


def start() -> None:
    """Makes Ctrl-C end this process at once, and starts its command line again where memory can come in huge pages.

    To be called before the heavy imports: they take seconds, and some swallow exceptions. `interruptible` takes Ctrl-C over.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell sets it for a script's background jobs
        signal.signal(signal.SIGINT, lambda *_: os._exit(KILLED))
    if wants_huge_pages():
        _restart({TUNABLES: HUGE_PAGES})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by `_restart`


def wants_huge_pages() -> bool:
    """Returns whether to start again: on glibc, unless the user has tunables of their own, which may ask for less.

    Not where JAX is loaded, for then another program runs the command inside its own process, nor under a debugger, which
    would lose the process.
    """
    alone = "jax" not in sys.modules and sys.gettrace() is None
    return alone and TUNABLES not in os.environ and platform.libc_ver()[0] == "glibc"


def _restart(environment: dict[str, str]) -> None:
    """Replaces this process by the same command line with additions to its environment; returns only where that fails.

    The process keeps its number, its open files and its ignored signals. A Ctrl-C in between waits for `start`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        os.execve(sys.executable, sys.orig_argv, os.environ | environment)
    except OSError:  # no room for another program just now: the command runs without
        return
