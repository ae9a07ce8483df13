"""Every number an evaluation reports, each a small pure function of nats, one per token of the stream.

n is the number of targets, L an input length, S a stride, all in tokens. Inside, everything is numpy float64.
Bad input raises ResultsError, a ValueError, with got / expected / what to do.
To add a statistic, write a function of `Scored` and name it in `STATISTICS`: runs scored before gain it when they are read.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike, NDArray

from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.records import Record
from alibi_jax.run.display import exponential

Nats = Float32[np.ndarray, " n"]
NUM_BLOCKS = 64  # blocks behind a standard error, whose own relative error is then 1 / sqrt(2 * 63) = 9 %


def _checked(nats: ArrayLike, name: str = "nats", like: NDArray | None = None) -> NDArray[np.float64]:
    """The array in float64, refused when it is empty, not one-dimensional, not finite, or not as long as `like`."""
    array = np.asarray(nats, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ResultsError(f"{name}: got shape {array.shape}, expected [n], n >= 1. Pass one loss per token.")
    if like is not None and array.size != like.size:
        raise ResultsError(f"{name}: got {array.size} tokens, expected {like.size}. Score the same stream in both.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ResultsError(
            f"{name}: got {bad.size} of {array.size} losses NaN or infinite, the first at index {bad[0]}, expected "
            "finite nats. Look at the model's output for that token; a mean over the rest would mean nothing."
        )
    return array


def _require_at_least(value: int, name: str, least: int) -> None:
    if value < least:
        raise ResultsError(f"{name}: got {value}, expected {least} or more. Raise {name}.")


def mean_nats(nats: ArrayLike) -> float:
    """Returns the mean loss, sum(nats) / n, in nats per token."""
    return float(_checked(nats).mean())


def perplexity(nats: ArrayLike) -> float:
    """Returns exp(sum(nats) / n) over all n tokens of the stream: never a mean of window means (Press et al. 2022).

    inf where the mean is 709.8 nats or more: that exponential is larger than the largest float64.
    """
    return exponential(mean_nats(nats))


def bits_per_byte(nats: ArrayLike, num_bytes: int) -> float:
    """Returns sum(nats) / (ln 2 * num_bytes); num_bytes is that of the text the tokens stand for, whatever the tokenizer."""
    _require_at_least(num_bytes, "num_bytes", 1)
    return float(_checked(nats).sum() / (math.log(2) * num_bytes))


def standard_error(nats: ArrayLike, block: int | None = None) -> float:
    """Returns the standard error of the mean of nats, from the means b_1..b_m of contiguous blocks: std(b) / sqrt(m), ddof 1.

    Neighbouring tokens share a topic, so the formula for independent tokens is too small; blocks longer than that
    dependence are nearly independent (batch means). block: tokens of one; None: n // 64, at least 1. The last,
    partial block is left out of the spread. Needs two whole blocks.
    """
    array = _checked(nats)
    block = max(1, array.size // NUM_BLOCKS) if block is None else block
    _require_at_least(block, "block", 1)
    count = array.size // block
    if count < 2:
        raise ResultsError(f"block: got {block} for {array.size} tokens, expected two whole blocks. Lower block.")
    means = array[: count * block].reshape(count, block).mean(axis=1)
    return float(means.std(ddof=1) / math.sqrt(count))


def positions(n: int, length: int, stride: int) -> NDArray[np.int32]:
    """Returns the number of inputs each target sees, which is its position in its window counted from 1: int32 [n].

    Window w scores the targets [wS, (w+1)S) and sees from max(0, (w+1)S - L) on. With S = L, non-overlapping, that is
    t mod L + 1; with S < L every target from L on sees between L - S + 1 and L inputs.
    """
    _require_at_least(n, "n", 1)
    if not 1 <= stride <= length:
        raise ResultsError(f"stride: got {stride} at length {length}, expected 1 to the length. Lower the stride.")
    targets = np.arange(n)
    starts = np.maximum(0, (targets // stride + 1) * stride - length)
    return (targets - starts + 1).astype(np.int32)


def position_loss(nats: ArrayLike, length: int) -> NDArray[np.float64]:
    """Returns the mean nats at each position of the non-overlapping windows of `length`: float64 [L].

    Entry p - 1 is that of position p. nats: [n], n at least L. The last, shorter window counts for the positions it has.
    """
    array = _checked(nats)
    _require_at_least(length, "length", 1)
    if array.size < length:
        raise ResultsError(f"length: got {length} for {array.size} tokens, expected one whole window. Lower length.")
    index = positions(array.size, length, length) - 1
    return np.bincount(index, weights=array) / np.bincount(index)


@dataclasses.dataclass(frozen=True)
class Gain:
    """What a longer input won over the training length, in nats per token; total = far_context + early_tokens."""

    total: float  # mean loss at the training length minus that at the longer length, both non-overlapping
    far_context: float  # by reading past the training length
    early_tokens: float  # by the rest: fewer targets that have little context
    far_context_error: float  # standard error of far_context


def split_gain(
    nats_train: ArrayLike, nats_long: ArrayLike, nats_full_context: ArrayLike, train_length: int, length: int
) -> Gain:
    """Returns the gain of `length` over `train_length` split in two, all arrays [n], nats of the same stream.

    far_context = 1/n * sum over targets at positions p > L_train of (nats_full_context - nats_long): what is lost if
    each of them scored as position L_train does. It is paired: nats_full_context holds the same targets, from the
    sliding window at L_train, so comparing easy tokens with hard ones adds no noise. Stride 1 meets the definition
    exactly (each sees L_train inputs); at L_train/16 they see a little less and far_context comes out a little high.
    Below 0, reading past the training length hurts. nats_train and nats_long are non-overlapping. The early-token
    curse is that of Press et al. 2022, analysis section; the split is this project's.
    """
    train = _checked(nats_train, "nats_train")
    long = _checked(nats_long, "nats_long", like=train)
    full = _checked(nats_full_context, "nats_full_context", like=train)
    _require_at_least(train_length, "train_length", 1)
    _require_at_least(length, "length", train_length + 1)
    far = np.where(positions(train.size, length, length) > train_length, full - long, 0.0)
    total = float(train.mean() - long.mean())
    return Gain(total, float(far.mean()), total - float(far.mean()), standard_error(far))


def longest_useful_length(losses: Mapping[int, float], train_length: int) -> int:
    """Returns the longest evaluated length, in tokens, whose loss is not above the loss at the training length.

    losses: evaluated length -> mean nats. A length that could not be evaluated is left out by the caller.
    """
    if train_length not in losses:
        raise ResultsError(
            f"losses: got lengths {sorted(losses)}, expected the training length, {train_length}, among them. "
            "Evaluate at the training length too."
        )
    _checked(list(losses.values()), "losses")
    return max(length for length, loss in losses.items() if loss <= losses[train_length])


class Scored(NamedTuple):
    """What a statistic is computed from."""

    record: Record  # facts
    nats: Nats  # its losses
    run: Mapping[tuple[int, int], Nats]  # the same run's at hand, by (length, stride); each is loaded when asked for


def _bits_per_byte(scored: Scored) -> float | None:
    """Older records do not say how many bytes were scored."""
    num_bytes = scored.record.num_bytes
    return None if num_bytes is None else bits_per_byte(scored.nats, num_bytes)


def gain(scored: Scored) -> dict[str, float] | None:
    """Returns the fields of a `Gain` over the training length, and the stride there against which far context is measured.

    None unless the windows are non-overlapping and longer than in training, and the run was scored at the training length
    by both protocols; the finest stride there is taken.
    """
    length, train_length = scored.record.length, scored.record.train_length
    strides = [stride for at, stride in scored.run if at == train_length]
    far_stride = min(strides, default=train_length)
    is_longer = scored.record.stride == length > train_length
    if not (is_longer and train_length in strides and far_stride < train_length):
        return None
    at_train_length, full_context = (scored.run[train_length, stride] for stride in (train_length, far_stride))
    split = split_gain(at_train_length, scored.nats, full_context, train_length, length)
    return dataclasses.asdict(split) | {"far_stride": far_stride}


# Statistic -> its function, which returns a number (`gain` alone several); None where what was scored lacks what it needs.
STATISTICS: dict[str, Callable[[Scored], Any]] = {
    "mean_nats": lambda scored: mean_nats(scored.nats),
    "perplexity": lambda scored: perplexity(scored.nats),
    "bits_per_byte": _bits_per_byte,
    "standard_error": lambda scored: standard_error(scored.nats),
    "gain": gain,
}
