"""NVIDIA's cards as the compiler has to know them, and how many blocks of a kernel one of their multiprocessors holds.

The limits of a compute capability are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability"; a card's multiprocessors and memory those of the document beside them.
"""

from typing import NamedTuple

KIB, GB = 2**10, 10**9
WARP = 32  # threads
REGISTERS = 65_536  # of a multiprocessor, and the most of a block; of 32 bits
REGISTER_UNIT = 256  # a warp gets registers in units of so many
WARP_UNIT = 4  # a multiprocessor has so many parts, each with a quarter of the registers: warps are held in fours
RESERVED = KIB  # bytes of shared memory CUDA takes beside each block's own (from compute capability 8.0)
SHARED_UNIT = 128  # bytes; a block gets shared memory in units of so many


class Limits(NamedTuple):
    """What a multiprocessor of a compute capability holds at most."""

    shared_memory: int  # bytes
    warps: int
    blocks: int

    @property
    def block_shared_memory(self) -> int:
        """Returns the most bytes of one block."""
        return self.shared_memory - RESERVED


LIMITS = {
    (8, 0): Limits(164 * KIB, 64, 32),
    (8, 6): Limits(100 * KIB, 48, 16),
    (8, 9): Limits(100 * KIB, 48, 24),
    (9, 0): Limits(228 * KIB, 64, 32),
    (10, 0): Limits(228 * KIB, 64, 32),
    (12, 0): Limits(100 * KIB, 48, 24),
}


class Card(NamedTuple):
    """One card."""

    name: str  # as jax calls the device; without one, jax's Triton backend takes those alone that it knows by name
    capability: tuple[int, int]
    multiprocessors: int
    memory: int  # bytes
    source: str

    @property
    def limits(self) -> Limits:
        """Returns what one of its multiprocessors holds."""
        return LIMITS[self.capability]


CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 80 * GB, "NVIDIA H100 Tensor Core GPU Architecture, SXM5"),
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 80 * GB, "NVIDIA A100 Tensor Core GPU Architecture; data sheet"),
    "a10": Card("NVIDIA A10", (8, 6), 72, 24 * GB, "NVIDIA A10 data sheet: 31.2 TFLOP/s of float32 at 1.695 GHz"),
    "l4": Card("NVIDIA L4", (8, 9), 58, 24 * GB, "NVIDIA L4 data sheet: 7,424 CUDA cores, 128 to a multiprocessor"),
    "b200": Card("NVIDIA B200", (10, 0), 148, 180 * GB, "NVIDIA DGX B200 data sheet; 148 as others report"),
    "rtx6000": Card("NVIDIA RTX PRO 6000", (12, 0), 188, 96 * GB, "NVIDIA RTX Blackwell PRO GPU Architecture"),
}


def target_config(card: Card) -> str:
    """Returns the text from which XLA compiles for a card that is not there (its GpuTargetConfigProto)."""
    major, minor = card.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {card.multiprocessors}
  device_memory_size: {card.memory}
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_block_optin: {card.limits.block_shared_memory}
  shared_memory_per_core: {card.limits.shared_memory}
  registers_per_block_limit: {REGISTERS}
  registers_per_core_limit: {REGISTERS}
  threads_per_warp: {WARP}
  threads_per_block_limit: 1024
  threads_per_core_limit: {WARP * card.limits.warps}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  fpus_per_core: 128
}}
platform_name: "CUDA"
device_description_str: "{card.name}"
"""


def blocks_at_once(limits: Limits, warps: int, registers: int, shared_memory: int) -> int:
    """Returns how many blocks of `warps` warps a multiprocessor holds at once (0: a block does not fit).

    registers: of a thread. shared_memory: bytes of a block. The rules are those of the CUDA C++ Best Practices Guide,
    "Occupancy", and of the tuning guides for Ampere, Ada and Hopper (1 KiB of shared memory is taken for each block).
    """
    of_a_warp = _rounded_up(max(registers, 1) * WARP, REGISTER_UNIT)
    by_registers = REGISTERS // of_a_warp // WARP_UNIT * WARP_UNIT // warps
    by_memory = limits.shared_memory // (_rounded_up(shared_memory, SHARED_UNIT) + RESERVED)
    return min(limits.blocks, limits.warps // warps, by_registers, by_memory)


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
