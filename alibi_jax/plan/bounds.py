"""How fast a program could run at best: its work over each of the chip's published peaks. The longest time binds.

No program reaches these: they assume that all work runs beside all else and nothing waits. So a bound tells what cannot be, and
which of compute, memory and network to look at first. Two things are counted that may not be done: attention to keys that
ALiBi's heads are proved not to need, which at long inputs are most, and of a conditional all branches.
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
from alibi_jax.plan.collectives import Collective
from alibi_jax.plan.topology import Topology
from alibi_jax.sharding import local_size


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations, all devices together, counted from the architecture."""

    model: float  # of the model: what utilisation (MFU) counts
    per_token: float
    attention: (
        float  # of the model's, those of scores and mixing over all keys; ALiBi skips most of them at long inputs
    )
    recomputed: float  # beside the model's: layers that are computed again in the backward pass, and logits


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Least seconds of a step by each peak; None where a peak is not published."""

    compute: float
    memory: float
    interconnect: float
    network: float | None
    intensity: float  # FLOP done for each byte moved to and from memory
    ridge: float  # FLOP the chip can do while it moves a byte
    best_utilisation: float  # of the chips' peak, by the model's operations alone: at most this MFU

    @property
    def times(self) -> dict[str, float]:
        named = {"compute": self.compute, "memory": self.memory, "interconnect": self.interconnect}
        return named | ({"network": self.network} if self.network is not None else {})

    @property
    def seconds(self) -> float:
        return max(self.times.values())

    @property
    def binds(self) -> str:
        return max(self.times, key=self.times.get)


def _again(model: ModelConfig, length: int) -> float:
    """Operations of a token's layers that remat does twice: those of what it does not keep (remat_saves)."""
    if not model.remat or model.remat_saves == "products":
        return 0.0
    kept = attention_flops_per_token(model, length) if model.remat_saves == "attention" else 0.0
    return layers_flops_per_token(model, length) - kept


def train_flops(config: Config) -> Flops:
    """Of one step, inside `jax.set_mesh(mesh)`. Logits are computed twice where a device's are more than model.logits_mib.
    That the kernels' backward passes make scores anew is not counted."""
    model, train = config.model, config.train
    length, tokens = train.train_length, train.batch_size * train.train_length
    rows = local_size(train.batch_size // train.gradient_accumulation, "batch") * local_size(length, "length")
    head = model.clusters[0]
    in_parts = 4 * rows * local_size(head.size, "vocab") > model.logits_mib * 2**20
    again = _again(model, length) + softmax_flops_per_token(model) * in_parts
    total = train_flops_per_token(model, length)
    return Flops(total * tokens, total, 3 * attention_flops_per_token(model, length) * tokens, again * tokens)


def evaluation_flops(config: Config, rows: int, length: int) -> Flops:
    """Of one batch of windows."""
    total, tokens = forward_flops_per_token(config.model, length), rows * length
    return Flops(total * tokens, total, attention_flops_per_token(config.model, length) * tokens, 0.0)


def bounds_of(found: Topology, flops: Flops, hbm_bytes: int, sent: Sequence[Collective]) -> Bounds | None:
    """From the operations of all devices, and what one device moves and sends; None for a chip without published peaks.

    Collectives in loops whose passes depend on the data are left out: there may be none.
    """
    chip, devices = found.chip, len(found.devices)
    if chip is None:
        return None
    counted = [collective for collective in sent if collective.times is not None]
    between = sum(each.times * each.sent_between_slices for each in counted)
    inside = sum(each.times * each.sent_inside_slices for each in counted)
    peak, rate = chip.flops * found.share, chip.hbm_rate * found.share
    links = chip.link_rate * found.links * found.share
    times = {
        "compute": (flops.model + flops.recomputed) / devices / peak,
        "memory": hbm_bytes / rate,
        "interconnect": inside / links if links else 0.0,
        "network": between / (chip.network_rate * found.share) if between and chip.network_rate else None,
    }
    longest = max(time for time in times.values() if time is not None)
    intensity = (flops.model + flops.recomputed) / devices / max(hbm_bytes, 1)
    best = flops.model / devices / peak / longest
    return Bounds(**times, intensity=intensity, ridge=peak / rate, best_utilisation=best)
