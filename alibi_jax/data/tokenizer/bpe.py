"""Tokens of a byte-level BPE, learned from the training text."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, SupportsInt

import numpy as np
from jaxtyping import Int32

from alibi_jax.config import DataConfig
from alibi_jax.data.tokenizer.base import Tokenizer
from alibi_jax.data.tokenizer.foreign import exported_files
from alibi_jax.errors import DataError

if TYPE_CHECKING:  # imported where it is used, as a model can be trained where it is not installed
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
BATCH_PIECES = 8  # that BPE encodes at once, on several cores; an encoding takes some 70 bytes a character


class BpeTokenizer(Tokenizer):
    """GPT-2's byte-level BPE (Radford et al. 2019), trained by the `tokenizers` library on the training text.

    `<|endoftext|>` ends every document, starts a stream and stands for no bytes; the same letters in a text are text.
    """

    name: ClassVar[str] = "bpe"
    file: ClassVar[str] = "tokenizer.json"
    fields: ClassVar[tuple[str, ...]] = ("bpe_vocab_size",)

    def __init__(self, model: "tokenizers.Tokenizer") -> None:
        model.encode_special_tokens = True  # the letters of a special token in a text stay text; not kept in the file
        self.model = model
        self.vocab_size = model.get_vocab_size()
        self.first_input = model.token_to_id(END_OF_TEXT)
        tokens = (model.id_to_token(i) for i in range(self.vocab_size))
        self.token_bytes = np.array([len(token) for token in tokens], np.int32)  # the alphabet has a letter a byte
        self.token_bytes[self.first_input] = 0

    @classmethod
    def train(cls, data: DataConfig, documents: Iterable[Iterable[str]]) -> "BpeTokenizer":
        """Returns a tokenizer of `data.bpe_vocab_size` tokens; DataError for a text with fewer pairs to merge."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        model = Tokenizer(models.BPE())
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
        """Returns the tokenizer that was saved in a folder. JSONDecodeError where its file was cut."""
        from tokenizers import Tokenizer

        text = (folder / cls.file).read_text(encoding="utf-8")
        json.loads(text)  # a truncated file is named as such: the library raises a bare Exception
        return cls(Tokenizer.from_str(text))

    @classmethod
    def configured_size(cls, data: DataConfig) -> int:
        """Returns `data.bpe_vocab_size`."""
        return data.bpe_vocab_size

    def encode_pieces(self, document: Iterable[str]) -> Iterator[Int32[np.ndarray, "_"]]:
        """Yields the tokens of BATCH_PIECES pieces at a time, and `<|endoftext|>` at the end."""
        pieces = iter(document)
        while batch := list(islice(pieces, BATCH_PIECES)):
            encodings = self.model.encode_batch_fast(batch)
            yield np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
        yield np.array([self.first_input], np.int32)

    def decode(self, tokens: Iterable[SupportsInt]) -> str:
        """Returns the text of these tokens, without `<|endoftext|>`."""
        return self.model.decode([int(token) for token in tokens])

    def save(self, folder: Path) -> None:
        """Writes the library's JSON."""
        text = self.model.to_str(pretty=True)  # Python's errors of writing say which; the library's say Exception
        (folder / self.file).write_text(text, encoding="utf-8")

    def exported(self) -> dict[str, str]:
        """Returns name -> content of the files by which transformers loads this tokenizer."""
        return exported_files(self.model.to_str(pretty=True), END_OF_TEXT, END_OF_TEXT)
