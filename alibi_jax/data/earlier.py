"""Corpora of format 1, which had no checksums: one that a run was begun with is taken over, so that the run can go on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from alibi_jax.data.facts import broken, file_checksums, write_facts
from alibi_jax.data.layout import FORMAT, file_names, fingerprint_of, token_dtype
from alibi_jax.data.splits import SPLITS
from alibi_jax.data.stream import chunks, num_bytes
from alibi_jax.data.text import Text, keep_text
from alibi_jax.data.tokenizer import Tokenizer, load_tokenizer

SPLIT_FACTS = ("tokens", "documents", "sha256")  # that format 1 had of each split, too


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("format") == 1 else {}


def can_take_over(folder: Path, fingerprint: str) -> bool:
    """Returns whether this is a corpus of format 1 with this fingerprint; not of words: bytes of unknown ones are lost."""
    facts = _facts(folder)
    return facts.get("fingerprint") == fingerprint and facts.get("tokenizer") in ("bytes", "bpe")


def take_over(earlier: Path, folder: Path) -> None:
    """Copies a corpus of format 1 and adds what it lacked, counted from its tokens. DataError where it is not whole."""
    facts = _facts(earlier)
    tokenizer = load_tokenizer(earlier)
    names = file_names(tokenizer.name)
    try:
        kept = {split: {name: facts["splits"][split][name] for name in SPLIT_FACTS} for split in SPLITS}
        same = {name: facts[name] for name in ("source", "tokenizer", "vocab_size", "dtype", "fingerprint")}
        for name in names:
            shutil.copyfile(earlier / name, folder / name)
        computed = fingerprint_of(folder / tokenizer.file, kept)
    except (TypeError, KeyError, FileNotFoundError) as error:
        raise broken(earlier, f"a corpus of format 1 that lacks {error}", "a whole one") from error
    if computed != facts["fingerprint"]:
        raise broken(earlier, "a fingerprint that is not that of text and tokenizer", "the one they have")
    for split, counts in kept.items():
        tokens = _tokens(earlier / f"{split}.bin", tokenizer, counts["tokens"])
        kept[split] = counts | {"bytes": num_bytes(tokenizer, tokens), "unknown": 0}
    keep_text(folder, Text([], []))
    files = {name: file_checksums(folder / name) for name in names}
    write_facts(folder / "corpus.json", {"format": FORMAT, **same, "splits": kept, "files": files})


def _tokens(path: Path, tokenizer: Tokenizer, expected: int) -> Integer[np.ndarray, " n"]:
    """Returns the tokens of a file; DataError unless there are `expected` ones, all in the vocabulary."""
    dtype = token_dtype(tokenizer.vocab_size)
    size = path.stat().st_size
    if expected == 0 or size != expected * dtype.itemsize:
        raise broken(path, f"{size} bytes", f"{expected} tokens of {dtype.itemsize}")
    tokens = np.memmap(path, dtype, mode="r")
    if any(chunk.max() >= tokenizer.vocab_size for chunk in chunks(tokens)):
        raise broken(path, "tokens past the vocabulary", f"tokens below {tokenizer.vocab_size}")
    return tokens
