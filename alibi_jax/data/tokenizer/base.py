"""What a tokenizer is: text to tokens and back, and how many bytes each token stands for."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol, SupportsInt, runtime_checkable

import numpy as np
from jaxtyping import Int32

from alibi_jax.config import DataConfig
from alibi_jax.data.document import text_document


@runtime_checkable
class Tokenizer(Protocol):
    """Text to tokens and back. A new one is a subclass in a file of its own, and its line in TOKENIZERS.

    A document is any iterable of the pieces of its text, such as a `Document`; it is never held whole.
    """

    name: ClassVar[str]
    file: ClassVar[str]  # what `save` writes into the folder
    fields: ClassVar[tuple[str, ...]] = ()  # of DataConfig that decide which tokens a text has
    has_unknown: ClassVar[bool] = False  # whether a text may have words outside the vocabulary
    vocab_size: int
    first_input: int  # stands before the first target of a stream
    unknown: int | None = None  # stands for every word outside the vocabulary; None: nothing is outside it
    token_bytes: Int32[np.ndarray, " V"]  # UTF-8 bytes of text each token stands for

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[Iterable[str]]) -> "Tokenizer":
        """Returns the configured tokenizer, its vocabulary learned from the training documents where it has one to learn."""
        ...

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Returns the tokenizer that `save` wrote into a folder."""
        ...

    @classmethod
    def configured_size(cls, data: DataConfig) -> int | None:
        """Returns the size of the vocabulary as the config says it; None where only the text decides."""
        ...

    @classmethod
    def identity(cls, data: DataConfig) -> dict[str, Any]:
        """Returns what of the config decides which tokens a text has, by name; DataError where it cannot be read."""
        return {name: getattr(data, name) for name in cls.fields}

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        """Yields the tokens of one document, some at a time."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """Returns the tokens of one document whose text is in memory."""
        tokens = list(self.encode_pieces(text_document("text", text)))
        return np.concatenate(tokens) if tokens else np.empty(0, np.int32)

    def unknown_bytes(self, document: Iterable[str]) -> Iterator[int]:
        """Yields for every `unknown` in a document's tokens the bytes its word was written with; 0 for a written `<unk>`."""
        return iter(())

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Returns the text that tokens stand for."""
        ...

    def save(self, folder: Path) -> None:
        """Writes `file` into a folder."""
        ...

    def exported(self) -> dict[str, str]:
        """Returns name -> content of the files by which transformers loads it; empty where it cannot."""
        return {}
