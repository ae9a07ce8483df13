"""The splits of a text: train, valid and test, and how a held-out one is taken from the training text."""

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from alibi_jax.data.document import Document, file_document

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
HELD_OUT_EVERY = 20  # one document (or line) in so many is held out for valid, and one for test
FAR = 4  # a held-out split that is so many times larger or smaller than its twentieth of the bytes is warned of
NEAR_CHARACTERS = 500  # a document is cut at a line's end that is so near, or nearer than a held-out split is long

logger = logging.getLogger("alibi_jax")


def split_names(names: Sequence[str]) -> dict[str, Split]:
    """Returns each document's split, by the sha256 of its name: the lowest twentieth is test, the next valid, the rest train.

    With 20 names or more no split is empty. The same names have the same splits on every machine.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    held_out = len(ranked) // HELD_OUT_EVERY
    return {
        name: "test" if rank < held_out else "valid" if rank < 2 * held_out else "train"
        for rank, name in enumerate(ranked)
    }


def cut_files(files: Sequence[Path], split: Split, held_out: Sequence[Split]) -> Iterator[Document]:
    """Yields the text of each file that belongs to `split`: the held-out twentieths stand at its end, in order.

    Files are cut at the ends of lines. Where lines are so long, or so few, that a split would have no text, they are cut, too.
    """
    cuts = []
    for at_lines in (True, False):
        entries = ((file, file.stat()) for file in files)
        cuts = [_cuts(file, at.st_size, at.st_mtime_ns, len(held_out), at_lines) for file, at in entries]
        if all(any(one[i] < one[i + 1] for one in cuts) for i in range(len(held_out) + 1)):
            break
    place = ["train", *held_out].index(split)
    for file, (start, stop) in zip(files, (one[place : place + 2] for one in cuts), strict=True):
        if start < stop:
            yield file_document(file).between(start, stop)


@functools.lru_cache(maxsize=3 * HELD_OUT_EVERY)
def _cuts(file: Path, size: int, modified: int, held_out: int, at_lines: bool) -> list[int]:
    """Returns where one file is cut into training text and `held_out` twentieths after it, in characters, ends included.

    Kept while the file has this size and time of modification, because finding the cuts reads the file.
    """
    document = file_document(file)
    length = sum(map(len, document))
    near = max(NEAR_CHARACTERS, length // HELD_OUT_EVERY) if at_lines else length // (2 * HELD_OUT_EVERY)
    goals = [round(length * (1 - i / HELD_OUT_EVERY)) for i in range(held_out, 0, -1)]
    return [0, *(_cut(document, goal, near) for goal in goals), length]


def _cut(document: Document, goal: int, near: int) -> int:
    """Returns where to cut before character `goal`: after the last line or, where no line ends near, word; else there.

    A line counts as near when it ends at most `near` characters before the goal.
    """
    line = word = offset = 0
    for piece in document:
        if offset >= goal:
            break
        before = piece[: goal - offset]
        line = offset + before.rindex("\n") + 1 if "\n" in before else line
        word = offset + before.rindex(" ") + 1 if " " in before else word
        offset += len(piece)
    return next((place for place in (line, word) if goal - place <= near), goal)


def log_sizes(num_bytes: dict[Split, int], cut: Sequence[Split]) -> None:
    """Logs the bytes of each split; warns where one of those `cut` from the training text is far from a twentieth of it."""
    sizes = ", ".join(f"{split} {size:,}" for split, size in num_bytes.items())
    whole = num_bytes["train"] + sum(num_bytes[split] for split in cut)
    fractions = {split: num_bytes[split] / whole for split in cut}
    far = [split for split in cut if not 1 / FAR <= fractions[split] * HELD_OUT_EVERY <= FAR]
    if far:
        logger.warning(
            f"text: {sizes} bytes. {' and '.join(f'{fractions[split]:.1%} for {split}' for split in far)} is far from the "
            f"{1 / HELD_OUT_EVERY:.0%} that are cut from data.train_path: its files differ much in size, or have few lines. "
            "Set data.valid_path and data.test_path to choose."
        )
    else:
        logger.info(f"text: {sizes} bytes")
