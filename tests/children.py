"""Processes for tests that kill them."""

import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import jax

from alibi_jax.run.parse import main
from flags import QUICK

MAIN = str(Path(__file__).parents[1] / "main.py")
LIMIT = 120  # seconds in which a child must have got somewhere
# Children fork from a process that has imported everything and started nothing: they begin in a tenth of a second.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["alibi_jax.run.parse"])


def be_quick(folder: Path, devices: int = 1) -> None:
    """So many devices, and what another child has compiled is not compiled again."""
    cache, flags = str(folder / "compiled"), f"{QUICK} --xla_force_host_platform_device_count={devices}"
    os.environ |= {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": cache}  # of children of its own too
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    logging.getLogger("absl").setLevel(logging.ERROR)


def run_command(arguments: list[str], output: Path, devices: int = 1) -> None:
    """What it prints is in a file."""
    be_quick(output.parent, devices)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for printed in (1, 2):
        os.dup2(file, printed)
    sys.exit(main(arguments))


def start(function, *arguments):
    child = CHILDREN.Process(
        target=function, args=arguments, daemon=True
    )  # ends with the tests, whatever becomes of them
    child.start()
    return child


def wait_for(condition) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"nothing came in {LIMIT} seconds"
        time.sleep(0.002)


def exit_status(child) -> int | None:
    child.join(LIMIT)
    return child.exitcode


def latest(workdir: Path) -> int:
    return max([0, *(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())])
