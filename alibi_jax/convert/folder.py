"""A folder that appears whole: written aside, beside where it will be, and renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from alibi_jax.errors import ConfigError, require
from alibi_jax.run.checkpoint import check_path
from alibi_jax.run.lock import only_run, writing
from alibi_jax.storage import in_bucket, locate


def new_folder(path: str | os.PathLike, option: str) -> Path:
    """Returns the folder that an option names, absolute; ConfigError unless it is new or empty, and on a disk."""
    folder = locate(path)
    where = "a folder on a disk: it is written aside and renamed, which a bucket cannot do"
    require(not in_bucket(folder), option, folder, where, "Write into a folder, then copy it.")
    folder = folder.resolve()
    check_path(folder)
    with writing(folder, option):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    require(not taken, option, f"{folder}, which is there", "a new or an empty folder", f"Choose another --{option}.")
    return folder


@contextlib.contextmanager
def written_aside(folder: Path, option: str, work: str) -> Iterator[Path]:
    """Yields a hidden folder beside `folder`, which becomes it at the end, and is removed where the block raises.

    option: the one that names the folder. work: such as "import"; what a killed one left is removed.
    """
    aside = folder.with_name(f".{folder.name}.{work}")
    parents = [parent for parent in folder.parents if not parent.exists()]
    with contextlib.ExitStack() as last:
        for parent in reversed(parents):
            last.callback(_remove_empty, parent)
        try:
            last.enter_context(only_run(aside, option, work))
        except ConfigError:  # the disk has no room for a lock
            shutil.rmtree(aside, ignore_errors=True)
            raise
        last.callback(shutil.rmtree, aside, ignore_errors=True)
        for left in aside.iterdir():
            if left.name != "lock":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield aside
        with writing(folder, option):
            (aside / "lock").unlink(missing_ok=True)
            aside.rename(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
