"""Folders that appear whole: written aside, synced, renamed. The next process repairs what a killed one left behind."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from alibi_jax.data.paths import CORPUS
from alibi_jax.errors import DataError
from alibi_jax.storage import NO_LOCKS

LOCK = ".lock"
# .<corpus>-<8 hex> is being written; .<corpus>-<8 hex>-old was there before and is being replaced
LEFT = re.compile(rf"\.({CORPUS})-[0-9a-f]{{8}}(-old)?")

logger = logging.getLogger("alibi_jax")


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turns errors of writing (a full disk, permissions, a failing device) into a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        failed = directory if error.filename is None else Path(os.fsdecode(error.filename))
        if not failed.is_relative_to(directory) and not directory.is_relative_to(failed):
            raise  # it was not the writing that failed
        raise DataError(
            f"data.directory: got {str(directory)!r} ({error.strerror or error}), expected a folder that can be written, "
            "with room for the corpus. Free the disk, allow writing there, or pass --data.directory FOLDER."
        ) from error


@contextlib.contextmanager
def preparing(directory: Path) -> Iterator[None]:
    """Makes `directory` and marks it as one in which this process prepares; first repairs what killed processes left.

    All processes that prepare hold a shared lock on directory/.lock (flock, which ends with its process), so one that gets it
    exclusively knows that no folder there is being written. On a file system without locks nothing is ever removed.
    """
    with contextlib.ExitStack() as held:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            lock = _open_lock(directory / LOCK)
            held.callback(os.close, lock)
            if _take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _repair(directory)
            _take(lock, fcntl.LOCK_SH)
        yield


def _open_lock(path: Path) -> int:
    """Returns a descriptor of the lock's file; one for reading where the file belongs to another user of this folder."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        # EBADF: over NFS an exclusive lock needs a file that can be written
        if isinstance(error, BlockingIOError) or error.errno in (*NO_LOCKS, errno.EBADF):
            return False
        raise
    return True


def _repair(directory: Path) -> None:
    """Restores corpora whose replacement was killed half-way, and removes half-written ones."""
    for path in sorted(directory.iterdir()):
        left = LEFT.fullmatch(path.name)
        if not left or path.is_symlink() or not path.is_dir():
            continue
        name, old = left.groups()
        try:
            if old and not (directory / name).exists():
                path.rename(directory / name)
                logger.info("corpus: %s is back, whose replacement was killed", directory / name)
            else:
                shutil.rmtree(path)
                logger.info("corpus: removed %s, which a killed preparation left", path)
        except OSError as error:  # another user's: this preparation does not need it
            logger.warning("corpus: %s, which a killed preparation left, cannot be repaired: %s", path, error.strerror)


@contextlib.contextmanager
def written_aside(directory: Path, name: str) -> Iterator[Path]:
    """Yields a new hidden folder in `directory`, removed at the end unless `move` has renamed it."""
    aside = directory / f".{name}-{secrets.token_hex(4)}"
    try:
        aside.mkdir()
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def move(aside: Path, folder: Path, replace: bool) -> None:
    """Syncs `aside` and renames it to `folder`. A `folder` that is there stays, unless `replace`; a failure loses neither."""
    for path in (*aside.iterdir(), aside):
        _sync(path)
    old = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}-old")
    if replace:
        with contextlib.suppress(FileNotFoundError):  # another process replaces it, too
            folder.rename(old)
    try:
        aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
