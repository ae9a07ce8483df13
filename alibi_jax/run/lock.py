"""A folder is held by one running process: a lock of the kernel's that ends with it."""

import contextlib
import datetime
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from typing import BinaryIO

import jax

from alibi_jax.errors import ConfigError, HeldError
from alibi_jax.storage import NO_LOCKS, Location, in_bucket

LONGEST_NOTE = 200  # characters shown of what the lock's holder wrote

logger = logging.getLogger("alibi_jax")


@contextlib.contextmanager
def writing(workdir: Location, name: str = "workdir") -> Iterator[None]:
    """Raises an OSError of the block as a ConfigError that names the folder and the option that chose it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{name}: got {workdir}, which cannot be written ({error.strerror or error}), expected a writable folder. "
            f"Choose another --{name} or free the disk."
        ) from error


def _take(file: BinaryIO, workdir: Location, name: str, work: str) -> bool:
    """Locks the file for this process; returns False where the file system has no locks; HeldError if another one holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read(LONGEST_NOTE).decode(errors="replace") or "it has just begun"
        raise HeldError(
            f"{name}: got {workdir}, in which another {work} is at work ({holder}), expected a "
            f"folder of which it is the only {work}. Wait for that one, stop it, or choose another --{name}."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def only_run(workdir: Location, name: str = "workdir", work: str = "run") -> Iterator[None]:
    """Creates a folder and holds it during the block; HeldError, which names the holder, if another process does.

    The lock is the kernel's (flock on workdir/lock, taken by the first host): it ends with the process however that
    ends, and the file stays behind without meaning. Machines that share a folder over NFS see each other's. A bucket
    has no such lock: there the log says so, and the user has to start one run per folder.
    name: the option that chose the folder. work: what is done there, such as an evaluation in its folder of results.
    """
    if jax.process_index() != 0:
        yield
        return
    with contextlib.ExitStack() as held:
        locked = False
        if not in_bucket(workdir):
            with writing(workdir, name):
                workdir.mkdir(parents=True, exist_ok=True)
                file = held.enter_context((workdir / "lock").open("a+b", buffering=0))
                locked = _take(file, workdir, name, work)
        if not locked:
            logger.info(
                "%s: %s has no locks, so a second %s in it would not be seen: start one only", name, workdir, work
            )
            yield
            return
        with writing(workdir, name):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            file.truncate(0)
            file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {now}".encode())
        yield
