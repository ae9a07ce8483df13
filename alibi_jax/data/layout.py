"""The contents of the folder of a corpus: the names of its files, and corpus.json with its kinds and ranges."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from alibi_jax.data.facts import broken, has_kinds, num_blocks, read_facts
from alibi_jax.data.splits import SPLITS
from alibi_jax.data.tokenizer import TOKENIZERS

FORMAT = 2  # of corpus.json, text.json and the token files; raise it when they change
UNKNOWN_DTYPE = "<u4"  # of <split>.unknown.bin: for each <unk> in the stream, bytes of the word it stands for
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


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the type of a token on disk: uint16 where it can count the vocabulary, else uint32."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


def fingerprint_of(tokenizer_file: Path, splits: dict[str, Any]) -> str:
    """Returns the sha256 of text and tokenizer: of the tokenizer's file and of every split's documents."""
    digests = [hashlib.sha256(tokenizer_file.read_bytes()).hexdigest(), *(splits[name]["sha256"] for name in SPLITS)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def is_sha256(text: str) -> bool:
    """Returns whether a text is 64 lower-case hexadecimal digits."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def read_corpus_facts(folder: Path) -> dict[str, Any]:
    """Returns the facts of corpus.json, each of the kind and range it has to be."""
    path = folder / "corpus.json"
    facts = read_facts(path, FORMAT)
    if not has_kinds(facts, KINDS) or facts["tokenizer"] not in TOKENIZERS or not is_sha256(facts["fingerprint"]):
        raise broken(path, "facts of other names or kinds", f"{', '.join(KINDS)} of a prepared corpus")
    if facts["vocab_size"] < 1 or facts["dtype"] != token_dtype(facts["vocab_size"]).str:
        raise broken(
            path, f"tokens {facts['dtype']!r} of a vocabulary of {facts['vocab_size']}", "the dtype that fits it"
        )
    splits, files = facts["splits"], facts["files"]
    if splits.keys() != set(SPLITS) or not all(has_kinds(split, SPLIT_KINDS) for split in splits.values()):
        raise broken(path, "splits of other names or kinds", f"{', '.join(SPLIT_KINDS)} of {', '.join(SPLITS)}")
    if not all(map(_is_split, splits.values())):
        raise broken(path, "a split without a sha256, tokens or bytes", "those of each split")
    names = file_names(facts["tokenizer"])
    if files.keys() != set(names) or not all(map(_is_file, files.values())):
        raise broken(path, "files of other names or kinds", f"size and checksums of {', '.join(names)}")
    for split in SPLITS:
        size = splits[split]["tokens"] * np.dtype(facts["dtype"]).itemsize
        if files[f"{split}.bin"]["bytes"] != size:
            raise broken(path, f"{split}.bin of {files[f'{split}.bin']['bytes']} bytes", f"{size} for its tokens")
    return facts


def _is_split(facts: dict[str, Any]) -> bool:
    least = facts["tokens"] > 0 and facts["bytes"] > 0 and facts["documents"] >= 0
    return least and 0 <= facts["unknown"] <= facts["tokens"] and is_sha256(facts["sha256"])


def _is_file(facts: Any) -> bool:
    if not has_kinds(facts, {"bytes": int, "crc32": list}) or not all(type(value) is int for value in facts["crc32"]):
        return False
    return facts["bytes"] >= 0 and len(facts["crc32"]) == num_blocks(facts["bytes"])


def file_names(tokenizer: str) -> list[str]:
    """Returns the names of the files of a corpus beside corpus.json and text.json."""
    names = [f"{split}.bin" for split in SPLITS]
    unknown = [f"{split}.unknown.bin" for split in SPLITS if TOKENIZERS[tokenizer].has_unknown]
    return [TOKENIZERS[tokenizer].file, *names, *unknown]
