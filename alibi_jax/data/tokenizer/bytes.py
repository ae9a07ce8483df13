"""Tokens that are the bytes of the text."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, SupportsInt

import numpy as np
from jaxtyping import Int32

from alibi_jax.config import DataConfig
from alibi_jax.data.tokenizer.base import Tokenizer


class ByteTokenizer(Tokenizer):
    """The 256 byte values of UTF-8. A document that does not end in a newline is given one."""

    name: ClassVar[str] = "bytes"
    file: ClassVar[str] = "bytes.txt"

    def __init__(self) -> None:
        self.vocab_size = 256
        self.first_input = ord("\n")
        self.token_bytes = np.ones(256, np.int32)

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[Iterable[str]]) -> "ByteTokenizer":
        """Returns the tokenizer; there is nothing to learn."""
        return cls()

    @classmethod
    def load(cls, folder: Path) -> "ByteTokenizer":
        """Returns the tokenizer; there is nothing to read."""
        return cls()

    @classmethod
    def configured_size(cls, data: DataConfig) -> int:
        """Returns 256."""
        return 256

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        """Yields the bytes of each piece, and a newline where the text does not end in one."""
        piece = ""
        for piece in document:
            yield np.frombuffer(piece.encode("utf-8"), np.uint8).astype(np.int32)
        if not piece.endswith("\n"):
            yield np.array([ord("\n")], np.int32)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Returns the text of these bytes; what is not UTF-8 becomes U+FFFD."""
        return bytes(int(token) for token in tokens).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Writes a file that names the tokenizer."""
        (folder / self.file).write_text("Token i is the byte i of UTF-8 text.\n", encoding="utf-8")
