"""How the folders of prepared corpora are named: <source>-<tokenizer>-<fields that both use>-<fingerprint>."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from alibi_jax.config import DataConfig
from alibi_jax.data.sources import SOURCES
from alibi_jax.data.tokenizer import TOKENIZERS

# Before November 27, 2026 all of these named a folder, used or not: a field that was not used had this value. None is added.
EARLIER_FIELDS = {
    "source": "stdlib",
    "train_path": "",
    "valid_path": "",
    "test_path": "",
    "tfds_name": "",
    "tfds_dir": "",
    "tfds_text": "text",
    "tfds_splits": ("train", "validation", "test"),
    "tokenizer": "bytes",
    "bpe_vocab_size": 1024,
}


def _used_fields(data: DataConfig) -> dict[str, Any]:
    values = dataclasses.asdict(data)
    used = ("source", "tokenizer", *SOURCES[data.source].fields)
    return {name: values[name] for name in used} | TOKENIZERS[data.tokenizer].identity(data)


def _name(data: DataConfig, fields: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return f"{data.source}-{data.tokenizer}-{digest[:12]}"


def corpus_name(data: DataConfig) -> str:
    """Returns <source>-<tokenizer>-<12 hex digits of the sha256 of every field that says which text and tokens>."""
    return _name(data, _used_fields(data))


def earlier_name(data: DataConfig) -> str:
    """Returns the name of the same corpus before November 27, 2026; one that has it is opened, or replaced, under it."""
    return _name(data, EARLIER_FIELDS | _used_fields(data))


def corpus_folders(data: DataConfig) -> list[Path]:
    """Returns the corpora of these fields: of the text as it is, as it was, and of other texts at the same path.

    Those of an earlier name come last.
    """
    names = corpus_name(data), earlier_name(data)
    return [folder for name in names for folder in sorted(Path(data.directory).glob(f"{name}-*"))]


def folder_of_run(data: DataConfig, fingerprint: str) -> Path:
    """Returns the folder of the corpus that a run was begun with, by its fingerprint; it may not be there.

    The name of one with somebody's tokenizer depends on a file that may be edited or gone since: the fingerprint decides.
    """
    if data.tokenizer != "file":
        return corpus_folder(data, fingerprint)
    pattern = f"{data.source}-file-*-{fingerprint[:12]}"
    return min(Path(data.directory).glob(pattern), default=Path(data.directory) / pattern)


def corpus_folder(data: DataConfig, fingerprint: str) -> Path:
    """Returns <directory>/<corpus_name>-<12 hex digits of the fingerprint>; where only an earlier name is there, that one."""
    names = corpus_name(data), earlier_name(data)
    folders = [Path(data.directory) / f"{name}-{fingerprint[:12]}" for name in names]
    return next((folder for folder in folders if folder.exists()), folders[0])
