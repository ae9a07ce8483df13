"""Where text comes from, one file a source: `documents(data, split)` yields the documents of one split, one at a time."""

from collections.abc import Iterator

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document
from alibi_jax.data.sources.base import Source
from alibi_jax.data.sources.files import FILES
from alibi_jax.data.sources.stdlib import STDLIB
from alibi_jax.data.sources.tfds import TFDS
from alibi_jax.data.splits import Split

SOURCES: dict[str, Source] = {"stdlib": STDLIB, "files": FILES, "tfds": TFDS}


def documents(data: DataConfig, split: Split) -> Iterator[Document]:
    """Yields the documents of one split of the configured source, always in the same order; none is whole in memory.

    Only an example of a tfds data set and a file of the standard library are read at once. Raises DataError for a source that
    is not there, and while a document is read for one that is empty, not UTF-8 or otherwise unreadable.
    """
    return SOURCES[data.source].documents(data, split)


def splits_cut_from_training(data: DataConfig) -> list[Split]:
    """Returns the held-out splits that could have a path of their own and have none: they are cut from the training text."""
    paths: dict[Split, str] = {"valid": data.valid_path, "test": data.test_path}
    known = SOURCES[data.source].paths
    return [split for split, path in paths.items() if f"{split}_path" in known and not path]
