"""A name such as v5e:16x16 -> devices to compile for, which this machine need not have.

Google's own names count differently: v5p-128 and v4-128 count cores, two per chip, and so have 64 chips: v5p:4x4x4, v4:4x4x4.
v5e-256 and v6e-256 count chips. The TPUs' compiler (libtpu) describes its devices; `cpu:8` is eight of this machine's.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from alibi_jax.config import MeshConfig
from alibi_jax.errors import ConfigError, require, shown
from alibi_jax.plan.chips import CHIPS, Chip
from alibi_jax.sharding import AXES, make_mesh


class Generation(NamedTuple):
    """The slices that exist of one kind of chip."""

    smallest: str
    largest: str
    examples: str


GENERATIONS = {
    "v4": Generation("2x2x1", "16x16x16", "2x2x2, 4x4x4, 8x8x8"),
    "v5e": Generation("1x1", "16x16", "2x2, 2x4, 4x4, 8x8, 8x16"),
    "v5p": Generation("2x2x1", "16x16x24", "2x2x2, 2x4x4, 4x4x4, 8x8x8, 8x16x16"),
    "v6e": Generation("1x1", "16x16", "2x2, 2x4, 4x4, 8x8, 8x16"),
    "tpu7x": Generation("2x2x1", "16x24x24", "2x2x2, 4x4x4, 8x8x8, 8x8x16"),
}
TPU_ENVIRONMENT = {  # so that the compiler looks for no TPU, and accepts another process that compiles
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """Devices to compile for, and how they are connected."""

    name: str
    chip: Chip | None  # None: a kind not in the table, such as this machine's processor
    devices: list
    chips: int
    slices: int
    links: int  # of a chip, those that lead to a neighbour in a slice of this shape

    @property
    def chips_per_device(self) -> float:
        """Returns the fraction of a chip that one device is: a half where jax shows a chip as two."""
        return self.chips / len(self.devices)

    @property
    def usable_bytes(self) -> int | None:
        """Returns the bytes of memory that a program may have on one device; None where that is not known."""
        return round(self.chip.usable_bytes * self.chips_per_device) if self.chip else None

    @property
    def flops(self) -> float:
        """Returns the published peak of one device, FLOP/s in bfloat16."""
        return self.chip.flops * self.chips_per_device

    @property
    def interconnect_rate(self) -> float:
        """Returns the bytes/s that one device can send over all links in use, one way."""
        return self.chip.link_rate * self.links * self.chips_per_device


def known_topologies() -> str:
    """Returns the names that `find_topology` knows, for messages."""
    kinds = (f"{name}:{g.smallest} ... {g.largest} ({g.examples})" for name, g in GENERATIONS.items())
    return "; ".join([*kinds, "cpu:1 ... cpu:64"])


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split("x")]


def _unknown(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"topology: got {shown(name)}, {reason}, expected one of {known_topologies()}. Choose one of these."
    )


def find_topology(name: str, slices: int = 1) -> Topology:
    """Returns the topology of a name such as v5e:16x16; with slices=8, eight such slices joined by the data-centre network.

    ConfigError for one that does not exist, and where the TPU compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    is_tpu = kind in GENERATIONS and re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})*", shape)
    if not is_tpu and not re.fullmatch(r"cpu:[0-9]{1,6}", name):
        raise _unknown(name, "which is not a topology")
    require(slices >= 1, "slices", slices, "at least 1", "Raise it.")
    if kind == "cpu":
        require(slices == 1, "slices", slices, "1 for cpu", "Leave it out.")
        return Topology(name, None, _cpus(name, int(shape)), int(shape), 1, 0)
    sizes, largest = _sizes(shape), _sizes(GENERATIONS[kind].largest)
    if len(sizes) != len(largest) or math.prod(sizes) > math.prod(largest) or 0 in sizes:
        raise _unknown(name, f"which is not a shape of {len(largest)} sizes of at most {math.prod(largest):,} chips")
    devices = _tpus(name, math.prod(sizes), slices)
    links = sum(min(2, size - 1) for size in sizes)  # no ring needs more than two, and of two chips each has one
    return Topology(name, CHIPS[kind], devices, slices * math.prod(sizes), slices, links)


def _tpus(name: str, chips: int, slices: int) -> list:
    require(
        importlib.util.find_spec("libtpu") is not None,
        "topology",
        f"{name} without libtpu",
        "the TPU's compiler, which runs without a TPU",
        "Install it: pip install -e '.[tpu]'.",
    )
    for key, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chips == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise _unknown(name, f"which the compiler does not know ({error})") from error


def _cpus(name: str, count: int) -> list:
    """Returns `count` of this process's CPU devices; jax makes as many as that, if nothing has run yet."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except (RuntimeError, ValueError):  # already running, or XLA_FLAGS says otherwise
        pass
    devices = jax.devices("cpu")
    require(
        1 <= count <= len(devices),
        "topology",
        f"{name} where this process has {len(devices)} CPU devices",
        "no more than that, once jax is running",
        f"Start again with XLA_FLAGS=--xla_force_host_platform_device_count={max(count, 1)}.",
    )
    return devices[:count]


def mesh_on(config: MeshConfig, topology: Topology) -> Mesh:
    """Returns a mesh of the config's sizes over a topology's devices. ConfigError where they do not multiply out."""
    chip, devices = topology.chip, topology.devices
    if chip is not None and topology.chips_per_device < 1 / chip.devices:  # v4 as cores, which no real run sees
        sizes = make_mesh(config, jax.devices("cpu")[:1] * len(devices)).devices.shape
        return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return make_mesh(config, devices)
