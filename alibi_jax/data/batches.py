"""Training batches by Grain, a pure function of (seed, step): resuming is indexing, and hosts need not talk."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32, Integer

from alibi_jax.errors import DataError, require

if TYPE_CHECKING:  # imported where it is used, as a model can be trained where it is not installed
    import grain

Rows = Int32[np.ndarray, "B L"]


def num_sequences(tokens: Integer[np.ndarray, " n"], length: int) -> int:
    """Returns how many training sequences a stream holds: (n - 1) // length, each `length` inputs and the targets one later.

    Neighbours share one token, so every token but the first is a target at most once. DataError when there is none.
    """
    count = (len(tokens) - 1) // length
    if count < 1:
        raise DataError(
            f"train.train_length: got {length} with a training stream of {len(tokens)} tokens, expected at least "
            f"{length + 1} tokens. Give more text or lower train.train_length."
        )
    return count


@dataclass(frozen=True)
class Batches:
    """One host's shard of every batch: some rows and columns of the global batch [B, L]; only these are read.

    The global batch depends on (tokens, length, batch_size, seed, step) alone: global row step * B + i takes the next
    sequence of an order that is shuffled anew each epoch, whatever the hosts and their shards. DataError for a stream
    shorter than one sequence.
    """

    tokens: Integer[np.ndarray, " n"]
    length: int  # tokens of one sequence
    batch_size: int  # B, sequences of one update over all hosts
    seed: int
    rows: Integer[np.ndarray, " rows"] | None = None  # of the batch; None: all
    columns: slice | None = None  # of the batch; None: all

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 2^32 - 1", "Choose another seed.")
        num_sequences(self.tokens, self.length)

    @cached_property
    def order(self) -> "grain.MapDataset":
        """Maps a global row to its sequence: an endless chain of permutations of the sequences."""
        import grain

        return grain.MapDataset.range(num_sequences(self.tokens, self.length)).seed(self.seed).shuffle().repeat()

    def batch_at(self, step: int) -> tuple[Rows, Rows]:
        """Returns the shard's inputs and targets, int32 [rows, columns] each, of update `step` (from 0)."""
        rows = np.arange(self.batch_size) if self.rows is None else self.rows
        starts = np.array([self.order[step * self.batch_size + int(row)] for row in rows]) * self.length
        start, stop, _ = (self.columns or slice(None)).indices(self.length)
        windows = self.tokens[starts[:, None] + np.arange(start, stop + 1)].astype(np.int32)
        return windows[:, :-1], windows[:, 1:]

    def read_ahead(self, first_step: int = 0, prefetch: int = 2) -> Iterator[tuple[int, Rows, Rows]]:
        """Yields (step, inputs, targets) endlessly from `first_step` on, as `batch_at` returns them; none earlier is read.

        Threads read `prefetch` batches ahead. They end when the iterator is closed, dropped, or the program exits.
        """
        import grain

        ahead = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
        steps = grain.MapDataset.range(first_step, sys.maxsize)
        yield from steps.map(lambda step: (step, *self.batch_at(step))).to_iter_dataset(ahead)
