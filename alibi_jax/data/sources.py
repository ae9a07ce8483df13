"""Where text comes from: `documents(data, split)` yields the documents of one split, one at a time.

"stdlib" is the Python standard library's own source, on every machine; "files" is the user's text; "tfds" is a data
set prepared by tensorflow-datasets (TensorFlow itself is never imported); WikiText is prepared here (wikitext.py).
"""

import functools
import hashlib
import logging
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from alibi_jax.config import DataConfig
from alibi_jax.data.datasets import dataset_documents
from alibi_jax.data.document import Document, file_document, text_document, warn_once
from alibi_jax.data.paths import identity, text_files
from alibi_jax.errors import DataError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
HELD_OUT_EVERY = 20  # one document (or line) in so many is held out for valid, and one for test
FAR = 4  # a held-out split of so many times its twentieth of the bytes, or so small a part of it, is warned of
NEAR_CHARACTERS = 500  # a document is cut at a line's end that is so near, or nearer than a held-out split is long
STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# What differs from install to install: generated files, and packages that Linux distributions ship separately.
STDLIB_OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "turtle.py"}
STDLIB_VARIES = ("_sysconfigdata", "config-", "sitecustomize.", "usercustomize.")

logger = logging.getLogger("alibi_jax")


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


def stdlib_files(root: Path) -> list[str]:
    """Relative posix paths of the sources, sorted; empty files and whatever differs by install are left out."""
    found = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = filter(_kept, subfolders)  # does not even look into site-packages
        paths = [Path(folder, name) for name in names if name.endswith(".py") and _kept(name)]
        found += [path.relative_to(root).as_posix() for path in paths if path.is_file() and path.stat().st_size > 0]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: got {error.strerror}, expected a folder that can be read. Check its permissions."
    )


def _kept(name: str) -> bool:
    return name not in STDLIB_LEFT_OUT | STDLIB_OPTIONAL and not name.startswith(STDLIB_VARIES)


def _stdlib(data: DataConfig, split: Split) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    names = stdlib_files(root)
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


def tell_sizes(data: DataConfig, num_bytes: dict[Split, int]) -> None:
    """Logs the bytes of each split; a warning where one that is cut from the training text is far from a twentieth."""
    sizes = ", ".join(f"{split} {size:,}" for split, size in num_bytes.items())
    own = {"valid": data.valid_path, "test": data.test_path}
    cut = [split for split, path in own.items() if data.source == "files" and not path]
    share = {split: num_bytes[split] / (num_bytes["train"] + sum(num_bytes[other] for other in cut)) for split in cut}
    far = [split for split in cut if not 1 / FAR <= share[split] * HELD_OUT_EVERY <= FAR]
    if far:
        logger.warning(
            f"text: {sizes} bytes. {' and '.join(f'{share[split]:.1%} for {split}' for split in far)} is far from the "
            f"{1 / HELD_OUT_EVERY:.0%} that are cut from data.train_path: its files differ much in size, or have few lines. "
            "Set data.valid_path and data.test_path to choose."
        )
    else:
        logger.info(f"text: {sizes} bytes")


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
def _cuts(file: Path, size: int, changed: int, held_out: int, at_lines: bool) -> list[int]:
    """Where one file is cut into training text and `held_out` twentieths after it, in characters, ends included.

    Kept while the file has this size and time of change: finding it reads the file.
    """
    document = file_document(file)
    length = sum(map(len, document))
    near = max(NEAR_CHARACTERS, length // HELD_OUT_EVERY) if at_lines else length // (2 * HELD_OUT_EVERY)
    goals = [round(length * (1 - i / HELD_OUT_EVERY)) for i in range(held_out, 0, -1)]
    return [0, *(_cut(document, goal, near) for goal in goals), length]


def _cut_files(files: Sequence[Path], split: Split, held_out: Sequence[str]) -> Iterator[Document]:
    """The part of each file that belongs to `split`: the held-out twentieths stand at its end, in order.

    Where lines are so long, or so few, that a split would have no text, they are cut, too.
    """
    cuts = []
    for at_lines in (True, False):
        entries = ((file, file.stat()) for file in files)
        cuts = [_cuts(file, at.st_size, at.st_mtime_ns, len(held_out), at_lines) for file, at in entries]
        if all(any(one[i] < one[i + 1] for one in cuts) for i in range(len(held_out) + 1)):
            break
    place = ["train", *held_out].index(split)
    for file, (start, stop) in zip(files, (one[place : place + 2] for one in cuts), strict=True):
        if start < stop:
            yield file_document(file).between(start, stop)


def files_of_splits(data: DataConfig) -> dict[Split, list[tuple[str, Path]]]:
    """(name, path) of the files of each split that has a path of its own; files that are held out are no training text.

    DataError where a path matches nothing, or nothing is left to train on.
    """
    paths = {"train": data.train_path, "valid": data.valid_path, "test": data.test_path}
    files = {split: text_files(path) for split, path in paths.items() if path}
    for split, matches in files.items():
        if not matches:
            raise DataError(
                f"data.{split}_path: got {paths[split]!r}, which matches no file, expected a file, "
                "a folder or a glob of UTF-8 text. Check the path."
            )
    held_out = {split: {identity(file.stat()) for _, file in files.get(split, ())} for split in ("valid", "test")}
    if shared := len(held_out["valid"] & held_out["test"]):
        warn_once(
            f"data.test_path: {shared} files are those of data.valid_path, too ({data.test_path}, {data.valid_path})"
        )
    files["train"] = _without(data, files["train"], held_out["valid"] | held_out["test"])
    return files


def _without(data: DataConfig, files: list[tuple[str, Path]], held_out: set[tuple[int, int]]) -> list[tuple[str, Path]]:
    kept = [(name, file) for name, file in files if identity(file.stat()) not in held_out]
    if not kept:
        raise DataError(
            f"data.train_path: got {data.train_path!r}, whose files are all in data.valid_path or data.test_path, too, "
            "expected other text to train on. Choose other files."
        )
    if len(kept) < len(files):
        name = next(name for name, file in files if identity(file.stat()) in held_out)
        warn_once(
            f"data.train_path: {len(files) - len(kept)} of {len(files)} files in {data.train_path} are held out by "
            f"data.valid_path or data.test_path and not trained on, such as {name}"
        )
    return kept


def _files(data: DataConfig, split: Split) -> Iterator[Document]:
    """One document a file; hidden files and folders are passed over.

    A held-out split without a path of its own is taken from the training text: a twentieth of the documents
    (`split_names`), or of every document's lines where there are fewer than 20. One with a path takes nothing from it.
    """
    files = files_of_splits(data)
    train = files["train"]
    if split != "train" and split in files:
        yield from (file_document(file) for _, file in files[split])
    elif len(train) < HELD_OUT_EVERY:
        held_out = [name for name in ("valid", "test") if name not in files]
        yield from _cut_files([file for _, file in train], split, held_out)
    else:
        splits = split_names([name for name, _ in train])
        for name, file in train:
            belongs = splits[name] if splits[name] not in files else "train"
            if belongs == split:
                yield file_document(file)


def _tfds(data: DataConfig, split: Split) -> Iterator[Document]:
    if data.tfds_name.partition("/")[0] == "wikitext":
        from alibi_jax.data import wikitext  # half a second: it imports tensorflow_datasets

        wikitext.prepare(data)
    elif data.tfds_manual_dir:
        raise DataError(
            f"data.tfds_manual_dir: got {data.tfds_manual_dir!r} with data.tfds_name {data.tfds_name!r}, expected "
            "wikitext/wikitext-103 or wikitext/wikitext-2: others are prepared beforehand. Leave it out."
        )
    yield from dataset_documents(data, SPLITS.index(split))


SOURCES = {"stdlib": _stdlib, "files": _files, "tfds": _tfds}
