"""Writing a corpus: a tokenizer is learned, and each split is read, counted and written as tokens.

This takes at most PREPARING_MIB of memory, however long a file, a line or a decompressed gzip file is. Two things come on top.
One is the different words of the training text while `words` or `bpe` is learned, about 200 bytes each: they grow with the
variety of the text, not with its length. (For BPE's library up to 65,536 letters without space or punctuation between them are
one word, of about 40 bytes a letter.) The other is one example of a tfds data set.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document
from alibi_jax.data.facts import file_checksums, write_facts
from alibi_jax.data.layout import FORMAT, UNKNOWN_DTYPE, file_names, fingerprint_of, token_dtype
from alibi_jax.data.sources import SOURCES, documents, splits_cut_from_training
from alibi_jax.data.splits import SPLITS, Split, log_sizes
from alibi_jax.data.text import Text, copies, keep_text, read_text, same_entries
from alibi_jax.data.tokenizer import Tokenizer, make_tokenizer
from alibi_jax.errors import DataError

PREPARING_MIB = 384  # on top of the program itself; measured: 30 for bytes, 70 for words, 130 to 300 for BPE
CHUNK = 2**20  # tokens that are in memory at once

logger = logging.getLogger("alibi_jax")


def unknown_excess(tokenizer: Tokenizer, unknown: Integer[np.ndarray, " k"]) -> int:
    """Returns by how many bytes unknown words are longer than the `<unk>` in their place; a 0 is a written `<unk>`."""
    lengths = unknown[unknown > 0].astype(np.int64)
    return int(lengths.sum()) - len(lengths) * int(tokenizer.token_bytes[tokenizer.unknown]) if len(lengths) else 0


def chunks(tokens: Integer[np.ndarray, " n"]) -> Iterator[Integer[np.ndarray, "_"]]:
    """Yields a stream, some tokens at a time: a mapped file may be larger than the memory."""
    for start in range(0, len(tokens), CHUNK):
        yield tokens[start : start + CHUNK]


def write_corpus(data: DataConfig, folder: Path, quiet: bool) -> str:
    """Writes a corpus into a folder; returns its fingerprint. DataError where the text changes meanwhile."""
    before = _text_if_there(data)
    message = TextColumn("{task.description}: {task.completed:,} documents")
    pulse = BarColumn()  # no source knows beforehand how much it holds
    columns = SpinnerColumn(), message, pulse, TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        train = progress.track(documents(data, "train"), description=f"learning the {data.tokenizer} tokenizer")
        tokenizer = make_tokenizer(data, train)
        tokenizer.save(folder)
        splits = {}
        for split in SPLITS:
            texts = progress.track(documents(data, split), description=f"writing {split}")
            splits[split] = _write_split(folder / f"{split}.bin", texts, tokenizer)
            _require_text(data, split, splits[split]["tokens"])
            splits[split]["unknown"] = 0
            if tokenizer.unknown is not None:
                texts = progress.track(documents(data, split), description=f"counting unknown words of {split}")
                number, excess = _write_unknown(folder, split, texts, tokenizer)
                splits[split] |= {"unknown": number, "bytes": splits[split]["bytes"] + excess}
    log_sizes({split: facts["bytes"] for split, facts in splits.items()}, splits_cut_from_training(data))
    after = read_text(data)
    _warn_of_copies(keep_text(folder, after))
    _require_unchanged(before or after, after)
    _require_unchanged(after, read_text(data))  # nor while its content was read
    facts = {
        "format": FORMAT,
        "source": SOURCES[data.source].describe(data),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "splits": splits,
        "files": {name: file_checksums(folder / name) for name in file_names(tokenizer.name)},
        "fingerprint": fingerprint_of(folder / tokenizer.file, splits),
    }
    write_facts(folder / "corpus.json", facts)
    return facts["fingerprint"]


def _text_if_there(data: DataConfig) -> Text | None:
    """Returns the text; None where it is not there yet, because WikiText is prepared when its documents are read."""
    try:
        return read_text(data)
    except DataError:
        return None


def _warn_of_copies(text: Text) -> None:
    pairs = copies(text)
    if pairs:
        logger.warning(
            "data.train_path: %s has the content of %s, which is held out; such files: %d. "
            "A model that was trained on the text it is judged by looks better than it is: take the copies out.",
            *pairs[0],
            len(pairs),
        )


def _require_unchanged(before: Text, after: Text) -> None:
    if not same_entries(before, after):
        raise DataError(
            "corpus: got a text whose files changed while they were read, expected them to stay as they are. Prepare it "
            "again once nobody writes there."
        )


def _write_split(path: Path, texts: Iterable[Document], tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes the token file of one split; returns its tokens, bytes and documents, and the sha256 of the documents."""
    tokens = num_bytes = num_documents = 0
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for document in texts:
            for encoded in tokenizer.encode_pieces(_digested(document, digest.update)):
                file.write(encoded.astype(token_dtype(tokenizer.vocab_size)).tobytes())
                tokens += len(encoded)
                num_bytes += int(tokenizer.token_bytes[encoded].sum(dtype=np.int64))
            num_documents += 1
    return {"tokens": tokens, "bytes": num_bytes, "documents": num_documents, "sha256": digest.hexdigest()}


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


def _write_unknown(folder: Path, split: Split, texts: Iterable[Document], tokenizer: Tokenizer) -> tuple[int, int]:
    """Writes the bytes of every word that `<unk>` stands for; returns their number, and by how many bytes they are longer."""
    number = excess = 0
    path, dtype = folder / f"{split}.bin", token_dtype(tokenizer.vocab_size)
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


def _require_text(data: DataConfig, split: Split, tokens: int) -> None:
    source = SOURCES[data.source]
    if tokens == 0:
        raise DataError(
            f"{split} split of {source.describe(data)}: got 0 tokens, expected text. Give more of it, or change "
            f"{', '.join(f'data.{name}' for name in source.fields) or 'data.source'}."
        )
