"""What a source of text is: three functions of the config, and the names of the fields that they read."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document
from alibi_jax.data.splits import Split


@dataclasses.dataclass(frozen=True)
class Source:
    """Where text comes from. A new one is a value of this class in a file of its own, and its line in SOURCES."""

    documents: Callable[[DataConfig, Split], Iterator[Document]]  # of one split, in the same order every time
    files: Callable[[DataConfig], list[tuple[str, Path]]]  # (name, path) of all that is read, in a fixed order
    describe: Callable[[DataConfig], str]  # one line that says where the text comes from, kept with a corpus
    paths: tuple[str, ...] = ()  # fields of DataConfig that name the files or folders of the text
    choices: tuple[str, ...] = ()  # other fields of DataConfig that decide which text it is

    @property
    def fields(self) -> tuple[str, ...]:
        """Returns every field of DataConfig that decides which text it is."""
        return self.paths + self.choices
