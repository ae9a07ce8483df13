"""Corpora of format 1, which had no checksums: one that a run was begun with is taken over, or the run could not go on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from alibi_jax.data.facts import broken, file_checksums, write_facts
from alibi_jax.data.layout import FORMAT, file_names, fingerprint_of, token_dtype
from alibi_jax.data.splits import SPLITS
from alibi_jax.data.text import Text, keep_text
from alibi_jax.data.tokenizer import load_tokenizer
from alibi_jax.data.write import chunks


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("format") == 1 else {}


def can_take_over(folder: Path, fingerprint: str) -> bool:
    """Whether this is a corpus of format 1 with this fingerprint; not of words: which bytes the unknown ones had is lost."""
    facts = _facts(folder)
    return facts.get("fingerprint") == fingerprint and facts.get("tokenizer") in ("bytes", "bpe")


def take_over(earlier: Path, folder: Path) -> None:
    """Copies a corpus of format 1 and adds what it lacked, counted from its tokens. DataError where it is not whole."""
    facts, tokenizer = _facts(earlier), load_tokenizer(earlier)
    dtype, names, splits = token_dtype(tokenizer.vocab_size), file_names(tokenizer.name), facts.get("splits")
    try:
        kept = {
            split: (splits[split]["sha256"], splits[split]["documents"], splits[split]["tokens"]) for split in SPLITS
        }
        same = {name: facts[name] for name in ("source", "tokenizer", "vocab_size", "dtype", "fingerprint")}
        for name in names:
            shutil.copyfile(earlier / name, folder / name)
        computed = fingerprint_of(folder / tokenizer.file, splits)
    except (TypeError, KeyError, FileNotFoundError) as error:
        raise broken(earlier, f"a corpus of format 1 that lacks {error}", "a whole one") from error
    if computed != facts["fingerprint"]:
        raise broken(earlier, "a fingerprint that is not that of text and tokenizer", "the one they have")
    counted = {}
    for split, (sha256, documents, expected) in kept.items():
        size = (folder / f"{split}.bin").stat().st_size
        if expected == 0 or size != expected * dtype.itemsize:
            raise broken(earlier / f"{split}.bin", f"{size} bytes", f"{expected} tokens of {dtype.itemsize}")
        tokens = np.memmap(folder / f"{split}.bin", dtype, mode="r")
        if any(chunk.max() >= tokenizer.vocab_size for chunk in chunks(tokens)):
            raise broken(earlier / f"{split}.bin", "tokens past the vocabulary", f"tokens below {tokenizer.vocab_size}")
        num_bytes = sum(int(tokenizer.token_bytes[chunk].sum(dtype=np.int64)) for chunk in chunks(tokens))
        counts = {"tokens": len(tokens), "bytes": num_bytes, "documents": documents, "unknown": 0, "sha256": sha256}
        counted[split] = counts
    keep_text(folder, Text([], []))
    files = {name: file_checksums(folder / name) for name in names}
    write_facts(folder / "corpus.json", {"format": FORMAT, **same, "splits": counted, "files": files})
