"""A run's folder: it belongs to one config, one text, and one running process."""

import contextlib
import datetime
import fcntl
import logging
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import IO

import fsspec
import jax

from alibi_jax.config import Config, differing_fields, load_config, to_json
from alibi_jax.errors import ConfigError, HeldError
from alibi_jax.run.origin import Origin, check_origin, read_origin
from alibi_jax.storage import NO_LOCKS, Location, in_bucket, write_atomically

MAY_DIFFER = ("mesh", "evaluate")  # sections of the config that a run may change when it goes on
COMMITTED = "commit_success.txt"  # what Orbax puts last into a checkpoint in a bucket; on a disk it renames the folder
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint's folder on a disk until it is whole
LONGEST_NOTE = 200  # characters shown of what the lock's holder wrote
SHARED_SECONDS = 10.0  # until a new file of one host is to be seen on the others; some file systems remember listings


logger = logging.getLogger("alibi_jax")


@contextlib.contextmanager
def _writing(workdir: Location, name: str = "workdir") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{name}: got {workdir}, which cannot be written ({error.strerror or error}), expected a writable folder. "
            f"Choose another --{name} or free the disk."
        ) from error


def _take(file: IO[str], workdir: Location, name: str, work: str) -> bool:
    """Locks the file for this process; False where the file system has no locks, HeldError if another one holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read(LONGEST_NOTE) or "it has just begun"
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
    """Makes the run's folder and holds it for this run alone: HeldError, saying who, if another process does.

    The lock is the kernel's (flock on workdir/lock, taken by the first host): it ends with the process however that
    ends, and the file stays behind without meaning. Machines that share a folder over NFS see each other's. A bucket
    has no such lock: there a line of the log says that nobody watches, and one run a folder is the user's care.
    name: the option that chose the folder. work: what is done there, an evaluation in its folder of results.
    """
    if jax.process_index() != 0:
        yield
        return
    with contextlib.ExitStack() as held:
        locked = False
        if not in_bucket(workdir):
            with _writing(workdir, name):
                workdir.mkdir(parents=True, exist_ok=True)
                file = held.enter_context((workdir / "lock").open("a+", errors="replace"))
                locked = _take(file, workdir, name, work)
        if not locked:
            logger.info(
                "%s: %s has no locks, so a second %s in it would not be seen: start one only", name, workdir, work
            )
            yield
            return
        with _writing(workdir, name):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            file.truncate(0)
            file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {now}")
            file.flush()
        yield


def new_mark(workdir: Location) -> str:
    """A name no file has had, and the folder as this host calls it."""
    return f".hosts-{secrets.token_hex(8)} {workdir}"


def check_shared(workdir: Location, mark: str) -> None:
    """ConfigError where this host's folder is not the first host's, which leaves an empty file there that the others look for.

    mark: the first host's `new_mark`. The paths may differ, and be mounted elsewhere. A name that nobody has looked for is
    one that no file system remembers as missing.
    """
    name, _, called = mark.partition(" ")
    if jax.process_index() == 0:
        with _writing(workdir):
            for old in workdir.glob(".hosts-*"):
                old.unlink(missing_ok=True)
            (workdir / name).write_bytes(b"")
        return
    deadline = time.monotonic() + SHARED_SECONDS
    while not (workdir / name).exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"workdir: got {workdir} on host {jax.process_index()}, which is not the folder that the first host calls "
                f"{called}: what that one writes is not to be seen here. Expected one folder for all hosts, on a file system "
                "or in a bucket that they share. Correct --workdir, or mount it."
            )
        time.sleep(0.2)


def open_workdir(workdir: Location, config: Config, fingerprint: str) -> None:
    """Makes the run's folder and writes config.json and corpus.txt, or checks those of a run that has saved something.

    fingerprint: of the corpus. ConfigError where the folder cannot be written, holds a run of another config (the fields
    are named) or of another text; sections in MAY_DIFFER may change, for a checkpoint restores onto any mesh.
    """
    texts = {"config.json": to_json(config), "corpus.txt": fingerprint}
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if not in_bucket(workdir):
            with tempfile.TemporaryFile(dir=workdir):
                pass
        begun = has_begun(workdir)
        missing = [name for name in texts if not (begun and (workdir / name).exists())]
    if begun and missing:
        _check_by_checkpoint(workdir, missing, Origin(config, fingerprint))
    with _writing(workdir):
        for name in missing:
            write_atomically(workdir / name, texts[name])
    differing = differing_fields(load_config(workdir), config, MAY_DIFFER)
    if differing:
        raise ConfigError(
            f"workdir: got a config that differs from the run in {workdir}: {'; '.join(differing)}; expected the same. "
            "Train into another --workdir, or repeat the run's own config."
        )
    check_corpus(workdir, fingerprint)


def trained_on(workdir: Location) -> str:
    """The fingerprint of the corpus that the run in a folder was begun with; empty where nothing has been saved."""
    return _fingerprint(workdir) if has_begun(workdir) else ""


def _fingerprint(workdir: Location) -> str:
    path = workdir / "corpus.txt"
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


def has_begun(workdir: Location) -> bool:
    """Whether anything has been saved in a run's folder. Until then it takes any config and text.

    What a first save left unfinished, for it was killed or the disk was full, is nothing: Orbax removes it. In a bucket
    it does not say so by its name, and counts.
    """
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(UNFINISHED not in path.name for path in folder.iterdir())


def _check_by_checkpoint(workdir: Location, missing: list[str], own: Origin) -> None:
    """ConfigError unless the last checkpoint says that it is of this run, so that the files that are missing can be written
    again."""
    steps, kept = saved_steps(workdir), None
    if steps:
        place = workdir / "checkpoints" / str(steps[-1])
        with contextlib.suppress(OSError, ValueError, RecursionError):  # damaged: it says nothing
            kept = read_origin(place)
    if kept is None:
        raise ConfigError(
            f"workdir: got checkpoints in {workdir} without {' and '.join(missing)}, which say of which run they are, expected "
            "both files. Put them back, remove the folder checkpoints to begin anew, or choose another --workdir."
        )
    check_origin(place, kept[1], own)
    logger.info("workdir: in %s %s: written again, as the checkpoint says", workdir, " and ".join(missing))


def check_corpus(workdir: Location, fingerprint: str) -> None:
    """ConfigError unless the corpus is, to the byte, the one that the run in `workdir` was begun with."""
    trained = _fingerprint(workdir) or "none"
    if trained != fingerprint:
        raise ConfigError(
            f"corpus: got text and tokenizer of fingerprint {fingerprint[:12]}, expected {trained[:12]}, which {workdir} was "
            "trained on. The text was changed, or prepared on another machine: bring the trained one back, or train anew."
        )


def saved_steps(workdir: Location) -> list[int]:
    """Steps with a whole checkpoint in workdir/checkpoints, in order, as they are now: no listing is remembered."""
    folder = workdir / "checkpoints"
    if in_bucket(folder):
        store, path = fsspec.core.url_to_fs(str(folder), use_listings_cache=False)
        names = [found.split("/")[-2] for found in store.glob(f"{path}/*/{COMMITTED}")]
    else:
        names = [found.name for found in folder.glob("*")]
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,18}", name))
