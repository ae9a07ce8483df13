"""A prepared corpus: a folder with one memory-mapped token stream a split, its tokenizer and `corpus.json`.

`prepare` writes it aside and renames it into place, so what opens is always whole; `open_corpus` opens it and prepares
it first when there is none.
"""

import dataclasses
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document
from alibi_jax.data.sources import SPLITS, DataError, Split, describe, documents, tell_sizes
from alibi_jax.data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer

FORMAT = 1  # of corpus.json and the token files; raise it when they change
CHECKED_TOKENS = 1_000_000  # at each end of a stream, ids are compared with the vocabulary when it is opened


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus that is whole. `facts` is what corpus.json says; `fingerprint` is the sha256 of text and tokenizer."""

    folder: Path
    tokenizer: Tokenizer
    fingerprint: str
    facts: dict[str, Any]

    def tokens(self, split: Split) -> Integer[np.ndarray, " n"]:
        """The token stream of a split, a read-only map of its file (uint16, or uint32 for V > 65,536)."""
        return np.memmap(self.folder / f"{split}.bin", self.facts["dtype"], mode="r")

    def num_bytes(self, tokens: Integer[np.ndarray, "..."]) -> int:
        """UTF-8 bytes of the text that these tokens stand for."""
        return int(self.tokenizer.token_bytes[tokens].sum(dtype=np.int64))


def corpus_folder(data: DataConfig) -> Path:
    """<directory>/<source>-<tokenizer>-<12 hex of the sha256 of every field that says which text and tokens>."""
    fields = dataclasses.asdict(data)
    directory = Path(fields.pop("directory"))
    del fields["tfds_manual_dir"]  # where the files of a data set lie does not change them
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return directory / f"{data.source}-{data.tokenizer}-{digest[:12]}"


def open_corpus(data: DataConfig) -> Corpus:
    """The prepared corpus of this config, prepared now when missing. DataError when what is there is not whole."""
    folder = corpus_folder(data)
    return _open(folder) if folder.exists() else prepare(data)


def prepare(data: DataConfig, *, force: bool = False, quiet: bool = False) -> Corpus:
    """Read the source, learn the tokenizer, write the corpus; one that is there is opened, or replaced with `force`.

    Safe to run in several processes at once: each writes a folder of its own, and the first to rename it wins.
    """
    folder = corpus_folder(data)
    if folder.exists() and not force:
        return _open(folder)
    with _written_aside(folder, force) as aside:
        _write(data, aside, quiet)
    return _open(folder)


@contextmanager
def _written_aside(folder: Path, force: bool) -> Iterator[Path]:
    """A new hidden sibling of `folder`, synced and renamed to it at the end, removed when anything is raised."""
    aside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            f"data.directory: got {str(folder.parent)!r} ({error.strerror}), expected a folder that can be written. "
            "Pass --data.directory FOLDER."
        ) from error
    try:
        yield aside
        for path in (*aside.iterdir(), aside):
            _sync(path)
        _move(aside, folder, force)
        _sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(aside: Path, folder: Path, force: bool) -> None:
    """Rename `aside` to `folder`. Where another process was first, its corpus stays (it is the same text)."""
    old = aside.with_name(f"{aside.name}-old")
    if force and folder.exists():
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write(data: DataConfig, folder: Path, quiet: bool) -> None:
    said = TextColumn("{task.description}: {task.completed:,} documents")
    columns = (
        SpinnerColumn(),
        said,
        BarColumn(),
        TimeElapsedColumn(),
    )  # the bar pulses: no source says beforehand how much it holds
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        train = progress.track(documents(data, "train"), description=f"learning the {data.tokenizer} tokenizer")
        tokenizer = make_tokenizer(data, train)
        tokenizer.save(folder)
        splits = {}
        for split in SPLITS:
            texts = progress.track(documents(data, split), description=f"writing {split}")
            splits[split] = _write_split(folder / f"{split}.bin", texts, tokenizer)
            _require_text(data, split, splits[split]["tokens"])
    tell_sizes(data, {split: facts["bytes"] for split, facts in splits.items()})
    digests = [hashlib.sha256((folder / tokenizer.file).read_bytes()).hexdigest()]
    digests += [facts["sha256"] for facts in splits.values()]
    facts = {
        "format": FORMAT,
        "source": describe(data),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": _dtype(tokenizer).str,
        "splits": splits,
        "fingerprint": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 65_536 else "<u4")


def _write_split(path: Path, texts: Iterable[Document], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write the token file of one split; how many tokens, bytes and documents, and the sha256 of the documents."""
    tokens = num_bytes = num_documents = 0
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for document in texts:
            for encoded in tokenizer.encode_pieces(_digested(document, digest)):
                file.write(encoded.astype(_dtype(tokenizer)).tobytes())
                tokens += len(encoded)
                num_bytes += int(tokenizer.token_bytes[encoded].sum(dtype=np.int64))
            num_documents += 1
    return {"tokens": tokens, "bytes": num_bytes, "documents": num_documents, "sha256": digest.hexdigest()}


def _digested(document: Document, digest: "hashlib._Hash") -> Iterator[str]:
    """The pieces of a document, each added to the digest; its length comes first, or moved boundaries would not show."""
    length = document.num_bytes()
    digest.update(b"%d\n" % length)
    for piece in document:
        content = piece.encode("utf-8")
        digest.update(content)
        length -= len(content)
        yield piece
    if length != 0:
        raise DataError(
            f"{document.name}: got a text that changed while it was read, expected one that stays. Try again."
        )


def _require_text(data: DataConfig, split: Split, tokens: int) -> None:
    if tokens == 0:
        raise DataError(
            f"{split} split of {describe(data)}: got 0 tokens, expected text. Give more of it, or set "
            f"data.{split}_path (files) or data.tfds_splits (tfds)."
        )


def _open(folder: Path) -> Corpus:
    facts = _read_facts(folder / "corpus.json")
    corpus = Corpus(folder, load_tokenizer(folder), facts["fingerprint"], facts)
    if corpus.tokenizer.vocab_size != facts["vocab_size"]:
        raise _broken(folder, f"a tokenizer of {corpus.tokenizer.vocab_size} tokens", f"{facts['vocab_size']}")
    for split in SPLITS:
        path, size = folder / f"{split}.bin", facts["splits"][split]["tokens"] * np.dtype(facts["dtype"]).itemsize
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise _broken(path, "no such file" if found is None else f"{found} bytes", f"{size} bytes")
        tokens = corpus.tokens(split)
        largest = max(tokens[:CHECKED_TOKENS].max(), tokens[-CHECKED_TOKENS:].max())
        if largest >= facts["vocab_size"]:
            raise _broken(path, f"token {largest}", f"tokens below the vocabulary of {facts['vocab_size']}")
    return corpus


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, f"a file that cannot be read ({error})", "the facts of a prepared corpus") from error
    known = {"format", "source", "tokenizer", "vocab_size", "dtype", "splits", "fingerprint"}
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or set(facts) != known:
        raise _broken(path, "facts of another format", f"format {FORMAT} with {', '.join(sorted(known))}")
    return facts


def _broken(path: Path, got: str, expected: str) -> DataError:
    return DataError(f"{path}: got {got}, expected {expected}. Prepare the corpus again with --force.")
