"""Nats of every token of a stream, scored in windows of a given length and stride (Press et al. 2022, appendix B).

The stream is n targets; the input before target t is target t - 1, and before the first a token that the caller names
(end-of-line). Window w scores targets [w S, (w+1) S) and sees the inputs of [max(0, (w+1) S - L), (w+1) S): stride S = length
L is the non-overlapping protocol, S < L the sliding window. Windows are computed from scratch: a cache would let deeper
layers see further back than L. All are L inputs long, padded on the right where they have fewer: slopes that the length
divides (model.slope_length) are those of L in every window.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float32, Int, Int32, Integer

from alibi_jax.config import ModelConfig
from alibi_jax.data.vocabulary import check_ids
from alibi_jax.sharding import batch_sharding, num_shards, place_rows, shard

HOST_BYTES = (
    48  # of one token of a batch while it is made: its place in the stream, whether it is scored, input and target
)


@functools.partial(jax.jit, static_argnums=0)
def window_nats(
    model: nn.Module, params: Any, inputs: Int[Array, "B L"], targets: Int[Array, "B L"]
) -> Float32[Array, "B L"]:
    """Returns -log p of each target, given the inputs up to it. Compiled once for each (B, L)."""
    scores = model.apply({"params": params}, inputs, targets, method="nats")
    return shard(scores, "replicated", "replicated")


def windows_per_batch(batch_tokens: int, length: int) -> int:
    """Returns how many windows of `length` tokens a batch of about `batch_tokens` tokens holds: at least one, and a multiple
    of the devices that the mesh of `jax.set_mesh` splits a batch over."""
    shards = num_shards(jax.sharding.get_abstract_mesh(), "batch")
    return -(-max(1, batch_tokens // length) // shards) * shards


def memory_needed(model: nn.Module, params: Any, batch_size: int, length: int) -> int:
    """Returns the bytes a device needs to score one batch of windows beside the parameters, as the compiler counts them."""
    mesh = jax.sharding.get_mesh()
    placed = None if mesh.empty else batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((batch_size, length), np.int32, sharding=placed)
    analysis = window_nats.lower(model, params, tokens, tokens).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def least_memory(config: ModelConfig, batch_size: int, length: int) -> int:
    """Returns the bytes a device needs at least: one layer's input, and the scores where all are held at once.

    Sizes past any memory are refused by this count: the compiler counts in 64 bits and would end the process.
    """
    tokens = batch_size * length
    inputs = tokens * config.width * np.dtype(config.compute_dtype).itemsize
    scores = 4 * tokens * length * config.num_heads if config.attention == "reference" else 0
    return max(inputs, scores) // jax.device_count()


def _check_ids(stream: np.ndarray, first_input: int, vocab_size: int | None) -> None:
    if not isinstance(first_input, int | np.integer) or isinstance(first_input, bool):
        raise ValueError(f"token_nats: got first_input {first_input!r}, expected an int, a token's id. Pass one.")
    check_ids("token_nats, first_input", np.array([first_input]), vocab_size)
    check_ids("token_nats, stream", stream, vocab_size)


def _check(stream: np.ndarray, length: int, stride: int, batch_size: int) -> None:
    for name, value in (("length", length), ("stride", stride), ("batch_size", batch_size)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"token_nats: got {name} {value!r}, expected an int. Pass a whole number.")
    if len(stream) == 0:
        raise ValueError("token_nats: got an empty stream, expected at least one token. Give it text.")
    if length < 1:
        raise ValueError(f"token_nats: got length {length}, expected at least 1 token. Give a positive length.")
    if not 1 <= stride <= length:
        raise ValueError(
            f"token_nats: got stride {stride} at length {length}, expected 1 to {length} (a longer stride would leave tokens "
            "unscored). Lower the stride or raise the length."
        )
    if batch_size < 1:
        raise ValueError(f"token_nats: got batch_size {batch_size}, expected at least 1 window. Raise it.")


def _batches(
    stream: np.ndarray, length: int, stride: int, first_input: int, batch_size: int
) -> Iterator[tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"], np.ndarray, np.ndarray]]:
    """(inputs, targets, index in the stream of each target, whether it is scored there), each [B, L]; padded on the right."""
    tokens = len(stream)
    first = np.arange(0, tokens, stride)
    for at in range(0, len(first), batch_size):
        scored = first[at : at + batch_size]
        scored = np.pad(scored, (0, batch_size - len(scored)), constant_values=tokens)  # rows that score nothing
        index = np.maximum(scored + stride - length, 0)[:, None] + np.arange(length)[None, :]
        is_scored = (index >= scored[:, None]) & (index < np.minimum(scored + stride, tokens)[:, None])
        inside = np.minimum(index, tokens - 1)
        targets = stream[inside].astype(np.int32)
        inputs = np.where(inside == 0, first_input, stream[inside - 1]).astype(np.int32)
        yield inputs, targets, index, is_scored


def token_nats(
    model: nn.Module,
    params: Any,
    stream: Integer[np.ndarray, " n"],
    *,
    length: int,
    stride: int | None = None,
    first_input: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Float32[np.ndarray, " n"]:
    """Returns -log p, in nats, of every token of `stream`, each scored once with up to `length` inputs.

    model: any Linen module with a method nats(tokens, targets) -> float32 [B, L], as TransformerLM has. Where it has a
    vocab_size, as TransformerLM does, all ids are checked first; one that says it is not causal is refused.
    stride: tokens scored by each window; None, or `length`, is the non-overlapping protocol, 1 the paper's analysis.
    first_input: the token that stands before the first target. batch_size: windows computed at once (a multiple of the
    devices along the batch under `jax.set_mesh`). progress: called with the number of tokens scored so far.
    ValueError for an empty stream, ids outside the vocabulary, a length below 1, a stride outside 1 ... length.
    """
    stride = length if stride is None else stride
    _check(stream, length, stride, batch_size)
    _check_ids(stream, first_input, getattr(model, "vocab_size", None))
    if not getattr(model, "causal", True):
        raise ValueError(
            "token_nats: got a model that is not causal, expected one that is: another sees what it predicts. Pass one with "
            "causal=True."
        )
    scores = np.full(len(stream), np.nan, np.float32)
    waiting: list[tuple] = []

    def collect() -> None:
        computed, index, is_scored = waiting.pop()
        scores[index[is_scored]] = np.asarray(computed)[is_scored]
        if progress is not None:
            progress(int(index[is_scored].max()) + 1)

    for inputs, targets, index, is_scored in _batches(stream, length, stride, first_input, batch_size):
        computed = window_nats(model, params, place_rows(inputs), place_rows(targets))
        if waiting:  # one batch late, so that the device computes while this one is put away
            collect()
        waiting.append((computed, index, is_scored))
    collect()
    return scores
