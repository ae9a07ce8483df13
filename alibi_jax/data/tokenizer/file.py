"""Tokens of a tokenizer.json that somebody else made, such as the one beside a model's weights."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, SupportsInt

import numpy as np
from jaxtyping import Int32

from alibi_jax.config import DataConfig
from alibi_jax.data.tokenizer.base import Tokenizer
from alibi_jax.data.tokenizer.bpe import BATCH_PIECES
from alibi_jax.data.tokenizer.foreign import (
    digest,
    end_token,
    exported_files,
    is_vocabulary,
    read_bytes,
    read_object,
    tokenizer_file,
)
from alibi_jax.data.tokenizer.spelling import components, normalized, spelling_of, token_bytes
from alibi_jax.data.tokenizer.words import WordTokenizer
from alibi_jax.errors import DataError, require, shown
from alibi_jax.storage import Location

if TYPE_CHECKING:  # imported where it is used, as a model can be trained where it is not installed
    import tokenizers

WORD_END = re.compile(r"[^\W\d_](?= [^\W\d_])")  # a letter, before a space and a letter
SEARCHED = 4096  # characters at the end of a piece


def library_model(text: str) -> "tokenizers.Tokenizer":
    """Returns the `tokenizers` library's object of its JSON, for texts of any length. DataError where it takes no such JSON."""
    from tokenizers import Tokenizer

    try:
        model = Tokenizer.from_str(text)
    except Exception as error:
        if type(error) is not Exception:  # the library raises the bare class
            raise
        raise DataError(
            f"data.tokenizer_path: got a tokenizer.json that the tokenizers library cannot read ({error}), expected one of "
            "its own. Copy it again, or update the library."
        ) from error
    model.encode_special_tokens = True  # the letters of a special token in a text stay text; not kept in the file
    model.no_truncation()
    model.no_padding()
    return model


def number_of_tokens(path: str | Location) -> int:
    """Returns the largest id of a tokenizer's file and one, the fewest rows of a model for it. DataError without a file."""
    file = tokenizer_file(path)
    if is_vocabulary(file):
        return WordTokenizer.read(file).vocab_size
    return max(library_model(json.dumps(read_object(file))).get_vocab().values(), default=-1) + 1


def _without_prefix(library: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts of a tokenizer's JSON that put no space in front of a text: for what follows within a document."""
    changes = {"ByteLevel": {"add_prefix_space": False}, "Metaspace": {"prepend_scheme": "never"}}
    split = [part | changes.get(part["type"], {}) for part in components(library.get("pre_tokenizer"))]
    for part in split:
        if part["type"] == "Metaspace":
            part.pop("add_prefix_space", None)  # of earlier versions; it has to agree with prepend_scheme
    kept = [part for part in components(library.get("normalizer")) if part["type"] != "Prepend"]
    return {
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split} if split else None,
    }


def _puts_prefix(library: dict[str, Any]) -> bool:
    """Returns whether a tokenizer puts a space in front of a text that has none."""
    parts = [*components(library.get("normalizer")), *components(library.get("pre_tokenizer"))]
    kinds = [part["type"] for part in parts]
    spaces = [part.get("add_prefix_space", True) for part in parts if part["type"] == "ByteLevel"]
    spaces += [part.get("prepend_scheme", "always") != "never" for part in parts if part["type"] == "Metaspace"]
    return any(spaces) or "Prepend" in kinds


def _between_words(document: Iterable[str]) -> Iterator[str]:
    """Yields the same text in pieces that end after a word, in front of a space: tokens of words are those of the whole text.

    A piece ends anywhere where its last SEARCHED characters have no such place.
    """
    rest = ""
    for piece in document:
        ends = [match.end() for match in WORD_END.finditer(rest, max(0, len(rest) - SEARCHED))]
        end = ends[-1] if ends else len(rest)
        if end:
            yield rest[:end]
        rest = rest[end:] + piece
    if rest:
        yield rest


class FileTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, as its file has it; nothing is learned.

    The token that ends a document is named beside the file or by `data.tokenizer_end`. A stream starts with the token that the
    tokenizer itself puts in front of a text, else with the one that ends a document. Both, and all special tokens, stand for no
    bytes; their letters in a text are text. Bytes are those of the text as the tokenizer's normalizer leaves it, such as NFC;
    a space that it puts in front of a document is one more.
    """

    name: ClassVar[str] = "file"
    file: ClassVar[str] = "foreign.json"
    fields: ClassVar[tuple[str, ...]] = ("tokenizer_path", "tokenizer_end")

    def __init__(self, library: dict[str, Any], end: str | int) -> None:
        self.text = json.dumps(library, ensure_ascii=False)  # a tenth of the memory that the object takes
        self.model = library_model(self.text)
        self.spelling = spelling_of(library)
        self.has_prefix = _puts_prefix(library)
        self.inside = library_model(json.dumps(library | _without_prefix(library))) if self.has_prefix else self.model
        self.end = self._id(end)
        self.first_input = self._first_input()
        self.token_bytes = token_bytes(self.model, library)
        self.token_bytes[[self.end, self.first_input]] = 0
        self.vocab_size = len(self.token_bytes)

    def _id(self, end: str | int) -> int:
        number = self.model.token_to_id(end) if isinstance(end, str) else end
        if number is None or number < 0 or self.model.id_to_token(number) is None:
            raise DataError(
                f"data.tokenizer_end: got {shown(end)}, which is not in the tokenizer's vocabulary, expected its token that "
                "ends a document. Name it with --data.tokenizer-end TOKEN."
            )
        return number

    def _first_input(self) -> int:
        encoding = self.model.encode("a")
        leading = takewhile(lambda pair: pair[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True))
        return [self.end, *(number for number, _ in leading)][-1]

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[Iterable[str]]) -> Tokenizer:
        """Returns the tokenizer of the file that is named: this one of a tokenizer.json, `words` of a vocabulary.txt."""
        file = tokenizer_file(data.tokenizer_path)
        if is_vocabulary(file):
            field, do = "data.tokenizer_end", "Leave it out."
            require(data.tokenizer_end == "", field, shown(data.tokenizer_end), "none: lines of words end in <eos>", do)
            return WordTokenizer.read(file)
        end = data.tokenizer_end or end_token(file.parent)
        if end is None:
            raise DataError(
                f"data.tokenizer_end: got {file} without a token that ends a document, expected eos_token in "
                "tokenizer_config.json or special_tokens_map.json beside it, or eos_token_id in generation_config.json or "
                "config.json. Name it with --data.tokenizer-end TOKEN."
            )
        return cls(read_object(file), end)

    @classmethod
    def load(cls, folder: Path) -> "FileTokenizer":
        """Returns the tokenizer that was saved in a folder. JSONDecodeError where its file was cut."""
        match json.loads(read_bytes(folder / cls.file).decode("utf-8")):
            case {"end": int(end), "tokenizer": dict(library)}:
                return cls(library, end)
        raise DataError(
            f"{folder / cls.file}: got other JSON, expected a saved tokenizer. Prepare the corpus again with --force."
        )

    @classmethod
    def identity(cls, data: DataConfig) -> dict[str, str | int | None]:
        """Returns the sha256 of the file and the token that ends a document: where the file lies changes nothing."""
        file = tokenizer_file(data.tokenizer_path)
        end = None if is_vocabulary(file) else data.tokenizer_end or end_token(file.parent)
        return {"tokenizer_sha256": digest(file), "tokenizer_end": end}

    @classmethod
    def configured_size(cls, data: DataConfig) -> int:
        """Returns the size of the file's vocabulary."""
        return number_of_tokens(data.tokenizer_path)

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        """Yields the tokens of BATCH_PIECES pieces at a time, and at the end the token that ends a document."""
        pieces = _between_words(document)
        for piece in islice(pieces, 1):
            yield self._encoded(self.model, [piece], self.has_prefix)
        while batch := list(islice(pieces, BATCH_PIECES)):
            yield self._encoded(self.inside, batch, False)
        yield np.array([self.end], np.int32)

    def _encoded(self, model: "tokenizers.Tokenizer", batch: list[str], has_prefix: bool) -> Int32[np.ndarray, "_"]:
        encodings = model.encode_batch_fast(batch, add_special_tokens=False)
        tokens = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
        counted = int(self.token_bytes[tokens].sum(dtype=np.int64))
        expected = sum(self.spelling.text_bytes(normalized(model, piece)) for piece in batch)
        if counted < expected or (counted > expected and not has_prefix):
            raise DataError(
                f"data.tokenizer_path: got tokens of {counted:,} bytes for {expected:,} bytes of text, expected as many: the "
                "tokenizer drops or adds letters, lacks some, or takes the letters of a special token for the token. Bits per "
                "byte would be wrong. Use another tokenizer."
            )
        return tokens

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Returns the text of these tokens, without special ones."""
        return self.model.decode([int(token) for token in tokens])

    def save(self, folder: Path) -> None:
        """Writes the library's JSON as it was read, and the id of the token that ends a document."""
        (folder / self.file).write_text(f'{{"end": {self.end}, "tokenizer": {self.text}}}', encoding="utf-8")

    def exported(self) -> dict[str, str]:
        """Returns name -> content of the files by which transformers loads this tokenizer."""
        names = [self.model.id_to_token(number) for number in (self.first_input, self.end)]
        return exported_files(self.text, *names)
