"""Floating-point operations counted from the architecture, and the peaks of accelerators, for achieved FLOP/s and MFU."""

from alibi_jax.config import ModelConfig

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

    Adaptive bands: the head and all projections; of a further band only its own words' logits are computed, a few in a
    hundred, and none is counted.
    """
    words = 0
    if model.vocab_size:
        head, *tails = model.bands
        words = head.end * head.width
        if tails:
            words += model.width * (head.width + 2 * sum(band.width for band in tails) + len(tails))
    matrices = model.num_layers * (4 * model.width**2 + 2 * model.width * model.mlp_width) + words
    return 2.0 * matrices + 2 * model.num_layers * model.width * (length + 1)


def train_flops_per_token(model: ModelConfig, length: int) -> float:
    """Forward, and twice that backward; recomputation (remat) is not counted, as is usual for MFU."""
    return 3 * forward_flops_per_token(model, length)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device, None where it is not known."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if device_kind.startswith(kind)), None)
