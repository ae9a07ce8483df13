"""Floating-point operations counted from the architecture, 2 for every multiply-add of a matrix: for FLOP/s and MFU."""

from alibi_jax.config import ModelConfig
from alibi_jax.plan.chips import chip_of


def attention_flops_per_token(model: ModelConfig, length: int) -> float:
    """Forward, of scores and mixing: 4 E (L + 1) / 2 a layer for causal attention over L tokens, whatever could be skipped."""
    return 2.0 * model.num_layers * model.width * (length + 1)


def layers_flops_per_token(model: ModelConfig, length: int) -> float:
    """Forward, of all layers: their matrices and attention."""
    matrices = model.num_layers * (4 * model.width**2 + 2 * model.width * model.mlp_width)
    return 2.0 * matrices + attention_flops_per_token(model, length)


def softmax_flops_per_token(model: ModelConfig) -> float:
    """Forward, of the logits; 0 where the vocabulary is not known.

    Adaptive clusters: the head and all projections; of a further cluster only its own tokens' logits are computed, a few in a
    hundred, and none is counted.
    """
    if not model.vocab_size:
        return 0.0
    head, *tails = model.clusters
    weights = head.size * head.width
    if tails:
        weights += model.width * (head.width + 2 * sum(cluster.width for cluster in tails) + len(tails))
    return 2.0 * weights


def forward_flops_per_token(model: ModelConfig, length: int) -> float:
    """All of a forward pass over L tokens."""
    return layers_flops_per_token(model, length) + softmax_flops_per_token(model)


def train_flops_per_token(model: ModelConfig, length: int) -> float:
    """Forward, and twice that backward; recomputation (remat) is not counted, as is usual for MFU."""
    return 3 * forward_flops_per_token(model, length)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device as jax counts them, None where it is not known."""
    chip = chip_of(device_kind)
    return chip.flops / chip.devices if chip else None
