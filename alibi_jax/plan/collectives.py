"""What the devices send each other: every collective of a program, its bytes, how often, over which axes, and what for."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alibi_jax.plan.groups import along, between_slices, groups_of
from alibi_jax.plan.hlo import Instruction, Program, Visit
from alibi_jax.sharding import RULES

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
TRANSFERS = {  # between slices a TPU's program sends to its host, which does the rest
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
}
PARTS = {  # of the model, as paths in op_name say
    "attention": "attention",
    "mlp": "the MLP",
    "embedding": "the embedding",
    "softmax": "the softmax over the vocabulary",
    "norm": "a norm",
}
LOOK_BACK = 4  # instructions before a merged collective in which its path is looked for: merging forgets it


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program that every device runs."""

    kind: str
    bytes: int  # of the whole array: what is gathered, reduced, exchanged or passed on
    group_size: int  # devices that take part together
    slices: int  # over how many slices these stand
    axes: tuple[str, ...]  # of the mesh, along which they differ
    times: int | None  # in one step; None: as often as the data ask for
    place: str  # "once", "25 times, in a loop"
    arrays: str  # the largest array and how many there are
    op_name: str
    purpose: str

    @property
    def _share(self) -> float:
        """Of its bytes a device sends, over the best ring: (g - 1) / g, twice for an all-reduce, all of a permutation."""
        if self.kind == "collective-permute":
            return 1.0
        return (2 if self.kind == "all-reduce" else 1) * (self.group_size - 1) / self.group_size

    @property
    def sent(self) -> float:
        """Bytes a device sends each time."""
        return self.bytes * self._share

    @property
    def sent_between_slices(self) -> float:
        """Bytes a device has to send over the data-centre network each time, where every device of a slice takes an equal
        part: (s - 1) / s of the array leave or enter each slice, twice for an all-reduce."""
        if self.slices == 1:
            return 0.0
        if self.kind == "collective-permute":
            return float(self.bytes)
        ways = (2 if self.kind == "all-reduce" else 1) * (self.slices - 1) / self.slices
        members = 1 if self.kind == "all-to-all" else self.group_size / self.slices
        return self.bytes * ways / members

    @property
    def sent_inside_slices(self) -> float:
        """Bytes a device sends over the interconnect each time: all, or what is left to do among those of its own slice."""
        if self.slices == 1:
            return self.sent
        members = self.group_size / self.slices
        passes = {"all-reduce": 2.0, "collective-permute": 0.0}.get(self.kind, 1.0)
        return self.bytes * passes * (members - 1) / members


class Found(NamedTuple):
    """A collective where it is printed."""

    instruction: Instruction
    kind: str
    scope: Mapping[str, Instruction]  # its computation
    visit: Visit  # of the instruction that runs it: itself, or the fusion it is within
    path: str  # op_name of what is around it


def _kind(instruction: Instruction) -> str:
    """Of collective; any other instruction's opcode."""
    if instruction.opcode != "send":
        return instruction.opcode.removesuffix("-start")
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    return TRANSFERS.get(transfer[1], "collective-permute") if transfer else "send"


def _inside(program: Program, visit: Visit, computation: str = "", around: str = "") -> Iterator[Found]:
    """The collectives an instruction is or starts, those in its fused or asynchronous computations too.

    A TPU's compiler writes a reduce-scatter as an all-reduce in a fusion that it calls all-reduce-scatter.
    """
    instruction, computation = visit.instruction, computation or visit.computation
    scope, kind = program.computations[computation], _kind(instruction)
    path = _path(instruction, scope) or around
    if kind in KINDS:
        kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else kind
        yield Found(instruction, kind, scope, visit, path)
    if instruction.opcode in ("fusion", "async-start", "custom-call"):
        for callee in instruction.called("calls", "called_computations"):
            for inner in program.computations[callee].values():
                yield from _inside(program, visit._replace(instruction=inner), callee, path)


def _channel(instruction: Instruction) -> str | None:
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    return match[1] if match else None


def _bytes(kind: str, instruction: Instruction, scope: Mapping[str, Instruction], group_size: int) -> tuple[int, str]:
    """(bytes of the whole array, its description) from the operands: a started collective's result holds them too."""
    is_one = kind == "collective-permute" or instruction.opcode == "send"
    operands = instruction.operands[:1] if is_one else instruction.operands
    arrays = [array for name in operands for array in scope[name].arrays]
    largest = max(arrays, key=lambda array: array.bytes)
    ways = group_size if kind == "all-gather" else 1
    said = f"{largest.dtype}[{','.join(map(str, largest.dims))}]"
    said += f" from each of {ways}" if ways > 1 else ""
    said += f" and {len(arrays) - 1} more" if len(arrays) > 1 else ""
    return ways * sum(array.bytes for array in arrays), said


def _path(instruction: Instruction, scope: Mapping[str, Instruction], depth: int = LOOK_BACK) -> str:
    """Its op_name, or else those of the nearest instructions that feed it."""
    if instruction.op_name or depth == 0:
        return instruction.op_name
    paths = (_path(scope[name], scope, depth - 1) for name in instruction.operands if name in scope)
    return ";".join(dict.fromkeys(filter(None, paths)))


def _padded(instruction: Instruction, scope: Mapping[str, Instruction]) -> str:
    """How many operands ("all", "some", "none") are parts put into arrays of zeros: the compiler gathers some weights so."""
    feeding = [scope[name] for name in instruction.operands]
    padded = sum("dynamic-update-slice" in (each.opcode, *each.name.split(".")) for each in feeding)
    return "none" if not padded else "all" if 2 * padded > len(feeding) else "some"


def purpose_of(kind: str, axes: Sequence[str], path: str, padded: str = "none") -> str:
    """What a collective is for, in words: read from its kind, its axes and the paths it comes from."""
    found = [said for name, said in PARTS.items() if re.search(rf"/(\w+_)?{name}(/|;|$)", path)]
    part = " and ".join(found) or ("the layers" if "/layers" in path else "the model")
    backward = "transpose(" in path
    again = ", backward" if backward else ""
    if kind == "collective-permute" and RULES["length"] in axes:
        return f"{part}: parts of the sequence on their way round the ring{again}"
    if kind == "collective-permute" and RULES["width"] in axes:
        return f"{part}: weights or gradients passed on from device to device while they are multiplied{again}"
    if kind == "all-to-all":
        return f"{part}: exchanged between devices that hold other channels and other tokens{again}"
    if kind in ("all-reduce", "all-gather") and padded == "all":
        return f"weights of {part}, gathered where they are used{again}, as a sum of parts padded with zeros"
    if kind == "all-gather" and RULES["width"] in axes:
        return f"weights of {part}, gathered where they are used{again}"
    if kind in ("all-reduce", "reduce-scatter") and set(axes) & set(RULES["tokens"]):
        more = "; weights gathered as a sum of parts among them" if padded == "some" else ""
        is_gradient = backward or kind == "reduce-scatter"
        return f"gradients of {part}, summed over the batch{more}" if is_gradient else f"{part}: sums over the batch"
    if set(axes) == {RULES["heads"]}:
        return f"{part}: parts of its output, summed over the split of heads, channels or words{again}"
    return f"{part}{again}"


def _place(loops: tuple[int | None, ...]) -> str:
    if not loops:
        return "once"
    said = " x ".join("as the data ask" if passes is None else f"{passes:,}" for passes in loops)
    return f"in a loop of {said}" if len(loops) == 1 else f"in loops of {said}"


class Devices(NamedTuple):
    """How a program's partitions are numbered: through a mesh, and over slices."""

    mesh: Mapping[str, int]  # axis -> size; empty: not known
    slice_of: np.ndarray  # of each partition; empty: all in one

    def group(self, instruction: Instruction, partitions: int) -> tuple[int, int, tuple[str, ...]]:
        """(devices that take part in a collective together, slices they are in, axes they differ in)."""
        if instruction.opcode == "send":
            across = self.slice_of.reshape(tuple(self.mesh.values()))
            axes = (axis for at, axis in enumerate(self.mesh) if (across != across.take([0], at)).any())
            return *between_slices(instruction.attributes), tuple(axes)
        groups = groups_of(instruction.attributes, partitions)
        slices = max(len(set(group)) for group in self.slice_of[groups].tolist()) if self.slice_of.size else 1
        return groups.shape[1], slices, along(groups, self.mesh) if self.mesh else ()


def _read(program: Program, found: Found, devices: Devices) -> Collective:
    instruction, kind, scope, visit, path = found
    members, slices, axes = devices.group(instruction, program.partitions)
    size, arrays = _bytes(kind, instruction, scope, members)
    is_number = arrays[0] in "su"
    purpose = "token numbers" if is_number else purpose_of(kind, axes, path, _padded(instruction, scope))
    return Collective(kind, size, members, slices, axes, visit.times, _place(visit.loops), arrays, path, purpose)


def collectives(
    program: Program, mesh: Mapping[str, int] | None = None, slice_of: Sequence[int] = ()
) -> list[Collective]:
    """Every collective of a compiled program, once each: one spread over several fusions keeps its channel.

    mesh: axis -> size, as the partitions are numbered. slice_of: the slice of each partition; empty: all in one.
    """
    found: dict[tuple, Found] = {}
    for at, visit in enumerate(program.visits):
        for collective in _inside(program, visit):
            is_spread = collective.instruction.name not in program.computations[visit.computation]
            channel = _channel(collective.instruction) if is_spread else None
            found.setdefault((channel or at, collective.kind, visit.loops), collective)
    devices = Devices(mesh or {}, np.asarray(slice_of, int))
    read = [_read(program, collective, devices) for collective in found.values()]
    return [collective for collective in read if collective.group_size > 1]
