"""A prepared corpus: a folder with one memory-mapped token stream a split, its tokenizer and `corpus.json`.

`prepare` writes it aside and renames it into place, so what opens is always whole; `open_corpus` opens the one of the
text as it is now, or of the text that a run was begun with, and prepares it first when there is none.
"""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from alibi_jax.config import DataConfig
from alibi_jax.data.aside import move, preparing, writing, written_aside
from alibi_jax.data.document import Document
from alibi_jax.data.facts import BLOCK, broken, check_file, file_checksums, has_kinds, read_facts, write_facts
from alibi_jax.data.sources import SPLITS, DataError, Split, describe, documents, tell_sizes
from alibi_jax.data.text import Text, difference, keep_text, kept_text, places, read_text, same_entries
from alibi_jax.data.tokenizer import TOKENIZERS, Tokenizer, load_tokenizer, make_tokenizer

FORMAT = 2  # of corpus.json, text.json and the token files; raise it when they change
UNKNOWN_DTYPE = "<u4"  # of <split>.unknown.bin: for each <unk> in the stream, bytes of the word it stands for
UNKNOWN_CHUNK = 2**20  # of them are held at once
KINDS = {
    "format": int,
    "source": str,
    "tokenizer": str,
    "vocab_size": int,
    "dtype": str,
    "splits": dict,
    "files": dict,
    "fingerprint": str,
}
SPLIT_KINDS = {"tokens": int, "bytes": int, "documents": int, "unknown": int, "sha256": str}

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
        tokens, unknown = self.tokens(split)[:count], self._unknown_bytes(split, count)
        return int(self.tokenizer.token_bytes[tokens].sum(dtype=np.int64)) + _excess(self.tokenizer, unknown)

    def num_unknown(self, split: Split, count: int | None = None) -> int:
        """How many of the first `count` tokens stand for words outside the vocabulary; a written `<unk>` does not."""
        return int(np.count_nonzero(self._unknown_bytes(split, count)))

    def _unknown_bytes(self, split: Split, count: int | None) -> Integer[np.ndarray, " k"]:
        """For each `<unk>` among the first `count` tokens the bytes of its word; 0 for a written `<unk>`."""
        if self.tokenizer.unknown is None:
            return np.zeros(0, UNKNOWN_DTYPE)
        kept = np.fromfile(self.folder / f"{split}.unknown.bin", UNKNOWN_DTYPE)
        return kept[: np.count_nonzero(self.tokens(split)[:count] == self.tokenizer.unknown)]


def _excess(tokenizer: Tokenizer, unknown: Integer[np.ndarray, " k"]) -> int:
    """Bytes that unknown words have more, or less, than the `<unk>` that stands for them."""
    lengths = unknown[unknown > 0].astype(np.int64)
    return int(lengths.sum()) - len(lengths) * int(tokenizer.token_bytes[tokenizer.unknown]) if len(lengths) else 0


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
    if _is_sha256(fingerprint or "") and (folder := corpus_folder(data, fingerprint)).exists():
        _say_what_changed(data, folder)
        return _open(folder)
    found = _find(data)
    return _open(found) if found else prepare(data)


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
        folder = corpus_folder(data, _write(data, aside, quiet))
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
        same = same_entries(kept_text(folder, FORMAT), read_text(data))
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
        change = difference(kept_text(folder, FORMAT), read_text(data))
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


def _write(data: DataConfig, folder: Path, quiet: bool) -> str:
    """Writes a corpus into a folder; returns its fingerprint. DataError where the text changes meanwhile."""
    before = _text_if_there(data)
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
            splits[split]["unknown"] = 0
            if tokenizer.unknown is not None:
                texts = progress.track(documents(data, split), description=f"counting unknown words of {split}")
                number, excess = _write_unknown(folder, split, texts, tokenizer)
                splits[split] |= {"unknown": number, "bytes": splits[split]["bytes"] + excess}
    tell_sizes(data, {split: facts["bytes"] for split, facts in splits.items()})
    after = read_text(data)
    keep_text(folder, FORMAT, after)
    _require_unchanged(before or after, after)
    _require_unchanged(after, read_text(data))  # nor while its content was read
    facts = {
        "format": FORMAT,
        "source": describe(data),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "dtype": _dtype(tokenizer.vocab_size).str,
        "splits": splits,
        "files": {name: file_checksums(folder / name) for name in _file_names(tokenizer.name)},
        "fingerprint": _fingerprint(folder / tokenizer.file, splits),
    }
    write_facts(folder / "corpus.json", facts)
    return facts["fingerprint"]


def _text_if_there(data: DataConfig) -> Text | None:
    """None where the text is not there yet: WikiText is prepared when its documents are read."""
    try:
        return read_text(data)
    except DataError:
        return None


def _require_unchanged(before: Text, after: Text) -> None:
    if not same_entries(before, after):
        raise DataError(
            "corpus: got a text whose files changed while they were read, expected them to stay as they are. Prepare it "
            "again once nobody writes there."
        )


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


def _write_split(path: Path, texts: Iterable[Document], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write the token file of one split; how many tokens, bytes and documents, and the sha256 of the documents."""
    tokens = num_bytes = num_documents = 0
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for document in texts:
            for encoded in tokenizer.encode_pieces(_digested(document, digest)):
                file.write(encoded.astype(_dtype(tokenizer.vocab_size)).tobytes())
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


def _write_unknown(folder: Path, split: Split, texts: Iterable[Document], tokenizer: Tokenizer) -> tuple[int, int]:
    """Writes the bytes of every word that `<unk>` stands for; how many there are, and the bytes they have more than it."""
    number = excess = 0
    tokens = np.memmap(folder / f"{split}.bin", _dtype(tokenizer.vocab_size), mode="r")
    starts = range(0, len(tokens), UNKNOWN_CHUNK)
    any_unknown = any((tokens[start : start + UNKNOWN_CHUNK] == tokenizer.unknown).any() for start in starts)
    lengths = chain.from_iterable(map(tokenizer.unknown_bytes, texts)) if any_unknown else iter(())
    with open(folder / f"{split}.unknown.bin", "wb") as file:
        while (chunk := np.fromiter(islice(lengths, UNKNOWN_CHUNK), UNKNOWN_DTYPE)).size:
            file.write(chunk.tobytes())
            number += int(np.count_nonzero(chunk))
            excess += _excess(tokenizer, chunk)
    return number, excess


def _require_text(data: DataConfig, split: Split, tokens: int) -> None:
    if tokens == 0:
        raise DataError(
            f"{split} split of {describe(data)}: got 0 tokens, expected text. Give more of it, or set "
            f"data.{split}_path (files) or data.tfds_splits (tfds)."
        )


def _open(folder: Path, *, full: bool = False) -> Corpus:
    """The corpus in a folder, its files compared with their checksums, all of each with `full`. DataError: not whole."""
    facts = _read_corpus(folder)
    for name, expected in facts["files"].items():
        check_file(folder / name, expected, full=full)
    tokenizer = load_tokenizer(folder)
    if (tokenizer.name, tokenizer.vocab_size) != (facts["tokenizer"], facts["vocab_size"]):
        raise broken(
            folder,
            f"a {tokenizer.name} tokenizer of {tokenizer.vocab_size} tokens",
            f"{facts['tokenizer']} of {facts['vocab_size']}",
        )
    if _fingerprint(folder / tokenizer.file, facts["splits"]) != facts["fingerprint"]:
        raise broken(
            folder / "corpus.json", "a fingerprint that is not that of text and tokenizer", "the one they have"
        )
    return Corpus(folder, tokenizer, facts["fingerprint"], facts)


def _fingerprint(tokenizer_file: Path, splits: dict[str, Any]) -> str:
    digests = [hashlib.sha256(tokenizer_file.read_bytes()).hexdigest(), *(splits[name]["sha256"] for name in SPLITS)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _read_corpus(folder: Path) -> dict[str, Any]:
    """The facts of corpus.json, each of the kind and range it has to be."""
    path = folder / "corpus.json"
    facts = read_facts(path, FORMAT)
    if not has_kinds(facts, KINDS) or facts["tokenizer"] not in TOKENIZERS or not _is_sha256(facts["fingerprint"]):
        raise broken(path, "facts of other names or kinds", f"{', '.join(KINDS)} of a prepared corpus")
    if facts["vocab_size"] < 1 or facts["dtype"] != _dtype(facts["vocab_size"]).str:
        raise broken(
            path, f"tokens {facts['dtype']!r} of a vocabulary of {facts['vocab_size']}", "the dtype that fits it"
        )
    splits, files = facts["splits"], facts["files"]
    if splits.keys() != set(SPLITS) or not all(has_kinds(split, SPLIT_KINDS) for split in splits.values()):
        raise broken(path, "splits of other names or kinds", f"{', '.join(SPLIT_KINDS)} of {', '.join(SPLITS)}")
    if not all(map(_is_split, splits.values())):
        raise broken(path, "a split without a sha256, tokens or bytes", "those of each split")
    names = _file_names(facts["tokenizer"])
    if files.keys() != set(names) or not all(map(_is_file, files.values())):
        raise broken(path, "files of other names or kinds", f"size and checksums of {', '.join(names)}")
    for split in SPLITS:
        size = splits[split]["tokens"] * np.dtype(facts["dtype"]).itemsize
        if files[f"{split}.bin"]["bytes"] != size:
            raise broken(path, f"{split}.bin of {files[f'{split}.bin']['bytes']} bytes", f"{size} for its tokens")
    return facts


def _is_split(facts: dict[str, Any]) -> bool:
    least = facts["tokens"] > 0 and facts["bytes"] > 0 and facts["documents"] >= 0
    return least and 0 <= facts["unknown"] <= facts["tokens"] and _is_sha256(facts["sha256"])


def _is_file(facts: Any) -> bool:
    if not has_kinds(facts, {"bytes": int, "crc32": list}) or not all(type(value) is int for value in facts["crc32"]):
        return False
    return facts["bytes"] >= 0 and len(facts["crc32"]) == -(-facts["bytes"] // BLOCK)


def _file_names(tokenizer: str) -> list[str]:
    """The files of a corpus beside corpus.json and text.json."""
    names = [f"{split}.bin" for split in SPLITS]
    return [TOKENIZERS[tokenizer].file, *names, *(f"{split}.unknown.bin" for split in SPLITS if tokenizer == "words")]
