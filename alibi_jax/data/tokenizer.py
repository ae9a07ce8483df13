"""Text to tokens and back: bytes, the words of WikiText, or a byte-level BPE.

Every tokenizer knows how many UTF-8 bytes of text each of its tokens stands for, so bits per byte is exact for any
stretch of tokens: of the text itself for bytes and BPE, of the text in WikiText's layout for words.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import ClassVar, Protocol, SupportsInt, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from alibi_jax.config import DataConfig
from alibi_jax.data.document import text_document
from alibi_jax.errors import DataError

END_OF_LINE, UNKNOWN, END_OF_TEXT = "<eos>", "<unk>", "<|endoftext|>"
BATCH_PIECES = 8  # that BPE encodes at once, on several cores; an encoding takes some 70 bytes a character
LONGEST_WORD = 1_048_576  # characters: a word is held whole


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the house knows of a tokenizer; `first_input` stands before the first target of a stream.

    A document is any iterable of the pieces of its text, such as a `Document`; it is never held whole.
    """

    name: ClassVar[str]
    file: ClassVar[str]  # what `save` writes into the folder
    vocab_size: int
    first_input: int
    unknown: int | None = None  # stands for every word outside the vocabulary; None: nothing is outside it
    token_bytes: Int32[np.ndarray, " V"]  # UTF-8 bytes of text each token stands for

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        """The tokens of one document, some at a time."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The tokens of one document whose text is in memory."""
        tokens = list(self.encode_pieces(text_document("text", text)))
        return np.concatenate(tokens) if tokens else np.empty(0, np.int32)

    def unknown_bytes(self, document: Iterable[str]) -> Iterator[int]:
        """For every `unknown` in a document's tokens the bytes its word was written with; 0 for a written `<unk>`."""
        return iter(())

    def decode(self, tokens: Iterable[SupportsInt]) -> str: ...

    def save(self, folder: Path) -> None: ...


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
        return cls()

    @classmethod
    def load(cls, folder: Path) -> "ByteTokenizer":
        return cls()

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        piece = ""
        for piece in document:
            yield np.frombuffer(piece.encode("utf-8"), np.uint8).astype(np.int32)
        if not piece.endswith("\n"):
            yield np.array([ord("\n")], np.int32)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        return bytes(int(token) for token in tokens).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        (folder / self.file).write_text("Token i is the byte i of UTF-8 text.\n", encoding="utf-8")


def line_words(document: Iterable[str]) -> Iterator[list[str]]:
    """WikiText's convention: each line, blank ones too, is its words and one `<eos>`. Lines end at "\\n" only.

    `str.split` splits where the reference's `\\s+` does (fairseq's tokenize_line). Yields some words at a time; DataError
    for a word of more than LONGEST_WORD characters.
    """
    rest = ""  # the word that the pieces so far end in, if they do
    piece = "\n"
    for piece in document:
        *lines, last = (rest + piece).split("\n")
        words = list(chain.from_iterable((*line.split(), END_OF_LINE) for line in lines))
        words += last.split()
        rest = words.pop() if last and not last[-1].isspace() else ""
        if len(rest) > LONGEST_WORD:
            raise DataError(
                f"data.tokenizer: got 'words' and a word of more than {LONGEST_WORD:,} characters ({rest[:40]!r}...), "
                "expected words between spaces. Use --data.tokenizer bpe or bytes for this text."
            )
        yield words
    yield [rest] * bool(rest) + [END_OF_LINE] * (not piece.endswith("\n"))  # a final newline opens no line


class WordTokenizer(Tokenizer):
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
        self.first_input, self.unknown = self.ids[END_OF_LINE], self.ids[UNKNOWN]
        self.token_bytes = np.array([len(self._written(word).encode("utf-8")) for word in self.types], np.int32)

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[Iterable[str]]) -> "WordTokenizer":
        counts = Counter({UNKNOWN: 0, END_OF_LINE: 0})
        for document in documents:
            for words in line_words(document):
                counts.update(words)
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

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        for words in line_words(document):
            yield np.fromiter(map(self.ids.get, words, repeat(self.unknown)), np.int32, len(words))

    def unknown_bytes(self, document: Iterable[str]) -> Iterator[int]:
        for word in chain.from_iterable(line_words(document)):
            if self.ids.get(word, self.unknown) == self.unknown:
                yield 0 if word == UNKNOWN else len(self._written(word).encode("utf-8"))

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        return "".join(self._written(self.types[int(token)]) for token in tokens)

    def save(self, folder: Path) -> None:
        with open(folder / self.file, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{word}\n" for word in self.types)


class BpeTokenizer(Tokenizer):
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
    def train(cls, data: DataConfig, documents: Iterable[Iterable[str]]) -> "BpeTokenizer":
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=data.bpe_vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(chain.from_iterable(documents), trainer)
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

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        pieces = iter(document)
        while batch := list(islice(pieces, BATCH_PIECES)):
            encodings = self.model.encode_batch_fast(batch)
            yield np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
        yield np.array([self.first_input], np.int32)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        return self.model.decode([int(token) for token in tokens])

    def save(self, folder: Path) -> None:
        text = self.model.to_str(pretty=True)  # Python's errors of writing say which; the library's say Exception
        (folder / self.file).write_text(text, encoding="utf-8")


TOKENIZERS = {"bytes": ByteTokenizer, "words": WordTokenizer, "bpe": BpeTokenizer}


def make_tokenizer(data: DataConfig, train_documents: Iterable[Iterable[str]]) -> Tokenizer:
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
