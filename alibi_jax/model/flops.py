"""Floating-point operations counted from the architecture, and the peaks of accelerators, for achieved FLOP/s and MFU."""

from alibi_jax.config import ModelConfig
from alibi_jax.model.adaptive import bands

# dense bfloat16 FLOP/s of one chip, from the makers' data sheets; keys are the beginnings of jax's device_kind
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def forward_flops_per_token(model: ModelConfig, length: int) -> float:
    """2 per multiply-add of every matrix, and 4 E (L + 1) / 2 a layer for causal attention over L tokens.

    Adaptive bands: every band's words and class, its projection in the softmax, and the projections of the input.
    """
    cut = bands(model) if model.vocab_size else []
    words = sum((band.end - band.first) * band.width for band in cut)
    if len(cut) > 1:
        tails = sum(band.width for band in cut[1:])
        words += model.width * (cut[0].width + 2 * tails + len(cut) - 1)
    matrices = model.num_layers * (4 * model.width**2 + 2 * model.width * model.mlp_width) + words
    return 2.0 * matrices + 2 * model.num_layers * model.width * (length + 1)


def train_flops_per_token(model: ModelConfig, length: int) -> float:
    """Forward, and twice that backward; recomputation (remat) is not counted, as is usual for MFU."""
    return 3 * forward_flops_per_token(model, length)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device, None where it is not known."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if device_kind.startswith(kind)), None)
