"""The calls of an experiment, one after the other or several at once, each in a process of one core."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import jax

from alibi_jax.errors import Interrupted, require
from alibi_jax.run.command import run_command

Call = tuple[Any, ...]  # the arguments; the last one names it


class Place(NamedTuple):
    """The core that a process has to itself, and its call."""

    core: int
    call: Call


def _alone(core: int, function: Callable[..., None], call: Call) -> None:
    """Runs a call on one core and ends the process; errors are printed and become its exit status, as on the command line."""
    os.sched_setaffinity(0, {core})  # before JAX asks how many there are
    sys.exit(run_command(lambda: lambda: function(*call) or f"done: {call[-1]}"))


@contextlib.contextmanager
def _processes() -> Iterator[dict[BaseProcess, Place]]:
    """Yields an empty dict of running processes; whatever ends the block asks those in it to save and stop, and waits."""
    running: dict[BaseProcess, Place] = {}
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(Interrupted.status))
    try:
        yield running
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
        signal.signal(signal.SIGTERM, previous)


def _cores(jobs: int) -> list[int]:
    """Returns the numbers of the cores; ConfigError where they do not suffice for `jobs` processes."""
    require(jobs >= 1, "jobs", jobs, "1 or more", "Raise it.")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    where = f"{jobs} on {jax.default_backend()} with {len(cores)} cores to choose"
    expected = "1 with an accelerator or without Linux, else at most as many as there are cores"
    require(
        jobs == 1 or (jax.default_backend() == "cpu" and jobs <= len(cores)), "jobs", where, expected, "Lower --jobs."
    )
    return cores


def spread(
    function: Callable[..., None], calls: Sequence[Call], jobs: int, finished: Callable[[Call], None] = lambda _: None
) -> None:
    """Runs function(*call) of every call, `jobs` of them at once; finished(call) is called here after each.

    One job is run in this process. Several have a process of one core each: the first that fails stops all others, which
    save first, and ends the program with its exit status.
    """
    cores = _cores(jobs)
    if jobs == 1:
        for call in calls:
            function(*call)
            finished(call)
        return
    waiting = list(calls)
    spawn = multiprocessing.get_context("spawn")
    with _processes() as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                core = next(core for core in cores if core not in {place.core for place in running.values()})
                place = Place(core, waiting.pop(0))
                process = spawn.Process(target=_alone, args=(core, function, place.call))
                process.start()
                running[process] = place
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                place = running.pop(process)
                if process.exitcode != 0:
                    sys.exit(process.exitcode)
                finished(place.call)
