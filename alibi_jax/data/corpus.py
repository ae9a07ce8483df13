"""A prepared corpus: a folder with one memory-mapped token stream a split, its tokenizer and `corpus.json`.

`prepare` writes it aside and renames it into place, so what opens is always whole; `open_corpus` opens the one of the
text as it is now, or of the text that a run was begun with, and prepares it first when there is none.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from alibi_jax.config import DataConfig
from alibi_jax.data.aside import move, preparing, writing, written_aside
from alibi_jax.data.earlier import can_take_over, take_over
from alibi_jax.data.facts import broken, check_file
from alibi_jax.data.layout import UNKNOWN_DTYPE, fingerprint_of, is_sha256, read_corpus_facts
from alibi_jax.data.lookup import find_corpus, keep_times, log_change, log_others
from alibi_jax.data.names import corpus_folder, corpus_folders, corpus_name, earlier_name, folder_of_run
from alibi_jax.data.splits import Split
from alibi_jax.data.stream import chunks, num_bytes, unknown_excess
from alibi_jax.data.text import kept_text
from alibi_jax.data.tokenizer import Tokenizer, load_tokenizer
from alibi_jax.data.write import write_corpus
from alibi_jax.errors import DataError

logger = logging.getLogger("alibi_jax")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus that is whole. `facts` are those of corpus.json; `fingerprint` is the sha256 of text and tokenizer."""

    folder: Path
    tokenizer: Tokenizer
    fingerprint: str
    facts: dict[str, Any]

    def tokens(self, split: Split) -> Integer[np.ndarray, " n"]:
        """Returns the token stream of a split, a read-only map of its file (uint16, or uint32 for V > 65,536)."""
        return np.memmap(self.folder / f"{split}.bin", self.facts["dtype"], mode="r")

    def num_bytes(self, split: Split, count: int | None = None) -> int:
        """Returns the UTF-8 bytes of the text that the first `count` tokens of a split stand for; None: all of them.

        A word outside the vocabulary counts as the bytes it was written with, not as those of `<unk>`.
        """
        excess = unknown_excess(self.tokenizer, self._unknown_bytes(split, count))
        return num_bytes(self.tokenizer, self.tokens(split)[:count]) + excess

    def num_unknown(self, split: Split, count: int | None = None) -> int:
        """Returns how many of the first `count` tokens stand for words outside the vocabulary; a written `<unk>` does not."""
        return int(np.count_nonzero(self._unknown_bytes(split, count)))

    def _unknown_bytes(self, split: Split, count: int | None) -> Integer[np.ndarray, " k"]:
        """Returns for each `<unk>` among the first `count` tokens the bytes of its word; 0 for a written `<unk>`."""
        if self.tokenizer.unknown is None:
            return np.zeros(0, UNKNOWN_DTYPE)
        kept = np.fromfile(self.folder / f"{split}.unknown.bin", UNKNOWN_DTYPE)
        unknown = self.tokenizer.unknown
        return kept[: sum(int(np.count_nonzero(chunk == unknown)) for chunk in chunks(self.tokens(split)[:count]))]


def open_corpus(data: DataConfig, fingerprint: str | None = None) -> Corpus:
    """Returns the corpus of the configured text, prepared now when there is none. DataError when what is there is not whole.

    fingerprint: of the text a run was begun with. Its corpus is opened wherever it is there, also where the text has
    changed since or is gone, and a line of the log says so. None: the corpus of the text as it is now.
    """
    if is_sha256(fingerprint or "") and (folder := folder_of_run(data, fingerprint)).exists():
        log_change(data, folder)
        return _open(folder)
    earlier = Path(data.directory) / earlier_name(data)
    if fingerprint and can_take_over(earlier, fingerprint):
        return _take_over(data, earlier, fingerprint)
    folder = find_corpus(data)
    return _open(folder) if folder else prepare(data)


def _take_over(data: DataConfig, earlier: Path, fingerprint: str) -> Corpus:
    """Returns the corpus of a run that an earlier version began: its text may have changed since, and cannot be compared."""
    directory = _directory(data)
    folder = corpus_folder(data, fingerprint)
    with preparing(directory), writing(directory), written_aside(directory, corpus_name(data)) as aside:
        take_over(earlier, aside)
        move(aside, folder, False)
    logger.warning(
        "corpus: %s, of an earlier version, is taken over as %s, without knowledge of its text", earlier, folder
    )
    return _open(folder)


def prepare(data: DataConfig, *, force: bool = False, quiet: bool = False) -> Corpus:
    """Reads the source, learns the tokenizer and writes the corpus; opens one that is there, or replaces it with `force`.

    Safe to run in several processes at once: each writes a folder of its own, and the first to rename it wins.
    """
    directory = _directory(data)
    folder = None if force else find_corpus(data)
    if not folder:
        with preparing(directory):
            folder = None if force else find_corpus(data)  # repaired, or of a process that was first
            folder = folder or _prepare(data, directory, force, quiet)
    keep_times(data, folder)
    return _open(folder)


def _prepare(data: DataConfig, directory: Path, force: bool, quiet: bool) -> Path:
    if not force:
        log_others(data)
    with writing(directory), written_aside(directory, corpus_name(data)) as aside:
        folder = corpus_folder(data, write_corpus(data, aside, quiet))
        move(aside, folder, force)
    return folder


def summary(corpus: Corpus) -> str:
    """Returns one line for a terminal: the folder, the size of each split, how many of its words the vocabulary lacks."""
    splits = []
    for name, facts in corpus.facts["splits"].items():
        unknown = f" ({facts['unknown'] / facts['tokens']:.2%} unknown words)" if facts["unknown"] else ""
        splits.append(f"{name} {facts['tokens']:,} tokens{unknown}")
    vocabulary = f"vocabulary {corpus.tokenizer.vocab_size:,}"
    return f"{corpus.folder}: {', '.join(splits)}; {vocabulary}; {corpus.fingerprint[:12]}"


def verify(data: DataConfig) -> list[Corpus]:
    """Returns the corpora of these fields, every byte of them read; DataError for the first that is not as it was written."""
    folders = corpus_folders(data)
    if not folders:
        raise DataError(
            f"data.directory: got no corpus {corpus_name(data)} in {data.directory!r}, expected one to verify. "
            "Prepare it first."
        )
    for folder in folders:
        kept_text(folder)
    return [_open(folder, full=True) for folder in folders]


def _directory(data: DataConfig) -> Path:
    if "://" in data.directory:
        raise DataError(
            f"data.directory: got {data.directory!r}, expected a folder: token streams are mapped into memory. "
            "Pass --data.directory FOLDER."
        )
    return Path(data.directory)


def _open(folder: Path, *, full: bool = False) -> Corpus:
    """Returns the corpus in a folder; DataError where its files lack their checksums, of which `full` compares all."""
    facts = read_corpus_facts(folder)
    for name, expected in facts["files"].items():
        check_file(folder / name, expected, full=full)
    tokenizer = load_tokenizer(folder)
    if (tokenizer.name, tokenizer.vocab_size) != (facts["tokenizer"], facts["vocab_size"]):
        raise broken(
            folder,
            f"a {tokenizer.name} tokenizer of {tokenizer.vocab_size} tokens",
            f"{facts['tokenizer']} of {facts['vocab_size']}",
        )
    if fingerprint_of(folder / tokenizer.file, facts["splits"]) != facts["fingerprint"]:
        raise broken(
            folder / "corpus.json", "a fingerprint that is not that of text and tokenizer", "the one they have"
        )
    return Corpus(folder, tokenizer, facts["fingerprint"], facts)
