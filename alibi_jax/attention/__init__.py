"""attend(): attention with a bias that is a value. One definition (`reference`), faster implementations tested against it."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from alibi_jax.attention import arguments, blockwise, pallas_gpu, pallas_tpu, ring
from alibi_jax.attention.dropout import head_seeds
from alibi_jax.attention.options import SAVED_NAME, Options, Part, Rules, differentiable
from alibi_jax.attention.reference import reference_attention
from alibi_jax.positions.bias import Bias
from alibi_jax.sharding import device, on_each_device, ring_size

__all__ = ["SAVED_NAME", "attend"]

log = logging.getLogger(__name__)

DENSE_SCORES = 128 * 128  # "auto" is dense up to so many scores a head: one block, where there is nothing to skip
Name = Literal["auto", "reference", "blockwise", "pallas_tpu", "pallas_gpu"]


class Implementation(NamedTuple):
    """How attention is computed, and what stands against it: unsupported(q, k, bias) says why not, or None."""

    rules: Rules | None  # None: the definition itself, which the compiler differentiates and splits
    unsupported: Callable[[Array, Array, Bias | None], str | None] = lambda q, k, bias: None
    platform: str | None = None  # the only one it is compiled for; None: any
    device_kinds: tuple[str, ...] = ("",)  # how the names begin of those devices on which "auto" takes it


IMPLEMENTATIONS = {
    "reference": Implementation(None),
    "blockwise": Implementation(blockwise.RULES),
    "pallas_tpu": Implementation(pallas_tpu.RULES, pallas_tpu.unsupported, "tpu"),
    "pallas_gpu": Implementation(pallas_gpu.RULES, pallas_gpu.unsupported, "gpu", pallas_gpu.DEVICE_KINDS),
}


@functools.cache
def _say_once(chosen: str, queries: int, keys: int) -> None:
    log.info("attention: %s for %d queries and %d keys", chosen, queries, keys)


def _choose(q: Array, k: Array, bias: Bias | None) -> str:
    """The kernel of the platform where it can serve, else blockwise; dense where everything is one small block."""
    chosen, (here, kind) = "blockwise", device()
    if q.shape[1] * k.shape[1] <= DENSE_SCORES:
        chosen = "reference"
    else:
        for name, known in IMPLEMENTATIONS.items():
            if known.platform == here and kind.startswith(known.device_kinds) and known.unsupported(q, k, bias) is None:
                chosen = name
    _say_once(chosen, q.shape[1], k.shape[1])
    return chosen


def _check_name(name: str, q: Array, k: Array, bias: Bias | None, interpret: bool) -> None:
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(f"attend: got implementation {name!r}, expected auto, {', '.join(IMPLEMENTATIONS)}.")
    known = IMPLEMENTATIONS[name]
    reason = known.unsupported(q, k, bias)
    here, _ = device()
    if reason is None and known.platform not in (None, here) and not interpret:
        reason = f"a computation for {here}, and it is compiled for {known.platform} only (or run with interpret=True)"
    if reason is not None:
        raise NotImplementedError(f"attend: {name} cannot serve {reason}. Use implementation='blockwise'.")


def _check_ring(q: Array, k: Array, q_offset: Any, causal: bool, name: str) -> None:
    """Over devices that split the sequence, attention is that of a whole sequence to itself."""
    itself = causal and q.shape[1] == k.shape[1] and isinstance(q_offset, int | np.integer) and q_offset == 0
    if ring_size() > 1 and name != "reference" and not itself:
        raise NotImplementedError(
            f"attend: got {q.shape[1]} queries, {k.shape[1]} keys, q_offset {q_offset}, causal {causal} on a mesh that splits "
            "the sequence, expected causal attention of a sequence to itself. Use a mesh that does not, or 'reference'."
        )


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    *,
    bias: Bias | None = None,
    q_offset: int | Int[Array, ""] = 0,
    causal: bool = True,
    implementation: Name = "auto",
    reach_tolerance: float | Literal["auto"] | None = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """softmax(q k^T / sqrt(D) + bias) v: query t stands at position q_offset + t, key s at position s.

    K key heads serve H = K G query heads, head h reading key head h // G (grouped-query attention; K = H is the usual one).
    bias: added after the scaling, in float32, such as `LinearBias(alibi_slopes(H))` (Press et al. 2022, section 3).
    causal: a query sees keys at or before its position. q_offset: not 0 when decoding with a cache; positions are 0 to
    2^30 - 1. A query that sees no key gives 0 and gets no gradient: one before position 0, where a q_offset that is traced, and
    so cannot be checked, is negative; one whose every key has a bias of -inf.
    reach_tolerance: the largest share of a row's softmax mass that may be skipped, where the bias proves a bound (causal
    LinearBias; see attention/reach.py), which moves an output by at most 2 reach_tolerance max|v|; "auto": by dtype, below
    its rounding; None: skip nothing. `reference` never skips.
    dropout_rate: share of the softmax weights dropped; the mask depends on positions alone, so implementations agree.
    implementation: "auto" chooses by the platform, and logs its choice once. Differentiable in q, k, v and the bias's arrays;
    the Pallas kernels refuse learned slopes: name "blockwise" for them. interpret: run a Pallas kernel step by step on any
    device; slow, for tests.
    Under `jax.set_mesh` the batch and the heads are split over those axes of the mesh that sharding.RULES name, each device
    attending alone, and the sequence over theirs, in a ring (ring.py); axes of other names are left to the compiler. In a
    shard_map of one's own: check_vma=False.
    ValueError for arguments that do not fit, and slopes that are known and not finite; NotImplementedError for an
    implementation that does not exist or cannot serve.
    """
    arguments.check_arrays(q, k, v)
    arguments.check_causal(causal)
    bias, offset = arguments.checked_bias(bias, q.shape[2]), arguments.checked_offset(q_offset, q.shape[1])
    rate, tolerance = (
        arguments.checked_dropout(dropout_rate, dropout_key),
        arguments.checked_tolerance(reach_tolerance, q.dtype),
    )
    _check_ring(q, k, q_offset, causal, implementation)
    chosen = _choose(q, k, bias) if implementation == "auto" else implementation
    _check_name(chosen, q, k, bias, interpret)
    seeds = head_seeds(dropout_key if rate > 0 else None, q.shape[0], q.shape[2])
    inputs, options = (q, k, v, bias, offset, seeds), Options(causal, rate, tolerance, interpret)
    rules = IMPLEMENTATIONS[chosen].rules
    if rules is None:
        return reference_attention(options, *inputs)
    if ring_size() > 1:
        rules = ring.around(rules, ring_size())
    heads = "batch", "length", "heads", "head_width"
    of_bias = [] if bias is None else [names for names, _ in bias.arrays()]
    dimensions = heads, heads, heads, *of_bias, (), ("batch", "heads", "words")
    return on_each_device(lambda *inputs: differentiable(rules, options, Part(*inputs)), inputs, dimensions, heads)
