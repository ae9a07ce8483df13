"""A prepared corpus: a folder with one memory-mapped token stream a split, its tokenizer and `corpus.json`.

`prepare` writes it aside and renames it into place, so what opens is always whole; `open_corpus` opens the one of the
text as it is now, or of the text that a run was begun with, and prepares it first when there is none.
"""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from alibi_jax.config import DataConfig
from alibi_jax.data.aside import move, preparing, writing, written_aside
from alibi_jax.data.earlier import can_take_over, take_over
from alibi_jax.data.facts import broken, check_file
from alibi_jax.data.layout import FORMAT, UNKNOWN_DTYPE, fingerprint_of, is_sha256, read_corpus_facts
from alibi_jax.data.sources import Split
from alibi_jax.data.text import difference, keep_text, kept_text, places, read_text, same_entries
from alibi_jax.data.tokenizer import Tokenizer, load_tokenizer
from alibi_jax.data.write import chunks, unknown_excess, write_corpus
from alibi_jax.errors import DataError

logger = logging.getLogger("alibi_jax")


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

    def num_bytes(self, split: Split, count: int | None = None) -> int:
        """UTF-8 bytes of the text that the first `count` tokens of a split stand for; None: all of them.

        A word outside the vocabulary counts as the bytes it was written with, not as those of `<unk>`.
        """
        sizes = self.tokenizer.token_bytes
        as_tokens = sum(int(sizes[chunk].sum(dtype=np.int64)) for chunk in chunks(self.tokens(split)[:count]))
        return as_tokens + unknown_excess(self.tokenizer, self._unknown_bytes(split, count))

    def num_unknown(self, split: Split, count: int | None = None) -> int:
        """How many of the first `count` tokens stand for words outside the vocabulary; a written `<unk>` does not."""
        return int(np.count_nonzero(self._unknown_bytes(split, count)))

    def _unknown_bytes(self, split: Split, count: int | None) -> Integer[np.ndarray, " k"]:
        """For each `<unk>` among the first `count` tokens the bytes of its word; 0 for a written `<unk>`."""
        if self.tokenizer.unknown is None:
            return np.zeros(0, UNKNOWN_DTYPE)
        kept = np.fromfile(self.folder / f"{split}.unknown.bin", UNKNOWN_DTYPE)
        unknown = self.tokenizer.unknown
        return kept[: sum(int(np.count_nonzero(chunk == unknown)) for chunk in chunks(self.tokens(split)[:count]))]


def _name(data: DataConfig) -> str:
    """<source>-<tokenizer>-<12 hex of the sha256 of every field that says which text and tokens>."""
    fields = dataclasses.asdict(data)
    del fields["directory"]
    del fields["tfds_manual_dir"]  # where the files of a data set lie does not change them
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return f"{data.source}-{data.tokenizer}-{digest[:12]}"


def corpus_folder(data: DataConfig, fingerprint: str) -> Path:
    """<directory>/<name of the config's fields>-<12 hex of the fingerprint>: another text has another folder."""
    return Path(data.directory) / f"{_name(data)}-{fingerprint[:12]}"


def corpus_folders(data: DataConfig) -> list[Path]:
    """The corpora there are for these fields: of the text as it is, as it was, and of other texts at the same path."""
    return sorted(Path(data.directory).glob(f"{_name(data)}-*"))


def open_corpus(data: DataConfig, fingerprint: str | None = None) -> Corpus:
    """The corpus of the configured text, prepared now when there is none. DataError when what is there is not whole.

    fingerprint: of the text a run was begun with. Its corpus is opened wherever it is there, also where the text has
    changed since or is gone, and a line of the log says so. None: the corpus of the text as it is now.
    """
    if is_sha256(fingerprint or "") and (folder := corpus_folder(data, fingerprint)).exists():
        _say_what_changed(data, folder)
        return _open(folder)
    earlier = Path(data.directory) / _name(data)
    if fingerprint and can_take_over(earlier, fingerprint):
        return _take_over(data, earlier, fingerprint)
    folder = _find(data)
    return _open(folder) if folder else prepare(data)


def _take_over(data: DataConfig, earlier: Path, fingerprint: str) -> Corpus:
    """The corpus of a run that an earlier version began: its text may have changed since, and cannot be compared."""
    directory, folder = _directory(data), corpus_folder(data, fingerprint)
    with preparing(directory), writing(directory), written_aside(directory, _name(data)) as aside:
        take_over(earlier, aside)
        move(aside, folder, False)
    logger.warning(
        "corpus: %s, of an earlier version, is taken over as %s, without knowledge of its text", earlier, folder
    )
    return _open(folder)


def prepare(data: DataConfig, *, force: bool = False, quiet: bool = False) -> Corpus:
    """Read the source, learn the tokenizer, write the corpus; the text's is opened, or replaced with `force`.

    Safe to run in several processes at once: each writes a folder of its own, and the first to rename it wins.
    """
    directory = _directory(data)
    folder = None if force else _find(data)
    if not folder:
        with preparing(directory):
            folder = None if force else _find(data)  # put right, or of a process that was first
            folder = folder or _prepare(data, directory, force, quiet)
    _keep_times(data, folder)
    return _open(folder)


def _prepare(data: DataConfig, directory: Path, force: bool, quiet: bool) -> Path:
    if not force:
        _say_why(data)
    with writing(directory), written_aside(directory, _name(data)) as aside:
        folder = corpus_folder(data, write_corpus(data, aside, quiet))
        move(aside, folder, force)
    return folder


def summary(corpus: Corpus) -> str:
    """One line for a terminal: the folder, the size of each split, how many of its words the vocabulary lacks."""
    splits = []
    for name, facts in corpus.facts["splits"].items():
        unknown = f" ({facts['unknown'] / facts['tokens']:.2%} unknown words)" if facts["unknown"] else ""
        splits.append(f"{name} {facts['tokens']:,} tokens{unknown}")
    vocabulary = f"vocabulary {corpus.tokenizer.vocab_size:,}"
    return f"{corpus.folder}: {', '.join(splits)}; {vocabulary}; {corpus.fingerprint[:12]}"


def verify(data: DataConfig) -> list[Corpus]:
    """Reads every byte of every corpus of these fields; DataError for the first that is not as it was written."""
    folders = corpus_folders(data)
    if not folders:
        raise DataError(
            f"data.directory: got no corpus {_name(data)} in {data.directory!r}, expected one to verify. Prepare it first."
        )
    for folder in folders:
        kept_text(folder, FORMAT)
    return [_open(folder, full=True) for folder in folders]


def _directory(data: DataConfig) -> Path:
    if "://" in data.directory:
        raise DataError(
            f"data.directory: got {data.directory!r}, expected a folder: token streams are mapped into memory. "
            "Pass --data.directory FOLDER."
        )
    return Path(data.directory)


def _find(data: DataConfig) -> Path | None:
    """The folder of the corpus that was prepared from the text as it is now; None where there is none."""
    folders = corpus_folders(data)
    if not folders:
        return None
    try:
        now = read_text(data)
    except DataError as error:
        return _without_text(data, folders, error)
    failed = None
    for folder in folders:
        try:
            if not difference(kept_text(folder, FORMAT), now):
                return folder
        except DataError as error:
            failed = error
    if failed:
        raise failed
    return None


def _without_text(data: DataConfig, folders: list[Path], error: DataError) -> Path:
    """The one corpus of a text that is no longer there, if it was at this very place; else the error."""
    if len(folders) > 1 or kept_text(folders[0], FORMAT).places != places(data):
        raise error
    logger.warning("corpus: %s is used, though its text could not be compared: %s", folders[0], error)
    return folders[0]


def _say_what_changed(data: DataConfig, folder: Path) -> None:
    try:
        kept = kept_text(folder, FORMAT)
        if not kept.files:
            logger.info("corpus: %s is used, whose text an earlier version did not keep: it is not compared", folder)
            return
        same = same_entries(kept, read_text(data))
    except DataError as error:
        logger.warning(
            "corpus: %s, which the run was begun with, could not be compared with its text: %s", folder, error
        )
        return
    if not same:
        logger.warning("corpus: %s is used, which the run was begun with; its text was edited or touched since", folder)


def _say_why(data: DataConfig) -> None:
    """A line of the log where there is a corpus, but none that serves."""
    earlier = Path(data.directory) / _name(data)
    if earlier.exists():
        logger.info(
            "corpus: %s is of an earlier version, without checksums: its text is prepared again; then it may be removed",
            earlier,
        )
    for folder in corpus_folders(data):
        kept = kept_text(folder, FORMAT)
        if not kept.files:  # taken over: it may well be of this text
            continue
        change = difference(kept, read_text(data))
        logger.info(
            "corpus: %s is of another text (%s): this one is prepared, too; runs of the other need it", folder, change
        )


def _keep_times(data: DataConfig, folder: Path) -> None:
    """Keeps where the text is and its times, where only these changed: its content need not be read at every opening."""
    try:
        now = read_text(data)
        if same_entries(kept_text(folder, FORMAT), now):
            return
        keep_text(folder, FORMAT, now)
    except (DataError, OSError) as error:
        logger.info("corpus: the times of the text were not kept in %s: %s", folder, error)


def _open(folder: Path, *, full: bool = False) -> Corpus:
    """The corpus in a folder, its files compared with their checksums, all of each with `full`. DataError: not whole."""
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
