"""The files of text that a path stands for: one rule for a file, a folder and a glob."""

import glob
import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, get_args

from alibi_jax.config.sections import SourceName, TokenizerName
from alibi_jax.data.document import warn_once
from alibi_jax.errors import DataError

Pattern = tuple[str, ...]  # one a folder level; "**" stands for any number of levels
EVERYTHING = frozenset({("**",)})
# how the folder of a prepared corpus is named
CORPUS = (
    rf"(?:{'|'.join(get_args(SourceName))})-(?:{'|'.join(get_args(TokenizerName))})-[0-9a-f]{{12}}(?:-[0-9a-f]{{12}})?"
)
NO_TEXT = re.compile(rf"\..*|{CORPUS}", re.DOTALL)  # names that are left out


class _Entry(NamedTuple):
    """A file or folder below the root, with what is left of the patterns for what is below it."""

    name: str  # posix, relative to the root
    path: Path
    status: os.stat_result  # of what a link leads to
    is_text: bool  # whether a file of this name is asked for
    below: frozenset[Pattern]


def identity(status: os.stat_result) -> tuple[int, int]:
    """Returns (device, inode), the same for every name of one file or folder: links of both kinds, relative, absolute."""
    return status.st_dev, status.st_ino


def text_files(path: str) -> list[tuple[str, Path]]:
    """Returns (posix name below the folder, path) of every file that `path` (a file, folder or glob) stands for, by name.

    Symbolic links are followed. A file of several names is listed once, by a name without a link where it has one. Names that
    begin with a dot and prepared corpora are left out; so are FIFOs, sockets and devices, with a warning. DataError for a
    folder that cannot be read and a link that leads nowhere. Empty where nothing matches.
    """
    root, pattern = _split_pattern(path)
    status = _status(root)
    if status is None:
        return []
    if not stat.S_ISDIR(status.st_mode):
        return [(root.name, root)] if not pattern and _is_file(root, status) else []
    files = {}
    for entry in _walk(_Entry("", root, status, False, frozenset({pattern} if pattern else EVERYTHING))):
        if entry.is_text and _is_file(entry.path, entry.status):
            name, _ = files.setdefault(identity(entry.status), (entry.name, entry.path))
            if name != entry.name:
                warn_once(f"{entry.path}: the same file as {root / name}, which is read once")
    return sorted(files.values())


def _split_pattern(path: str) -> tuple[Path, Pattern]:
    """Returns the folder in which a glob begins, and the rest; brackets in the name of a file that exists are no pattern."""
    root = Path(path) if os.path.lexists(path) else Path(os.path.expanduser(path))
    parts, plain = root.parts, 0
    while plain < len(parts) and (not glob.has_magic(parts[plain]) or os.path.lexists(Path(*parts[: plain + 1]))):
        plain += 1
    return Path(*parts[:plain]), parts[plain:]


def _status(root: Path) -> os.stat_result | None:
    try:
        return root.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise _unreadable(root, error) from error


def _is_file(path: Path, status: os.stat_result) -> bool:
    if stat.S_ISREG(status.st_mode):
        return True
    if not stat.S_ISDIR(status.st_mode):
        warn_once(f"{path}: a FIFO, socket or device, which is left out: text is read several times, from files")
    return False


def _walk(root: _Entry) -> Iterator[_Entry]:
    """Yields everything below a folder, what is reached without a link first, and a folder once for the same patterns."""
    folders, links, seen = [root], deque(), set()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        if not stat.S_ISDIR(folder.status.st_mode):
            yield folder
        elif folder.below and (identity(folder.status), folder.below) not in seen:
            seen.add((identity(folder.status), folder.below))
            for entry, is_link in _entries(folder):
                (links if is_link else folders).append(entry)


def _entries(folder: _Entry) -> list[tuple[_Entry, bool]]:
    """Returns the entries of a folder that match and may be text, and whether each is a symbolic link."""
    try:
        with os.scandir(folder.path) as entries:
            names = [(entry.name, entry.is_symlink()) for entry in entries if not NO_TEXT.fullmatch(entry.name)]
    except OSError as error:
        raise _unreadable(folder.path, error) from error
    kept = []
    for name, is_link in sorted(names, reverse=True):
        left = _below(folder.below, name)
        if left:
            path = folder.path / name
            try:
                status = path.stat()
            except OSError as error:
                raise _unreadable(path, error) from error
            is_text = () in left or ("**",) in folder.below
            whole = f"{folder.name}/{name}" if folder.name else name
            kept.append((_Entry(whole, path, status, is_text, left - {()}), is_link))
    return kept


def _below(patterns: frozenset[Pattern], name: str) -> frozenset[Pattern]:
    """Returns what is left of the patterns below an entry of this name; () where a pattern ends with it."""
    left = set()
    for pattern in patterns:
        if pattern[0] == "**":
            left |= {pattern} | (_below(frozenset({pattern[1:]}), name) if pattern[1:] else set())
        elif fnmatchcase(name, pattern[0]):
            left.add(pattern[1:])
    return frozenset(left)


def _unreadable(path: Path, error: OSError | ValueError) -> DataError:
    nowhere = os.path.islink(path) and not os.path.exists(path)  # pathlib's raise for names that are too long
    got = "a link that leads nowhere" if nowhere else getattr(error, "strerror", error)
    return DataError(
        f"{path}: got {got}, expected files and folders that can be read. Check its permissions, repair it or remove it."
    )
