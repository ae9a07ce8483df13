"""Accelerators and their published figures: the one table that utilisation and plans are computed from."""

from typing import NamedTuple

GB, GIB = 10**9, 2**30


class Chip(NamedTuple):
    """One chip. Rates are published peaks, which no program reaches: a plan's times computed from them are lower bounds."""

    name: str
    kinds: tuple[str, ...]  # beginnings of jax's device_kind
    flops: float  # dense bfloat16 FLOP/s
    hbm_bytes: float  # memory, as published
    usable_bytes: float  # what XLA's compiler (libtpu 0.0.42) lets a program have; all of it where that is not known
    hbm_rate: float  # bytes/s between the chip and its memory
    link_rate: float  # bytes/s one link of the interconnect carries one way
    links: int  # of a chip: two for each dimension of a torus
    network_rate: float  # bytes/s per chip of the data-centre network between slices, one way; 0: not published
    source: str
    devices: int = 1  # devices jax shows for a chip
    cores: int = 1  # TensorCores of a TPU
    clock: float | None = None  # cycles/s of a TensorCore; None: not known

    @property
    def interconnect_rate(self) -> float:
        """Returns the bytes/s one chip can send over all its links at once."""
        return self.link_rate * self.links


# Google publishes a chip's interconnect as the sum of all its links in both directions: half of that is sent, over 4 or 6
# links (the v4 paper gives 50 GB/s per link); the data-centre network in bits per chip, for v5e per pod of 256 chips.
# A TensorCore's clock: v5e's is in https://jax-ml.github.io/scaling-book/tpus. Where none is published it is derived: the peak
# over the operations of a cycle and core, 2 x 128 x 128 for each of v5p's four arrays, 2^19 of v6e and tpu7x.
_TPU = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kinds=("TPU v4",),
            flops=275e12,
            hbm_bytes=32 * GIB,
            usable_bytes=30.5 * GIB,
            hbm_rate=1200 * GB,
            link_rate=50 * GB,
            links=6,
            network_rate=0,
            source=f"{_TPU}v4, https://arxiv.org/abs/2304.01433",
        ),
        Chip(
            name="v5e",
            kinds=("TPU v5 lite", "TPU v5e"),
            flops=197e12,
            hbm_bytes=16 * GIB,
            usable_bytes=15.75 * GIB,
            hbm_rate=819 * GB,
            link_rate=50 * GB,  # 400 GB/s both ways
            links=4,
            network_rate=3.125 * GB,  # 6.4 Tbit/s a pod
            source=f"{_TPU}v5e",
            clock=1.5e9,
        ),
        Chip(
            name="v5p",
            kinds=("TPU v5p", "TPU v5"),
            flops=459e12,
            hbm_bytes=96 * GIB,  # published as 95; the compiler gives a program more than that
            usable_bytes=95.74 * GIB,
            hbm_rate=2765 * GB,
            link_rate=100 * GB,  # 1,200 GB/s both ways
            links=6,
            network_rate=6.25 * GB,  # 50 Gbit/s
            source=f"{_TPU}v5p",
            cores=2,
            clock=1.75e9,
        ),
        Chip(
            name="v6e",
            kinds=("TPU v6 lite", "TPU v6e"),
            flops=918e12,
            hbm_bytes=32 * GIB,
            usable_bytes=31.25 * GIB,
            hbm_rate=1638 * GB,
            link_rate=100 * GB,  # 800 GB/s both ways
            links=4,
            network_rate=12.5 * GB,  # 100 Gbit/s
            source=f"{_TPU}v6e, {_TPU}tpu7x",
            clock=918e12 / 2**19,  # 1.75 GHz
        ),
        Chip(
            name="tpu7x",
            kinds=("TPU7x",),
            flops=2307e12,
            hbm_bytes=192 * GIB,
            usable_bytes=189.5 * GIB,
            hbm_rate=7380 * GB,
            link_rate=100 * GB,  # 1,200 GB/s both ways
            links=6,
            network_rate=12.5 * GB,  # 100 Gbit/s
            source=f"{_TPU}tpu7x",
            devices=2,
            cores=2,
            clock=2307e12 / 2 / 2**19,  # 2.2 GHz
        ),
        Chip(
            name="A100",
            kinds=("NVIDIA A100",),
            flops=312e12,
            hbm_bytes=80 * GB,
            usable_bytes=80 * GB,
            hbm_rate=2039 * GB,
            link_rate=25 * GB,  # NVLink: 600 GB/s both ways
            links=12,
            network_rate=0,
            source=f"{_NVIDIA}a100",
        ),
        Chip(
            name="H100 PCIe",
            kinds=("NVIDIA H100 PCIe",),
            flops=756e12,
            hbm_bytes=80 * GB,
            usable_bytes=80 * GB,
            hbm_rate=2000 * GB,
            link_rate=64 * GB,  # PCIe 5: 128 GB/s both ways
            links=1,
            network_rate=0,
            source=f"{_NVIDIA}h100",
        ),
        Chip(
            name="H100",
            kinds=("NVIDIA H100",),
            flops=989e12,
            hbm_bytes=80 * GB,
            usable_bytes=80 * GB,
            hbm_rate=3350 * GB,
            link_rate=25 * GB,  # NVLink: 900 GB/s both ways
            links=18,
            network_rate=0,
            source=f"{_NVIDIA}h100",
        ),
        Chip(
            name="H200",
            kinds=("NVIDIA H200",),
            flops=989e12,
            hbm_bytes=141 * GB,
            usable_bytes=141 * GB,
            hbm_rate=4800 * GB,
            link_rate=25 * GB,  # NVLink: 900 GB/s both ways
            links=18,
            network_rate=0,
            source=f"{_NVIDIA}h200",
        ),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a device_kind of jax, by the longest beginning that matches; None where the table has none."""
    fitting = [(len(kind), chip) for chip in CHIPS.values() for kind in chip.kinds if device_kind.startswith(kind)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None
