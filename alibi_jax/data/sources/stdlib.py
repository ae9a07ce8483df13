"""The Python standard library's own source code: text that is on every machine."""

import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document, text_document
from alibi_jax.data.sources.base import Source
from alibi_jax.data.splits import HELD_OUT_EVERY, Split, split_names
from alibi_jax.errors import DataError

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# What differs from install to install: generated files, and packages that Linux distributions ship separately.
OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "turtle.py"}
VARIES = ("_sysconfigdata", "config-", "sitecustomize.", "usercustomize.")


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _names(root: Path) -> list[str]:
    """Returns the relative posix paths of the sources, sorted, without empty files and whatever differs by install."""
    names = []
    for folder, subfolders, entries in os.walk(root, onerror=_refuse):
        subfolders[:] = filter(_is_kept, subfolders)  # does not even look into site-packages
        paths = [Path(folder, entry) for entry in entries if entry.endswith(".py") and _is_kept(entry)]
        names += [path.relative_to(root).as_posix() for path in paths if path.is_file() and path.stat().st_size > 0]
    return sorted(names)


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: got {error.strerror}, expected a folder that can be read. Check its permissions."
    )


def _is_kept(name: str) -> bool:
    return name not in LEFT_OUT | OPTIONAL and not name.startswith(VARIES)


def _files(data: DataConfig) -> list[tuple[str, Path]]:
    root = _root()
    return [(f"stdlib/{name}", root / name) for name in _names(root)]


def _documents(data: DataConfig, split: Split) -> Iterator[Document]:
    """Yields one document a file, which is read whole; files that are no text by their own coding line are left out."""
    root = _root()
    names = _names(root)
    if len(names) < HELD_OUT_EVERY:
        raise DataError(
            f"data.source: got 'stdlib' with {len(names)} source files in {root}, expected hundreds. "
            "This Python ships without its sources; use --data.source files --data.train-path PATH."
        )
    splits = split_names(names)
    for name in names:
        if splits[name] == split:
            try:
                with tokenize.open(root / name) as file:
                    text = file.read()
            except (SyntaxError, UnicodeDecodeError):
                continue  # such files are there to test the parser
            yield text_document(str(root / name), text)


def _describe(data: DataConfig) -> str:
    return f"standard library of Python {platform.python_version()}"


STDLIB = Source(_documents, _files, _describe)
