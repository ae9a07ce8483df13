"""Our kernels for GPUs: which there are, which can be had on a device, and which may be timed."""

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from alibi_jax.attention import IMPLEMENTATIONS
from alibi_jax.sharding import device

KERNELS = tuple(name for name, each in IMPLEMENTATIONS.items() if each.platform == "gpu")
ALL_TAKE_PART: Mapping[str, str] = MappingProxyType({})  # kernel -> why it is left out
TIMED_DTYPE = "bfloat16"
SERVED = "cases served"  # of the part `correctness`, a kernel's last row


def our_kernels(interpret: bool, without: Mapping[str, str]) -> dict[str, str]:
    """Returns our kernels, each with why it cannot be had on this device, or why it is left out, or "".

    without: kernel -> why it is left out.
    """
    return {name: without.get(name) or IMPLEMENTATIONS[name].obstacle(device(), interpret) or "" for name in KERNELS}


def unproven(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns the kernels that the part `correctness` did not show to be right in the dtype that is timed, each with why.

    record: what that part wrote.
    """
    reasons = {}
    for kernel in KERNELS:
        rows = [row for row in record["rows"] if row["kernel"] == kernel]
        passed = [row["passed"] for row in rows if row["dtype"] == TIMED_DTYPE]
        if not all(passed):
            wrong = f"{passed.count(False)} of {len(passed)} {TIMED_DTYPE} rows"
            reasons[kernel] = f"left out: {wrong} of its correctness did not pass"
        elif not any(row["case"] == SERVED for row in rows):
            end = (record["error"] or "it was cut").strip().splitlines()[-1]
            reasons[kernel] = f"left out: its correctness did not finish ({end})"
    return reasons


def kernel_and_reason(text: str) -> tuple[str, str]:
    """Returns (kernel, why it is left out) of an option KERNEL or KERNEL:WHY; an error of argparse for an unknown kernel."""
    name, _, reason = text.partition(":")
    if name not in KERNELS:
        raise argparse.ArgumentTypeError(f"got {name!r}, expected one of {', '.join(KERNELS)}. Correct the name.")
    return name, reason.strip() or "left out by --without"
