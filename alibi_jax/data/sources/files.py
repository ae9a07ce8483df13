"""The user's own text: files, folders and globs, plain or gzip."""

from collections.abc import Iterator
from pathlib import Path

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document, file_document, warn_once
from alibi_jax.data.paths import identity, text_files
from alibi_jax.data.sources.base import Source
from alibi_jax.data.splits import HELD_OUT_EVERY, Split, cut_files, split_names
from alibi_jax.errors import DataError


def files_of_splits(data: DataConfig) -> dict[Split, list[tuple[str, Path]]]:
    """Returns (name, path) of the files of each split that has a path of its own; held-out files are no training text.

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


def _files(data: DataConfig) -> list[tuple[str, Path]]:
    return [(f"{split}/{name}", path) for split, files in files_of_splits(data).items() for name, path in files]


def _documents(data: DataConfig, split: Split) -> Iterator[Document]:
    """Yields one document a file; hidden files and folders are left out.

    A held-out split without a path of its own is taken from the training text: a twentieth of the documents
    (`split_names`), or of every document's lines where there are fewer than 20. One with a path takes nothing from it.
    """
    files = files_of_splits(data)
    train = files["train"]
    if split != "train" and split in files:
        yield from (file_document(file) for _, file in files[split])
    elif len(train) < HELD_OUT_EVERY:
        held_out = [name for name in ("valid", "test") if name not in files]
        yield from cut_files([file for _, file in train], split, held_out)
    else:
        splits = split_names([name for name, _ in train])
        for name, file in train:
            belongs = splits[name] if splits[name] not in files else "train"
            if belongs == split:
                yield file_document(file)


def _describe(data: DataConfig) -> str:
    return f"files {data.train_path} {data.valid_path} {data.test_path}".rstrip()


FILES = Source(_documents, _files, _describe, paths=("train_path", "valid_path", "test_path"))
