"""Readers of what NVIDIA's tools and XLA write about a kernel: PTX, `ptxas -v`, `nvdisasm -c`, XLA's list of launches."""

import re
from typing import NamedTuple

MATRIX_PTX = {
    "wgmma.mma_async": "wgmma",
    "tcgen05.mma": "tcgen05",
    "mma.sync": "mma.sync",
}  # tensor cores' instructions
MATRIX_SASS = ("HMMA", "HGMMA", "QGMMA", "UTCHMMA")
LOCAL_SASS = ("LDL", "STL")  # loads and stores of local memory, where spilled registers lie


class Usage(NamedTuple):
    """What ptxas gave a kernel: registers of a thread, bytes of a thread's local memory."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


class Loop(NamedTuple):
    """The instructions of a loop's body that each warp issues."""

    instructions: int
    matrix: int  # for the tensor cores
    local: int  # loads and stores of local memory


def kernels(ptx: str) -> list[str]:
    """Returns the names of the kernels in a PTX text; XLA also writes texts without any."""
    return re.findall(r"^\.visible \.entry (\w+)\(", ptx, re.MULTILINE)


def target(ptx: str) -> str:
    """Returns the architecture a PTX text is written for, such as sm_90a."""
    return re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]


def matrix_unit(ptx: str) -> str:
    """Returns which instructions multiply matrices: wgmma, tcgen05, mma.sync, or fma where no tensor core does."""
    return next((name for text, name in MATRIX_PTX.items() if text in ptx), "fma")


def usage(text: str) -> Usage:
    """Returns what `ptxas -v` wrote about a file of one kernel; ValueError for another text."""
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    registers = re.search(r"Used (\d+) registers", text)
    if frame is None or registers is None:
        raise ValueError(f"ptxas -v: got {text!r}, expected registers and spills. Correct the reader for this ptxas.")
    return Usage(int(registers[1]), *map(int, frame.groups()))


def serialized(text: str) -> bool:
    """Returns whether `ptxas -v` wrote that wgmma instructions wait for each other (its note C7510 and the like)."""
    return "wgmma.mma_async instructions are serialized" in text


def shared_memory(launches: str) -> dict[str, int]:
    """Returns the bytes of shared memory of a block, by kernel, from XLA's thunk_sequence.txt."""
    pattern = r"(\w+) grid: \[[^]]*\] threads: \[[^]]*\] +shared_memory: (\d+) bytes"
    return {name: int(size) for name, size in re.findall(pattern, launches)}


def mosaic_shared_memory(resources: str) -> int:
    """Returns the bytes of shared memory of a block, without its few barriers, from Mosaic GPU's resources.txt."""
    return int(re.search(r"smem_scratch_bytes=(\d+)", resources)[1])


def loops(sass: str) -> list[Loop]:
    """Returns the innermost loops of one kernel in program order, from `nvdisasm -c`: from a label to the branch back to it."""
    operations, labels, spans = [], {}, []
    for line in sass.splitlines():
        label = re.match(r"(\.L_x_\d+):", line)
        instruction = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)\S*(.*)", line)
        if label:
            labels[label[1]] = len(operations)
        elif instruction:
            back = re.search(r"\((\.L_x_\d+)\)", instruction[2]) if instruction[1] == "BRA" else None
            operations.append(instruction[1])
            if back and labels.get(back[1], len(operations)) < len(operations) - 1:  # not the last `stay here`
                spans.append((labels[back[1]], len(operations)))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [_loop(operations[first:end]) for first, end in sorted(inner)]


def visit(inner: list[Loop]) -> Loop:
    """Returns the loop over blocks that need no mask: the first of those that do most of the work for the tensor cores.

    Without tensor cores the first loop; ValueError where there is none.
    """
    most = max(loop.matrix for loop in inner)
    return next(loop for loop in inner if loop.matrix == most)


def _loop(operations: list[str]) -> Loop:
    return Loop(
        len(operations),
        sum(name in MATRIX_SASS for name in operations),
        sum(name in LOCAL_SASS for name in operations),
    )
