"""Floating-point operations per token, counted from the architecture, 2 for every multiply-add: for FLOP/s and MFU."""

from alibi_jax.config import ModelConfig
from alibi_jax.config.sizes import matrices
from alibi_jax.plan.chips import chip_of


def attention_flops_per_token(model: ModelConfig, length: int) -> float:
    """Returns those of scores and weighted values, forward: 4 E a layer for each key that a token sees, skipped or not.

    Of L tokens a causal model sees (L + 1) / 2 on average, any other all.
    """
    seen_twice = length + 1 if model.causal else 2 * length
    return 2.0 * model.num_layers * model.width * seen_twice


def layers_flops_per_token(model: ModelConfig, length: int) -> float:
    """Returns those of all layers, forward: their matrices and attention."""
    return 2.0 * model.num_layers * matrices(model) + attention_flops_per_token(model, length)


def softmax_flops_per_token(model: ModelConfig) -> float:
    """Returns those of the logits, forward; 0 where the vocabulary is not known.

    Adaptive clusters: the head and all projections; of a further cluster only its own tokens' logits are computed, a few in a
    hundred, and these are not counted.
    """
    if not model.vocab_size:
        return 0.0
    head, *tails = model.clusters
    weights = head.size * head.width
    if tails:
        weights += model.width * (head.width + 2 * sum(cluster.width for cluster in tails) + len(tails))
    return 2.0 * weights


def forward_flops_per_token(model: ModelConfig, length: int) -> float:
    """Returns those of a whole forward pass over L tokens."""
    return layers_flops_per_token(model, length) + softmax_flops_per_token(model)


def train_flops_per_token(model: ModelConfig, length: int) -> float:
    """Returns those of a forward pass and, twice as many, a backward pass; recomputation (remat) is not counted, as in MFU."""
    return 3 * forward_flops_per_token(model, length)


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak dense bfloat16 FLOP/s of one device as jax counts devices; None where it is not known."""
    chip = chip_of(device_kind)
    return chip.flops / chip.devices if chip else None
