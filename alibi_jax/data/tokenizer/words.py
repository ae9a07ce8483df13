"""Tokens that are the words of the training text, in WikiText's convention."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import ClassVar, SupportsInt

import numpy as np
from jaxtyping import Int32

from alibi_jax.config import DataConfig
from alibi_jax.data.tokenizer.base import Tokenizer
from alibi_jax.data.tokenizer.foreign import read_bytes
from alibi_jax.errors import DataError
from alibi_jax.storage import Location

END_OF_LINE, UNKNOWN = "<eos>", "<unk>"
LONGEST_WORD = 1_048_576  # characters: a word is held whole


def line_words(document: Iterable[str]) -> Iterator[list[str]]:
    """Yields the words of a document, some at a time, in WikiText's convention: each line, blank ones too, ends in one `<eos>`.

    Lines end at "\\n" only. `str.split` splits where the reference's `\\s+` does (fairseq's tokenize_line). DataError for a
    word of more than LONGEST_WORD characters.
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
    has_unknown: ClassVar[bool] = True

    def __init__(self, types: Sequence[str]) -> None:
        self.types = list(types)
        self.ids = {word: i for i, word in enumerate(self.types)}
        self.vocab_size = len(self.types)
        self.first_input, self.unknown = self.ids[END_OF_LINE], self.ids[UNKNOWN]
        self.token_bytes = np.array([len(self._written(word).encode("utf-8")) for word in self.types], np.int32)

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[Iterable[str]]) -> "WordTokenizer":
        """Returns a tokenizer of all the words of the training documents."""
        counts = Counter({UNKNOWN: 0, END_OF_LINE: 0})
        for document in documents:
            for words in line_words(document):
                counts.update(words)
        return cls(sorted(counts, key=lambda word: (-counts[word], word)))

    @classmethod
    def load(cls, folder: Path) -> "WordTokenizer":
        """Returns the tokenizer that was saved in a folder; DataError for a vocabulary without `<eos>` or `<unk>`."""
        return cls.read(folder / cls.file, "Prepare the corpus again with --force.")

    @classmethod
    def read(cls, file: Location, do: str = "Complete the file.") -> "WordTokenizer":
        """Returns the tokenizer of a file with a word a line; DataError, which says what to do, for one that is not whole."""
        try:
            types = read_bytes(file).decode("utf-8").split("\n")[:-1]
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: got a file that cannot be read ({error}), expected UTF-8. {do}") from error
        if END_OF_LINE not in types or UNKNOWN not in types:
            raise DataError(f"{file}: got {len(types)} types without {END_OF_LINE} or {UNKNOWN}, expected both. {do}")
        return cls(types)

    @classmethod
    def configured_size(cls, data: DataConfig) -> None:
        """Returns None: how many words there are is not known before the text is read."""

    @staticmethod
    def _written(word: str) -> str:
        return " \n" if word == END_OF_LINE else f" {word}"

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        """Yields the tokens of some words at a time; `<unk>` for those outside the vocabulary."""
        for words in line_words(document):
            yield np.fromiter(map(self.ids.get, words, repeat(self.unknown)), np.int32, len(words))

    def unknown_bytes(self, document: Iterable[str]) -> Iterator[int]:
        """Yields for every `<unk>` the bytes of the word it stands for; 0 for a written `<unk>`."""
        for word in chain.from_iterable(line_words(document)):
            if self.ids.get(word, self.unknown) == self.unknown:
                yield 0 if word == UNKNOWN else len(self._written(word).encode("utf-8"))

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Returns the text in WikiText's layout."""
        return "".join(self._written(self.types[int(token)]) for token in tokens)

    def save(self, folder: Path) -> None:
        """Writes one word a line, in the order of the tokens."""
        with open(folder / self.file, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{word}\n" for word in self.types)
