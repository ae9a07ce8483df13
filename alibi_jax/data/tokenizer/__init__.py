"""Text to tokens and back, one file a tokenizer: bytes, the words of WikiText, a byte-level BPE, or somebody's file.

Every tokenizer knows how many UTF-8 bytes of text each of its tokens stands for, so bits per byte is exact for any
stretch of tokens: of the text itself for bytes and BPE, of the text in WikiText's layout for words, of the text as its
normalizer leaves it for a file.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from alibi_jax.config import DataConfig
from alibi_jax.data.tokenizer.base import Tokenizer
from alibi_jax.data.tokenizer.bpe import BpeTokenizer
from alibi_jax.data.tokenizer.bytes import ByteTokenizer
from alibi_jax.data.tokenizer.file import FileTokenizer
from alibi_jax.data.tokenizer.words import WordTokenizer
from alibi_jax.errors import DataError

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "bytes": ByteTokenizer,
    "words": WordTokenizer,
    "bpe": BpeTokenizer,
    "file": FileTokenizer,
}


def make_tokenizer(data: DataConfig, train_documents: Iterable[Iterable[str]]) -> Tokenizer:
    """Returns the configured tokenizer, its vocabulary learned from the training documents where it has one to learn."""
    return TOKENIZERS[data.tokenizer].train(data, train_documents)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Returns the tokenizer saved in a folder, known by its file's name. DataError when there is none or it is broken."""
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
