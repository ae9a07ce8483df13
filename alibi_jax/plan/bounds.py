"""How fast a program could run at best: its work over each of the chip's published peaks. The longest time binds.

No program reaches these bounds: they assume that compute, memory and network overlap perfectly. A bound says what is
impossible, and which of the three to look at first. Two things are counted that a run may skip: attention to keys that ALiBi's
heads provably do not need, which at long inputs are most of them, and all branches of a conditional.
"""

import dataclasses
from collections.abc import Sequence

from alibi_jax.config import Config, ModelConfig
from alibi_jax.model.flops import (
    attention_flops_per_token,
    forward_flops_per_token,
    layers_flops_per_token,
    softmax_flops_per_token,
    train_flops_per_token,
)
from alibi_jax.model.remat import layers_keep
from alibi_jax.plan.collectives import Collective
from alibi_jax.plan.topology import Topology
from alibi_jax.sharding import local_size


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of all devices together, counted from the architecture."""

    model: float  # of the model: what utilisation (MFU) counts
    per_token: float  # the same for each token
    attention: float  # of the model's, those of scores and weighted sums over all keys; ALiBi skips most at long inputs
    recomputed: float  # beside the model's: layers and logits recomputed in the backward pass


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The least seconds of a step by each peak; None where a peak is not published."""

    compute: float
    memory: float
    interconnect: float
    network: float | None
    intensity: float  # FLOP per byte moved to and from memory
    ridge: float  # FLOP the chip can do while it moves one byte
    best_utilisation: float  # of the chips' peak, counting the model's operations alone: the highest possible MFU

    @property
    def times(self) -> dict[str, float]:
        """Returns the seconds by each peak that is published."""
        named = {"compute": self.compute, "memory": self.memory, "interconnect": self.interconnect}
        return named | ({"network": self.network} if self.network is not None else {})

    @property
    def seconds(self) -> float:
        """Returns the longest of the times: no step is faster."""
        return max(self.times.values())

    @property
    def binds(self) -> str:
        """Returns the name of the longest time."""
        return max(self.times, key=self.times.get)


def _recomputed(model: ModelConfig, saves: str, length: int) -> float:
    """Returns the operations per token that remat does twice: those of the activations it does not keep."""
    if saves in ("all", "products"):
        return 0.0
    kept = attention_flops_per_token(model, length) if saves == "attention" else 0.0
    return layers_flops_per_token(model, length) - kept


def train_flops(config: Config) -> Flops:
    """Returns the operations of one training step. Called inside `jax.set_mesh(mesh)`.

    Logits are computed twice where a device's are more than model.logits_mib. Scores that the kernels' backward passes
    recompute are not counted.
    """
    model, train = config.model, config.train
    length, tokens = train.train_length, train.batch_size * train.train_length
    rows = train.batch_size // train.gradient_accumulation
    head = model.clusters[0]
    logits = local_size(rows, "batch") * local_size(length, "length") * local_size(head.size, "vocab")
    in_chunks = 4 * logits > model.logits_mib * 2**20
    recomputed = _recomputed(model, layers_keep(model, rows, length), length)
    recomputed += softmax_flops_per_token(model) * in_chunks
    total = train_flops_per_token(model, length)
    return Flops(total * tokens, total, 3 * attention_flops_per_token(model, length) * tokens, recomputed * tokens)


def evaluation_flops(config: Config, rows: int, length: int) -> Flops:
    """Returns the operations of scoring one batch of `rows` windows."""
    total = forward_flops_per_token(config.model, length)
    tokens = rows * length
    return Flops(total * tokens, total, attention_flops_per_token(config.model, length) * tokens, 0.0)


def bounds_of(topology: Topology, flops: Flops, hbm_bytes: int, sent: Sequence[Collective]) -> Bounds | None:
    """Returns the bounds from the operations of all devices and the bytes that one device moves and sends; None for a chip
    without published peaks.

    Collectives in loops whose number of passes depends on the data are left out: there may be none.
    """
    chip, devices = topology.chip, len(topology.devices)
    if chip is None:
        return None
    counted = [collective for collective in sent if collective.times is not None]
    between = sum(each.times * each.sent_between_slices for each in counted)
    inside = sum(each.times * each.sent_inside_slices for each in counted)
    hbm_rate = chip.hbm_rate * topology.chips_per_device
    network_rate = chip.network_rate * topology.chips_per_device
    times = {
        "compute": (flops.model + flops.recomputed) / devices / topology.flops,
        "memory": hbm_bytes / hbm_rate,
        "interconnect": inside / topology.interconnect_rate if topology.interconnect_rate else 0.0,
        "network": between / network_rate if between and network_rate else None,
    }
    longest = max(time for time in times.values() if time is not None)
    intensity = (flops.model + flops.recomputed) / devices / max(hbm_bytes, 1)
    best = flops.model / devices / topology.flops / longest
    return Bounds(**times, intensity=intensity, ridge=topology.flops / hbm_rate, best_utilisation=best)
