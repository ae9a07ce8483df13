"""Writing a corpus: a tokenizer is learned, and each split is read, counted and written as tokens.

This takes at most PREPARING_MIB of memory, however long a file, a line or a decompressed gzip file is. Three things come on
top. One is the different words of the training text while `words` or `bpe` is learned, about 200 bytes each: they grow with the
variety of the text, not with its length. (For BPE's library up to 65,536 letters without space or punctuation between them are
one word, of about 40 bytes a letter.) Another is one example of a tfds data set. The third is the vocabulary of a tokenizer
from a file: 350 MiB while one of 250,880 tokens is read, 250 then.
"""

import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from alibi_jax.config import DataConfig
from alibi_jax.data.facts import file_checksums, write_facts
from alibi_jax.data.layout import FORMAT, file_names, fingerprint_of, token_dtype
from alibi_jax.data.sources import SOURCES, documents, splits_cut_from_training
from alibi_jax.data.splits import SPLITS, Split, log_sizes
from alibi_jax.data.stream import write_tokens, write_unknown
from alibi_jax.data.text import Text, copies, keep_text, read_text, same_entries
from alibi_jax.data.tokenizer import Tokenizer, make_tokenizer
from alibi_jax.errors import DataError

PREPARING_MIB = 384  # on top of the program itself; measured: 30 for bytes, 70 for words, 130 to 300 for BPE

logger = logging.getLogger("alibi_jax")


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
        splits = {split: _write_split(data, folder, split, tokenizer, progress) for split in SPLITS}
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


def _write_split(
    data: DataConfig, folder: Path, split: Split, tokenizer: Tokenizer, progress: Progress
) -> dict[str, Any]:
    """Writes the files of one split; returns what corpus.json keeps of it. DataError where it has no text."""
    texts = progress.track(documents(data, split), description=f"writing {split}")
    facts = write_tokens(folder / f"{split}.bin", texts, tokenizer)
    _require_text(data, split, facts["tokens"])
    if tokenizer.unknown is None:
        return facts | {"unknown": 0}
    texts = progress.track(documents(data, split), description=f"counting unknown words of {split}")
    number, excess = write_unknown(folder, split, texts, tokenizer)
    return facts | {"unknown": number, "bytes": facts["bytes"] + excess}


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


def _require_text(data: DataConfig, split: Split, tokens: int) -> None:
    source = SOURCES[data.source]
    if tokens == 0:
        raise DataError(
            f"{split} split of {source.describe(data)}: got 0 tokens, expected text. Give more of it, or change "
            f"{', '.join(f'data.{name}' for name in source.fields) or 'data.source'}."
        )
