"""attend(): attention with a bias that is a value. One definition (`reference`), faster implementations tested against it."""

import functools
import logging
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alibi_jax.attention import arguments, blockwise, mosaic_gpu, pallas_gpu, pallas_tpu, ring
from alibi_jax.attention.collectives import ring_size
from alibi_jax.attention.dropout import head_seeds
from alibi_jax.attention.implementation import SAVED_NAME, Implementation, Inputs, Options, differentiable
from alibi_jax.attention.reference import reference_attention
from alibi_jax.positions.bias import Bias
from alibi_jax.sharding import device, kv_heads_of_device, num_shards, on_each_device

__all__ = ["SAVED_NAME", "attend"]

log = logging.getLogger(__name__)

DENSE_SCORES = 128 * 128  # "auto" is dense up to so many scores per head: one block, where there is nothing to skip
ImplementationName = Literal["auto", "reference", "blockwise", "pallas_tpu", "pallas_gpu", "mosaic_gpu"]

IMPLEMENTATIONS = {  # "auto" takes the first of a platform that can serve
    "reference": Implementation("reference"),
    "blockwise": blockwise.IMPLEMENTATION,
    "pallas_tpu": pallas_tpu.IMPLEMENTATION,
    "pallas_gpu": pallas_gpu.IMPLEMENTATION,
    "mosaic_gpu": mosaic_gpu.IMPLEMENTATION,
}


@functools.cache
def _log_once(message: str, *arguments: Any) -> None:
    log.info(message, *arguments)


def _choose(q: Array, k: Array, bias: Bias | None) -> str:
    """Returns the platform's first kernel that can serve, else blockwise; the definition where all is one small block."""
    chosen = "reference" if q.shape[1] * k.shape[1] <= DENSE_SCORES else _fastest(q, bias)
    if k.shape[1] > ring_size():  # of one token a device only shapes are traced
        _log_once("attention: %s for %d queries and %d keys", chosen, q.shape[1], k.shape[1])
    return chosen


def _fastest(q: Array, bias: Bias | None) -> str:
    traced_for = device()
    for name, each in IMPLEMENTATIONS.items():
        if each.platform == traced_for.platform:
            reason = each.refusal(traced_for, False, q, bias)
            if reason is None:
                return name
            _log_once("attention: %s cannot serve %s", name, reason)
    return "blockwise"


def _named(name: str, q: Array, bias: Bias | None, interpret: bool) -> Implementation:
    """Returns the implementation of that name; NotImplementedError where there is none or it cannot serve."""
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"attend: got implementation {name!r}, expected one of auto, {', '.join(IMPLEMENTATIONS)}. Choose one."
        )
    reason = IMPLEMENTATIONS[name].refusal(device(), interpret, q, bias)
    if reason is not None:
        raise NotImplementedError(f"attend: {name} cannot serve {reason}. Use implementation='auto'.")
    return IMPLEMENTATIONS[name]


def _check_ring(q: Array, k: Array, q_offset: Any, causal: bool, name: str) -> None:
    """Raises NotImplementedError where a sequence is sharded and the attention is not that of a whole sequence to itself."""
    itself = causal and q.shape[1] == k.shape[1] and isinstance(q_offset, int | np.integer) and q_offset == 0
    if ring_size() > 1 and name != "reference" and not itself:
        raise NotImplementedError(
            f"attend: got {q.shape[1]} queries, {k.shape[1]} keys, q_offset {q_offset}, causal {causal} on a mesh that splits "
            "the sequence, expected causal attention of a sequence to itself. Use a mesh that does not, or 'reference'."
        )


def _divided_over_heads(inputs: Inputs) -> Inputs:
    """Returns the inputs with each key and value head as often as needed, so that their number divides over the mesh.

    Of query heads that share one, those on different devices then have copies of it: each device reads its own heads alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    key_heads = inputs.k.shape[2]
    if mesh.empty or mesh.manual_axes:
        return inputs
    times = kv_heads_of_device(key_heads, mesh) * num_shards(mesh, "heads") // key_heads
    if times == 1:
        return inputs
    return inputs._replace(k=jnp.repeat(inputs.k, times, axis=2), v=jnp.repeat(inputs.v, times, axis=2))


def _compute(implementation: Implementation, options: Options, inputs: Inputs) -> Float[Array, "B T H D"]:
    """Returns the attention, computed by each device of the mesh for its own shard of the inputs."""
    if implementation.forward is None:
        return reference_attention(options, *inputs[:6])
    if ring_size() > 1:
        implementation = ring.around(implementation, ring_size())
    inputs = _divided_over_heads(inputs)
    compute = functools.partial(differentiable, implementation, options)
    heads = "batch", "length", "heads", "head_width"
    of_bias = [] if inputs.bias is None else [names for names, _ in inputs.bias.arrays()]
    dimensions = heads, heads, heads, *of_bias, (), ("batch", "heads", "seed")
    return on_each_device(compute, (inputs,), dimensions, heads)


def attend(
    q: Float[Array | np.ndarray, "B T H D"],
    k: Float[Array | np.ndarray, "B S K D"],
    v: Float[Array | np.ndarray, "B S K D"],
    *,
    bias: Bias | None = None,
    q_offset: int | Int[Array, ""] = 0,
    causal: bool = True,
    implementation: ImplementationName = "auto",
    reach_tolerance: float | Literal["auto"] | None = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Returns softmax(q k^T / sqrt(D) + bias) v, with query t at position q_offset + t and key s at position s.

    K key heads serve H = K G query heads; head h reads key head h // G (grouped-query attention; usually K = H).
    bias: added after the scaling, in float32, such as `LinearBias(alibi_slopes(H))` (Press et al. 2022, section 3).
    causal: a query sees keys at or before its position. q_offset: not 0 when decoding with a cache; positions are 0 to
    2^30 - 1. A query that sees no key gives 0 and gets no gradient: one whose every key has a bias of -inf, or one before
    position 0, where a q_offset that is traced, and so cannot be checked, is negative.
    reach_tolerance: the largest fraction of a row's softmax mass that may be skipped, if the bias proves a bound (causal
    LinearBias; see attention/reach.py). An output moves by at most 2 reach_tolerance max|v|. "auto": a value per dtype, below
    its rounding; None: skip nothing. `reference` never skips.
    dropout_rate: probability that a softmax weight is dropped. The mask depends on positions alone: implementations agree.
    implementation: "auto" takes the first kernel that can serve the device and the inputs, else "blockwise", and logs once what
    it took and why not a kernel. Kernels are "pallas_tpu", "pallas_gpu" (NVIDIA, compute capability 8.0 and later) and
    "mosaic_gpu" (Hopper; no float32). Differentiable in q, k, v and the bias's arrays; kernels refuse learned slopes: name
    "blockwise" for them. interpret: run a kernel step by step on any device; slow, for tests.
    Under `jax.set_mesh`, batch and heads are sharded over the mesh axes that sharding.RULES name for them (key heads that do
    not divide are repeated), and the sequence over its own, in a ring (ring.py); axes of other names are left to the compiler.
    In your own shard_map: check_vma=False.
    ValueError for arguments that do not fit, and slopes that are known and not finite; NotImplementedError for an
    implementation that does not exist or cannot serve.
    """
    arguments.check_arrays(q, k, v)
    q, k, v = (jnp.asarray(x) for x in (q, k, v))
    arguments.check_causal(causal)
    bias = arguments.checked_bias(bias, q.shape[2])
    offset = arguments.checked_offset(q_offset, q.shape[1])
    rate = arguments.checked_dropout(dropout_rate, dropout_key)
    tolerance = arguments.checked_tolerance(reach_tolerance, q.dtype)
    _check_ring(q, k, q_offset, causal, implementation)
    chosen = _named(_choose(q, k, bias) if implementation == "auto" else implementation, q, bias, interpret)
    seeds = head_seeds(dropout_key if rate > 0 else None, q.shape[0], q.shape[2])
    return _compute(chosen, Options(causal, rate, tolerance, interpret), Inputs(q, k, v, bias, offset, seeds))
