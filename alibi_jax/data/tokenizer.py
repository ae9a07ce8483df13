"""Text to tokens and back: bytes, the words of WikiText, or a byte-level BPE.

Every tokenizer knows how many UTF-8 bytes of text each of its tokens stands for, so bits per byte is exact for any
stretch of tokens: of the text itself for bytes and BPE, of the text in WikiText's layout for words.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import ClassVar, Protocol, SupportsInt, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from alibi_jax.config import DataConfig
from alibi_jax.data.sources import DataError

END_OF_LINE, UNKNOWN, END_OF_TEXT = "<eos>", "<unk>", "<|endoftext|>"
PIECE_CHARACTERS = 65_536  # BPE encodes long documents in pieces: over 1 MiB in one piece is slower and eats memory


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the house knows of a tokenizer; `first_input` stands before the first target of a stream."""

    name: ClassVar[str]
    file: ClassVar[str]  # what `save` writes into the folder
    vocab_size: int
    first_input: int
    token_bytes: Int32[np.ndarray, " V"]  # UTF-8 bytes of text each token stands for

    def encode(self, document: str) -> Int32[np.ndarray, " n"]: ...

    def decode(self, tokens: Iterable[SupportsInt]) -> str: ...

    def save(self, folder: Path) -> None: ...


class ByteTokenizer:
    """The 256 byte values of UTF-8. A document that does not end in a newline is given one."""

    name: ClassVar[str] = "bytes"
    file: ClassVar[str] = "bytes.txt"

    def __init__(self) -> None:
        self.vocab_size = 256
        self.first_input = ord("\n")
        self.token_bytes = np.ones(256, np.int32)

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[str]) -> "ByteTokenizer":
        return cls()

    @classmethod
    def load(cls, folder: Path) -> "ByteTokenizer":
        return cls()

    def encode(self, document: str) -> Int32[np.ndarray, " n"]:
        text = document if document.endswith("\n") else document + "\n"
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        return bytes(int(token) for token in tokens).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        (folder / self.file).write_text("Token i is the byte i of UTF-8 text.\n", encoding="utf-8")


def line_words(document: str) -> Iterator[str]:
    """WikiText's convention: each line, blank ones too, is its words and one `<eos>`. Lines end at "\\n" only.

    `str.split` splits where the reference's `\\s+` does (fairseq's tokenize_line).
    """
    lines = document.split("\n")
    if lines[-1] == "":
        lines.pop()  # a final newline ends a line and opens none
    return chain.from_iterable((*line.split(), END_OF_LINE) for line in lines)


class WordTokenizer:
    """Whitespace words by falling count in the training text, ties alphabetical; words outside it are `<unk>`.

    Text is normalised to WikiText's layout, where a word is written " word" and a line ends in " \\n": a word stands
    for its bytes and one more, `<eos>` for two, and a WikiText file decodes to itself. A literal `<eos>` is that token.
    """

    name: ClassVar[str] = "words"
    file: ClassVar[str] = "vocabulary.txt"

    def __init__(self, types: Sequence[str]) -> None:
        self.types = list(types)
        self.ids = {word: i for i, word in enumerate(self.types)}
        self.vocab_size = len(self.types)
        self.first_input = self.ids[END_OF_LINE]
        self.token_bytes = np.array([len(self._written(word).encode("utf-8")) for word in self.types], np.int32)

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[str]) -> "WordTokenizer":
        counts = Counter({UNKNOWN: 0, END_OF_LINE: 0})
        for document in documents:
            counts.update(line_words(document))
        return cls(sorted(counts, key=lambda word: (-counts[word], word)))

    @classmethod
    def load(cls, folder: Path) -> "WordTokenizer":
        types = (folder / cls.file).read_text(encoding="utf-8").split("\n")[:-1]
        if END_OF_LINE not in types or UNKNOWN not in types:
            raise DataError(
                f"{folder / cls.file}: got {len(types)} types without {END_OF_LINE} or {UNKNOWN}, expected both. "
                "Prepare the corpus again with --force."
            )
        return cls(types)

    @staticmethod
    def _written(word: str) -> str:
        return " \n" if word == END_OF_LINE else f" {word}"

    def encode(self, document: str) -> Int32[np.ndarray, " n"]:
        unknown = self.ids[UNKNOWN]
        return np.fromiter((self.ids.get(word, unknown) for word in line_words(document)), np.int32)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        return "".join(self._written(self.types[int(token)]) for token in tokens)

    def save(self, folder: Path) -> None:
        with open(folder / self.file, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{word}\n" for word in self.types)


class BpeTokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019), trained by the `tokenizers` library on the training text.

    `<|endoftext|>` ends every document, starts a stream and stands for no bytes; the same letters in a text are text.
    """

    name: ClassVar[str] = "bpe"
    file: ClassVar[str] = "tokenizer.json"

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        model.encode_special_tokens = True  # the letters of a special token in a text stay text; not kept in the file
        self.model = model
        self.vocab_size = model.get_vocab_size()
        self.first_input = model.token_to_id(END_OF_TEXT)
        tokens = (model.id_to_token(i) for i in range(self.vocab_size))
        self.token_bytes = np.array([len(token) for token in tokens], np.int32)  # the alphabet has a letter a byte
        self.token_bytes[self.first_input] = 0

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[str]) -> "BpeTokenizer":
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=data.bpe_vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(chain.from_iterable(map(_pieces, documents)), trainer)
        if model.get_vocab_size() != data.bpe_vocab_size:
            raise DataError(
                f"data.bpe_vocab_size: got a training text with pairs for {model.get_vocab_size()} tokens, expected "
                f"{data.bpe_vocab_size}. Lower data.bpe_vocab_size or give more text."
            )
        return cls(model)

    @classmethod
    def load(cls, folder: Path) -> "BpeTokenizer":
        text = (folder / cls.file).read_text(encoding="utf-8")
        json.loads(text)  # a truncated file is named as such: the library raises a bare Exception
        return cls(tokenizers.Tokenizer.from_str(text))

    def encode(self, document: str) -> Int32[np.ndarray, " n"]:
        encodings = self.model.encode_batch_fast(_pieces(document))
        return np.fromiter(chain(*(encoding.ids for encoding in encodings), [self.first_input]), np.int32)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        return self.model.decode([int(token) for token in tokens])

    def save(self, folder: Path) -> None:
        self.model.save(str(folder / self.file))


def _pieces(document: str) -> list[str]:
    return [document[i : i + PIECE_CHARACTERS] for i in range(0, len(document), PIECE_CHARACTERS)]


TOKENIZERS = {"bytes": ByteTokenizer, "words": WordTokenizer, "bpe": BpeTokenizer}


def make_tokenizer(data: DataConfig, train_documents: Iterable[str]) -> Tokenizer:
    """The configured tokenizer, its vocabulary learned from the training documents where it has one to learn."""
    return TOKENIZERS[data.tokenizer].train(data, train_documents)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in a folder, known by its file's name. DataError when there is none or it is broken."""
    for kind in TOKENIZERS.values():
        path = folder / kind.file
        if path.is_file():
            try:
                return kind.load(folder)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise DataError(
                    f"{path}: got a file that cannot be read ({error}), expected a saved {kind.name} tokenizer. "
                    "Prepare the corpus again with --force."
                ) from error
    names = ", ".join(kind.file for kind in TOKENIZERS.values())
    raise DataError(f"{folder}: got no tokenizer, expected one of {names}. Prepare the corpus again with --force.")
