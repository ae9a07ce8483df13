"""The token stream of a split: written from its documents, read in chunks, its bytes counted.

Beside it lie, for each `<unk>` in it, the bytes of the word that it stands for, so that bits per byte is exact.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from alibi_jax.data.document import Document
from alibi_jax.data.layout import UNKNOWN_DTYPE, token_dtype
from alibi_jax.data.splits import Split
from alibi_jax.data.tokenizer import Tokenizer
from alibi_jax.errors import DataError

CHUNK = 2**20  # tokens that are in memory at once


def chunks(tokens: Integer[np.ndarray, " n"]) -> Iterator[Integer[np.ndarray, "_"]]:
    """Yields a stream, some tokens at a time: a mapped file may be larger than the memory."""
    for start in range(0, len(tokens), CHUNK):
        yield tokens[start : start + CHUNK]


def num_bytes(tokenizer: Tokenizer, tokens: Integer[np.ndarray, " n"]) -> int:
    """Returns the UTF-8 bytes of the text that tokens stand for; `<unk>` counts as it is written."""
    return sum(int(tokenizer.token_bytes[chunk].sum(dtype=np.int64)) for chunk in chunks(tokens))


def unknown_excess(tokenizer: Tokenizer, unknown: Integer[np.ndarray, " k"]) -> int:
    """Returns by how many bytes unknown words are longer than the `<unk>` in their place; a 0 is a written `<unk>`."""
    lengths = unknown[unknown > 0].astype(np.int64)
    return int(lengths.sum()) - len(lengths) * int(tokenizer.token_bytes[tokenizer.unknown]) if len(lengths) else 0


def write_tokens(path: Path, texts: Iterable[Document], tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes the token file of one split; returns its tokens, bytes and documents, and the sha256 of the documents."""
    tokens = size = num_documents = 0
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for document in texts:
            for encoded in tokenizer.encode_pieces(_digested(document, digest.update)):
                file.write(encoded.astype(token_dtype(tokenizer.vocab_size)).tobytes())
                tokens += len(encoded)
                size += int(tokenizer.token_bytes[encoded].sum(dtype=np.int64))
            num_documents += 1
    return {"tokens": tokens, "bytes": size, "documents": num_documents, "sha256": digest.hexdigest()}


def _digested(document: Document, update: Callable[[bytes], None]) -> Iterator[str]:
    """Yields the pieces of a document and digests each; the length comes first, or moved boundaries would not show."""
    length = document.num_bytes()
    update(b"%d\n" % length)
    for piece in document:
        content = piece.encode("utf-8")
        update(content)
        length -= len(content)
        yield piece
    if length != 0:
        raise DataError(
            f"{document.name}: got a text that changed while it was read, expected one that stays. Try again."
        )


def write_unknown(folder: Path, split: Split, texts: Iterable[Document], tokenizer: Tokenizer) -> tuple[int, int]:
    """Writes the bytes of every word that `<unk>` stands for; returns their number, and by how many bytes they are longer."""
    number = excess = 0
    path = folder / f"{split}.bin"
    dtype = token_dtype(tokenizer.vocab_size)
    with open(path, "rb") as file:  # not mapped: the pages of a map count as memory of the process
        count = -(-path.stat().st_size // (CHUNK * dtype.itemsize))
        any_unknown = any((np.fromfile(file, dtype, CHUNK) == tokenizer.unknown).any() for _ in range(count))
    lengths = chain.from_iterable(map(tokenizer.unknown_bytes, texts)) if any_unknown else iter(())
    with open(folder / f"{split}.unknown.bin", "wb") as file:
        while (chunk := np.fromiter(islice(lengths, CHUNK), UNKNOWN_DTYPE)).size:
            file.write(chunk.tobytes())
            number += int(np.count_nonzero(chunk))
            excess += unknown_excess(tokenizer, chunk)
    return number, excess
