"""The files of a text, and whether they are still what they were when a corpus was prepared from it.

A file counts as unchanged where its path, size and times are the same. Where only its path or times differ, its sha256
decides, so that a copied, moved or touched file is the same text, and an edited one never is.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from alibi_jax.config import DataConfig
from alibi_jax.data.facts import broken, has_kinds, read_facts, write_facts
from alibi_jax.data.layout import FORMAT
from alibi_jax.data.sources import SOURCES
from alibi_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class TextFile:
    """One file of a text as it was when it was looked at."""

    name: str  # <split or source>/<name below its folder>; names decide splits and order
    path: str  # absolute
    size: int  # bytes
    modified: int  # nanoseconds, when its content was last written
    changed: int  # nanoseconds, when its content, name or permissions were; no program can set it back
    sha256: str = ""  # of its bytes; empty: not computed

    def same_entry(self, other: "TextFile") -> bool:
        """Returns whether path, size and times are the same, which is cheap to ask."""
        return dataclasses.replace(self, sha256=other.sha256) == other


TEXT_KINDS = {field.name: field.type for field in dataclasses.fields(TextFile)}


class Text(NamedTuple):
    """The files of a text, in a fixed order, and the absolute paths that the config names."""

    places: list[str]
    files: list[TextFile]


def places(data: DataConfig) -> list[str]:
    """Returns the absolute paths that a config names; none where it names the text otherwise."""
    values = dataclasses.asdict(data)
    return [os.path.abspath(values[name]) for name in SOURCES[data.source].paths if values[name]]


def read_text(data: DataConfig) -> Text:
    """Returns the configured text's files as they are now, their content not read. DataError where they are not there."""
    return Text(places(data), [_look(name, path) for name, path in SOURCES[data.source].files(data)])


def keep_text(folder: Path, text: Text) -> Text:
    """Writes folder/text.json: the text's files with the sha256 of each. Returns the text with these."""
    files = [dataclasses.replace(file, sha256=_sha256(file.path)) for file in text.files]
    entries = [dataclasses.asdict(file) for file in files]
    write_facts(folder / "text.json", {"format": FORMAT, "places": text.places, "files": entries})
    return Text(text.places, files)


def copies(text: Text) -> list[tuple[str, str]]:
    """Returns (path, path) of each training file and of one with the same content that is held out by a path of its own."""
    held_out = {file.sha256: file.path for file in text.files if file.name.startswith(("valid/", "test/"))}
    train = (file for file in text.files if file.name.startswith("train/"))
    return [(file.path, held_out[file.sha256]) for file in train if file.sha256 in held_out]


def kept_text(folder: Path) -> Text:
    """Returns the text that a corpus was prepared from, as folder/text.json has it. DataError where it was changed since."""
    facts = read_facts(folder / "text.json", FORMAT)
    named = facts.get("places")
    files = facts.get("files")
    lists = isinstance(named, list) and isinstance(files, list)
    if not lists or not all(has_kinds(file, TEXT_KINDS) for file in files):
        raise broken(folder / "text.json", "facts without the files of a text", "their paths, sizes and times")
    return Text(named, [TextFile(**file) for file in files])


def same_entries(then: Text, now: Text) -> bool:
    """Returns whether nothing was added, removed, renamed, moved, edited or touched."""
    return len(then.files) == len(now.files) and all(map(TextFile.same_entry, then.files, now.files))


def difference(then: Text, now: Text) -> str:
    """Returns, for a message, how a text's content differs; empty where it does not. Reads files whose path or times differ."""
    before = {file.name: file for file in then.files}
    after = {file.name: file for file in now.files}
    for names, what in ((before.keys() - after.keys(), "is gone"), (after.keys() - before.keys(), "is new")):
        if names:
            return f"{min(names)} {what}" + (f", and {len(names) - 1} more" if len(names) > 1 else "")
    for name, file in after.items():
        if file.size != before[name].size:
            return f"{file.path} has {file.size:,} bytes in place of {before[name].size:,}"
    for name, file in after.items():
        if not file.same_entry(before[name]) and _sha256(file.path) != before[name].sha256:
            return f"{file.path} has other content"
    return ""


def _look(name: str, path: Path) -> TextFile:
    try:
        facts = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return TextFile(name, os.path.abspath(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{path}: got {error.strerror}, expected a readable file. Check its path and permissions.")
