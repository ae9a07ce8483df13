"""A run's folder: it belongs to one config, one text, and one running process."""

import contextlib
import logging
import re
import secrets
import tempfile
import time
from typing import Any

import fsspec
import jax

from alibi_jax.config import Config, differing_fields, load_config, to_json
from alibi_jax.config.recipes import parse_json
from alibi_jax.errors import ConfigError, require
from alibi_jax.run.invocation import command_line
from alibi_jax.run.lock import writing
from alibi_jax.run.origin import MAY_CHANGE, Origin, check_origin, read_origin
from alibi_jax.storage import Location, in_bucket, write_atomically

COMMITTED = "commit_success.txt"  # what Orbax puts last into a checkpoint in a bucket; on a disk it renames the folder
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint's folder on a disk until it is whole
IMPORTED = "imported.json"  # in a folder that `import` wrote: where the model came from
SHARED_SECONDS = 10.0  # until a new file of one host is to be seen on the others; some file systems remember listings


logger = logging.getLogger("alibi_jax")


def new_mark(workdir: Location) -> str:
    """Returns a name that no file has had, and the folder's path on this host."""
    return f".hosts-{secrets.token_hex(8)} {workdir}"


def check_shared(workdir: Location, mark: str) -> None:
    """Raises ConfigError where this host's folder is not the first host's, which creates a file that the others look for.

    mark: the first host's `new_mark`. The paths may differ, and be mounted elsewhere. A name that nobody has looked for is
    one that no file system remembers as missing.
    """
    name, _, called = mark.partition(" ")
    if jax.process_index() == 0:
        with writing(workdir):
            for old in workdir.glob(".hosts-*"):
                old.unlink(missing_ok=True)
            (workdir / name).write_bytes(b"")
        return
    deadline = time.monotonic() + SHARED_SECONDS
    while not (workdir / name).exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"workdir: got {workdir} on host {jax.process_index()}, which is not the folder that the first host calls "
                f"{called}: files of that host do not appear here. Expected one folder for all hosts, on a file system "
                "or in a bucket that they share. Correct --workdir, or mount it."
            )
        time.sleep(0.2)


def open_workdir(workdir: Location, config: Config, fingerprint: str) -> None:
    """Creates the run's folder with config.json and corpus.txt, or checks those of a run that has saved something.

    fingerprint: of the corpus. ConfigError where the folder cannot be written, or holds a run of another config, whose
    fields are named, or of another text. What MAY_CHANGE names may differ: a checkpoint restores onto any mesh.
    """
    texts = {"config.json": to_json(config), "corpus.txt": fingerprint}
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        if not in_bucket(workdir):
            with tempfile.TemporaryFile(dir=workdir):
                pass
        begun = has_begun(workdir)
        missing = [name for name in texts if not (begun and (workdir / name).exists())]
    if begun and missing:
        _check_by_checkpoint(workdir, missing, Origin(config, fingerprint))
    with writing(workdir):
        for name in missing:
            write_atomically(workdir / name, texts[name])
    differing = differing_fields(load_config(workdir), config, MAY_CHANGE)
    if differing:
        raise ConfigError(
            f"workdir: got a config that differs from the run in {workdir}: {'; '.join(differing)}; expected the same. "
            "Train into another --workdir, or repeat the run's own config."
        )
    check_corpus(workdir, fingerprint)


def check_not_imported(workdir: Location) -> None:
    """Raises ConfigError for the folder of an imported model, which is no run that could go on."""
    if (workdir / IMPORTED).exists():
        raise ConfigError(
            f"workdir: got {workdir}, the folder of an imported model, expected a new folder or a run to go on with. Start a "
            f"new run from its parameters: {command_line('train', str(workdir), '--init-from', str(workdir))} --workdir NEW."
        )


def imported_from(workdir: Location) -> dict[str, Any]:
    """Returns what `import` wrote of where a folder's model came from; empty for the folder of a trained run.

    ConfigError where it cannot be read.
    """
    path = workdir / IMPORTED
    if not path.exists():
        return {}
    facts = parse_json(path.read_bytes().decode("utf-8", "replace"))
    require(
        isinstance(facts, dict) and facts != {},
        str(path),
        "other JSON",
        "what `import` wrote",
        "Import the model again.",
    )
    return facts


def trained_on(workdir: Location) -> str:
    """Returns the fingerprint of the corpus that a run started with; empty where it has saved nothing."""
    return _fingerprint(workdir) if has_begun(workdir) else ""


def _fingerprint(workdir: Location) -> str:
    path = workdir / "corpus.txt"
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


def has_begun(workdir: Location) -> bool:
    """Returns whether anything has been saved in a run's folder; until then it takes any config and text.

    An unfinished first save, killed or on a full disk, does not count: Orbax removes it. In a bucket its name does not
    show that it is unfinished, and it counts.
    """
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(UNFINISHED not in path.name for path in folder.iterdir())


def _check_by_checkpoint(workdir: Location, missing: list[str], own: Origin) -> None:
    """Raises ConfigError unless the last checkpoint belongs to this run, so that the missing files can be written again."""
    steps, kept = saved_steps(workdir), None
    if steps:
        place = workdir / "checkpoints" / str(steps[-1])
        with contextlib.suppress(OSError, ValueError, RecursionError):  # damaged: its run is not known
            kept = read_origin(place)
    if kept is None:
        raise ConfigError(
            f"workdir: got checkpoints in {workdir} without {' and '.join(missing)}, which name the run, expected both files. "
            "Restore them, remove the folder checkpoints to begin anew, or choose another --workdir."
        )
    check_origin(place, kept[1], own)
    logger.info("workdir: in %s %s: written again, as the checkpoint says", workdir, " and ".join(missing))


def check_corpus(workdir: Location, fingerprint: str) -> None:
    """Raises ConfigError unless the corpus is, to the byte, the one that the run in `workdir` was trained on."""
    trained = _fingerprint(workdir) or "none"
    if trained != fingerprint:
        raise ConfigError(
            f"corpus: got text and tokenizer of fingerprint {fingerprint[:12]}, expected {trained[:12]}, which {workdir} was "
            "trained on. The text was changed, is another by a --data option, or was prepared on another machine: bring the "
            "trained one back, or train anew."
        )


def saved_steps(workdir: Location) -> list[int]:
    """Returns the steps with a whole checkpoint in workdir/checkpoints, sorted, from a fresh listing."""
    folder = workdir / "checkpoints"
    if in_bucket(folder):
        store, path = fsspec.core.url_to_fs(str(folder), use_listings_cache=False)
        names = [marker.split("/")[-2] for marker in store.glob(f"{path}/*/{COMMITTED}")]
    else:
        names = [entry.name for entry in folder.glob("*")]
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{1,18}", name))
