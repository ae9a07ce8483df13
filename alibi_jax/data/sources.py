"""Where text comes from: `documents(data, split)` yields the documents of one split, one at a time.

"stdlib" is the Python standard library's own source, on every machine; "files" is the user's text; "tfds" is a data
set prepared by tensorflow-datasets (TensorFlow itself is never imported); WikiText is prepared here (wikitext.py).
"""

import functools
import glob
import hashlib
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from alibi_jax.config import DataConfig
from alibi_jax.data.document import DataError, Document, file_document, text_document

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
HELD_OUT_EVERY = 20  # one document (or line) in so many is held out for valid, and one for test
NEAR_CHARACTERS = 500  # a document is cut at a line's end that is so near, or nearer than a held-out split is long
STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# What differs from install to install: generated files, and packages that Linux distributions ship separately.
STDLIB_OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "turtle.py"}
STDLIB_VARIES = ("_sysconfigdata", "config-", "sitecustomize.", "usercustomize.")


def documents(data: DataConfig, split: Split) -> Iterator[Document]:
    """The documents of one split of the configured source, always in the same order; none is held whole in memory.

    Only an example of a tfds data set and a file of the standard library are read at once. Raises DataError for a source that
    is not there, and while a document is read for one that is empty, not UTF-8 or otherwise unreadable.
    """
    return SOURCES[data.source](data, split)


def describe(data: DataConfig) -> str:
    """One line that says where the text came from, kept with a prepared corpus."""
    if data.source == "stdlib":
        return f"standard library of Python {platform.python_version()}"
    if data.source == "files":
        return f"files {data.train_path} {data.valid_path} {data.test_path}".rstrip()
    return f"tfds {data.tfds_name} {' '.join(data.tfds_splits)}"


def split_names(names: Sequence[str]) -> dict[str, Split]:
    """Each document's split, by the sha256 of its name: the lowest twentieth is test, the next valid, the rest train.

    With 20 names or more no split is empty; the same names give the same splits on every machine.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    held_out = len(ranked) // HELD_OUT_EVERY
    return {
        name: "test" if rank < held_out else "valid" if rank < 2 * held_out else "train"
        for rank, name in enumerate(ranked)
    }


def _stdlib_files(root: Path) -> list[str]:
    """Relative posix paths of the sources, sorted; empty files and whatever differs by install are left out."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = filter(_kept, subfolders)  # does not even look into site-packages
        paths = [Path(folder, name) for name in names if name.endswith(".py") and _kept(name)]
        found += [path.relative_to(root).as_posix() for path in paths if path.stat().st_size > 0]
    return sorted(found)


def _kept(name: str) -> bool:
    return name not in STDLIB_LEFT_OUT | STDLIB_OPTIONAL and not name.startswith(STDLIB_VARIES)


def _stdlib(data: DataConfig, split: Split) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    names = _stdlib_files(root)
    if len(names) < HELD_OUT_EVERY:
        raise DataError(
            f"data.source: got 'stdlib' with {len(names)} source files in {root}, expected hundreds. "
            "This Python ships without its sources; use --data.source files --data.train_path PATH."
        )
    splits = split_names(names)
    for name in names:
        if splits[name] == split:
            try:
                with tokenize.open(root / name) as file:
                    text = file.read()
            except (SyntaxError, UnicodeDecodeError):
                continue  # not text by its own coding line: such files are there to test the parser
            yield text_document(str(root / name), text)


def _matches(path: str) -> list[tuple[str, Path]]:
    """(relative posix name, path) of every file that `path` (a file, folder or glob) stands for, sorted by name."""
    root = Path(path)
    if root.is_file():
        return [(root.name, root)]
    if not root.is_dir():
        plain = next((i for i, part in enumerate(root.parts) if glob.has_magic(part)), len(root.parts))
        root = Path(*root.parts[:plain])
        found = [Path(match) for match in glob.glob(path, recursive=True)]
    else:
        found = list(root.rglob("*"))
    names = {file.relative_to(root).as_posix(): file for file in found if file.is_file()}
    return sorted((name, file) for name, file in names.items() if not _hidden(name))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _cut(document: Document, goal: int, near: int) -> int:
    """Where to cut before character `goal`: after the last line or, where no line ends near, word; else there.

    A line counts as near when it ends at most `near` characters before the goal.
    """
    line = word = offset = 0
    for piece in document:
        if offset >= goal:
            break
        before = piece[: goal - offset]
        line = offset + before.rindex("\n") + 1 if "\n" in before else line
        word = offset + before.rindex(" ") + 1 if " " in before else word
        offset += len(piece)
    return next((place for place in (line, word) if goal - place <= near), goal)


@functools.lru_cache(maxsize=3 * HELD_OUT_EVERY)
def _cuts(file: Path, size: int, changed: int, held_out: int) -> list[int]:
    """Where one file is cut into training text and `held_out` twentieths after it, in characters, ends included.

    Kept while the file has this size and time of change: finding it reads the file.
    """
    document = file_document(file)
    length = sum(map(len, document))
    near = max(NEAR_CHARACTERS, length // HELD_OUT_EVERY)
    goals = [round(length * (1 - i / HELD_OUT_EVERY)) for i in range(held_out, 0, -1)]
    return [0, *(_cut(document, goal, near) for goal in goals), length]


def _cut_file(file: Path, split: Split, held_out: Sequence[str]) -> Document | None:
    """The part of one file that belongs to `split`: the held-out twentieths stand at its end, in order."""
    status = file.stat()
    cuts = _cuts(file, status.st_size, status.st_mtime_ns, len(held_out))
    place = ["train", *held_out].index(split)
    start, stop = cuts[place : place + 2]
    return file_document(file).between(start, stop) if start < stop else None


def _files(data: DataConfig, split: Split) -> Iterator[Document]:
    """One document a file; hidden files and folders are passed over.

    A held-out split without a path of its own is taken from the training text: a twentieth of the documents
    (`split_names`), or of every document's lines where there are fewer than 20. One with a path takes nothing from it.
    """
    paths = {"train": data.train_path, "valid": data.valid_path, "test": data.test_path}
    path = paths[split] or data.train_path
    found = _matches(path)
    if not found:
        raise DataError(
            f"data.{split if paths[split] else 'train'}_path: got {path!r}, which matches no file, expected a file, "
            "a folder or a glob of UTF-8 text. Check the path."
        )
    if split != "train" and paths[split]:
        yield from (file_document(file) for _, file in found)
    elif len(found) < HELD_OUT_EVERY:
        held_out = [name for name in ("valid", "test") if not paths[name]]
        yield from filter(None, (_cut_file(file, split, held_out) for _, file in found))
    else:
        splits = split_names([name for name, _ in found])
        for name, file in found:
            belongs = splits[name] if not paths[splits[name]] else "train"
            if belongs == split:
                yield file_document(file)


def _tfds(data: DataConfig, split: Split) -> Iterator[Document]:
    import tensorflow_datasets as tfds  # half a second, and only this source needs it

    if data.tfds_name.partition("/")[0] == "wikitext":
        from alibi_jax.data import wikitext  # imports tensorflow_datasets too

        wikitext.prepare(data)
    elif data.tfds_manual_dir:
        raise DataError(
            f"data.tfds_manual_dir: got {data.tfds_manual_dir!r} with data.tfds_name {data.tfds_name!r}, expected "
            "wikitext/wikitext-103 or wikitext/wikitext-2: others are prepared beforehand. Leave it out."
        )
    part = data.tfds_splits[SPLITS.index(split)]
    folder = data.tfds_dir or "the library's own folder"
    try:
        examples = tfds.data_source(data.tfds_name, split=part, data_dir=data.tfds_dir or None, download=False)
    except (ValueError, AssertionError, NotImplementedError, OSError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise DataError(
            f"data.tfds_name: got {data.tfds_name!r}, split {part!r} in {folder} ({reason}), expected a data set "
            "prepared for random access. Prepare it once, on a machine with TensorFlow if its builder needs it: "
            f"tfds build {data.tfds_name} --file_format=array_record --data_dir=D. Then pass --data.tfds_dir D."
        ) from error
    features = sorted(examples.dataset_info.features)
    if data.tfds_text not in features:
        raise DataError(
            f"data.tfds_text: got {data.tfds_text!r}, expected one of {', '.join(features)}. "
            "Pass --data.tfds_text NAME."
        )
    for number, example in enumerate(examples):
        where = f"{data.tfds_name}, split {part}, example {number}, feature {data.tfds_text}"
        yield text_document(where, _decode_example(example[data.tfds_text], where))


def _decode_example(value: Any, where: str) -> str:
    if not isinstance(value, bytes):
        raise DataError(f"{where}: got {type(value).__name__}, expected text. Choose another --data.tfds_text.")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: got bytes that are not UTF-8 at offset {error.start}, expected UTF-8 text. Prepare it again."
        ) from error


SOURCES = {"stdlib": _stdlib, "files": _files, "tfds": _tfds}
