"""How fast a program could run at best: its work over each of the chip's published peaks. The longest time binds.

No program reaches these bounds: they assume that compute, memory and network overlap perfectly. A bound says what is
impossible, and which of the three to look at first. Attention takes what its kernels' bundles take, where they are known
(attention.py), and else its operations over the peak: all of causal attention, or the share of its blocks that is named, for at
long inputs ALiBi's heads provably do not need most of them. All branches of a conditional are counted.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax

from alibi_jax.config import Config, ModelConfig
from alibi_jax.model.flops import (
    attention_flops_per_token,
    forward_flops_per_token,
    layers_flops_per_token,
    softmax_flops_per_token,
    train_flops_per_token,
)
from alibi_jax.model.remat import layers_keep
from alibi_jax.plan.attention import attention_seconds
from alibi_jax.plan.collectives import Collective
from alibi_jax.plan.topology import Topology
from alibi_jax.sharding import local_size, num_shards


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of all devices together, counted from the architecture."""

    model: float  # of the model: what utilisation (MFU) counts
    per_token: float  # the same for each token
    attention: float  # of the model's, those of scores and weighted sums over all keys; ALiBi skips most at long inputs
    recomputed: float  # beside the model's: layers and logits recomputed in the backward pass
    attention_again: float  # of those, attention's
    passes: tuple[str, ...]  # of attention, those that are run: forward, forward again, backward


class Batch(NamedTuple):
    """What one call of a program computes, over all devices."""

    model: ModelConfig
    rows: int
    length: int  # tokens
    share: float  # of the blocks of causal attention, those visited


@dataclasses.dataclass(frozen=True)
class Attention:
    """The least seconds of attention on one device, what is recomputed included."""

    seconds: float
    share: float  # of the blocks of causal attention, those visited
    by_bundles: bool  # of the kernels, over the clock, without waits for copies; otherwise operations over the peak


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The least seconds of a step by each peak; None where a peak is not published."""

    compute: float  # attention's included
    memory: float
    interconnect: float
    network: float | None
    intensity: float  # FLOP per byte moved to and from memory
    ridge: float  # FLOP the chip can do while it moves one byte
    # of the chips' peak, the highest possible MFU: by the model's operations, of attention's those of the visited share
    best_utilisation: float
    attention: Attention

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


def _recomputed(model: ModelConfig, saves: str, length: int) -> tuple[float, float]:
    """Returns the operations per token that remat does twice, those of the activations it does not keep; and attention's."""
    if saves in ("all", "products"):
        return 0.0, 0.0
    attention = attention_flops_per_token(model, length)
    layers = layers_flops_per_token(model, length)
    return (layers, attention) if saves == "inputs" else (layers - attention, 0.0)


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
    recomputed, again = _recomputed(model, layers_keep(model, rows, length), length)
    recomputed += softmax_flops_per_token(model) * in_chunks
    total, attention = train_flops_per_token(model, length), 3 * attention_flops_per_token(model, length)
    passes = ("forward", *["forward"] * (again > 0), "backward")
    return Flops(total * tokens, total, attention * tokens, recomputed * tokens, again * tokens, passes)


def evaluation_flops(config: Config, rows: int, length: int) -> Flops:
    """Returns the operations of scoring one batch of `rows` windows."""
    total = forward_flops_per_token(config.model, length)
    tokens = rows * length
    return Flops(
        total * tokens, total, attention_flops_per_token(config.model, length) * tokens, 0.0, 0.0, ("forward",)
    )


def attention_of(topology: Topology, batch: Batch, flops: Flops, has_kernels: bool) -> Attention | None:
    """Returns attention's time on one device, in a program that runs its kernels or does not; None for a chip without published
    peaks.

    Where a sequence is split over devices, the mean of their times. Called inside `jax.set_mesh(mesh)`.
    """
    if topology.chip is None:
        return None
    figures = has_kernels and batch.model.causal  # the bundles are counted for causal attention
    seconds = _kernel_seconds(topology, batch, flops) if figures else None
    if seconds is not None:
        return Attention(seconds, batch.share, True)
    operations = batch.share * (flops.attention + flops.attention_again)
    return Attention(operations / len(topology.devices) / topology.flops, batch.share, False)


def _kernel_seconds(topology: Topology, batch: Batch, flops: Flops) -> float | None:
    model = batch.model
    seconds = attention_seconds(
        topology.chip.name,
        local_size(model.num_heads, "heads"),
        model.head_width,
        model.compute_dtype,
        local_size(batch.rows, "batch"),
        batch.length,
        batch.share,
        flops.passes,
    )
    parts = num_shards(jax.sharding.get_abstract_mesh(), "length")
    return None if seconds is None else model.num_layers * seconds / parts


def bounds_of(
    topology: Topology, flops: Flops, hbm_bytes: int, sent: Sequence[Collective], attention: Attention | None
) -> Bounds | None:
    """Returns the bounds from the operations of all devices, the bytes that one device moves and sends and its attention's
    time; None for a chip without published peaks.

    Collectives in loops whose number of passes depends on the data are left out: there may be none.
    """
    chip, devices = topology.chip, len(topology.devices)
    if attention is None:
        return None
    counted = [collective for collective in sent if collective.times is not None]
    between = sum(each.times * each.sent_between_slices for each in counted)
    inside = sum(each.times * each.sent_inside_slices for each in counted)
    hbm_rate = chip.hbm_rate * topology.chips_per_device
    network_rate = chip.network_rate * topology.chips_per_device
    others = flops.model + flops.recomputed - flops.attention - flops.attention_again
    times = {
        "compute": others / devices / topology.flops + attention.seconds,
        "memory": hbm_bytes / hbm_rate,
        "interconnect": inside / topology.interconnect_rate if topology.interconnect_rate else 0.0,
        "network": between / network_rate if between and network_rate else None,
    }
    longest = max(time for time in times.values() if time is not None)
    useful = flops.model - (1 - attention.share) * flops.attention
    done = others + attention.share * (flops.attention + flops.attention_again)
    return Bounds(
        **times,
        intensity=done / devices / max(hbm_bytes, 1),
        ridge=topology.flops / hbm_rate,
        best_utilisation=useful / devices / topology.flops / longest,
        attention=attention,
    )
