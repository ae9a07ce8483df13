"""The collectives of a compiled program: bytes, how often each runs, over which mesh axes, and what for."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from alibi_jax.plan.groups import along, between_slices, groups_of
from alibi_jax.plan.hlo import Instruction, Program, Visit
from alibi_jax.sharding import RULES

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
TRANSFERS = {  # between slices a TPU's program sends to its host, which carries out the collective
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
}
MODULES = {  # of the model, by their names in op_name
    "attention": "attention",
    "mlp": "the MLP",
    "embedding": "the embedding",
    "softmax": "the softmax over the vocabulary",
    "norm": "a norm",
}
LOOK_BACK = 4  # operands up which the path of a merged collective is searched: merging drops its own


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program that every device runs."""

    kind: str
    bytes: int  # of the whole array that is gathered, reduced, exchanged or permuted
    group_size: int  # devices in each group
    slices: int  # slices that the devices of a group are in
    axes: tuple[str, ...]  # of the mesh, along which the devices of a group differ
    times: int | None  # in one step; None: it depends on the data
    place: str  # "once", "in a loop of 25"
    arrays: str  # the largest array and how many there are
    op_name: str
    purpose: str

    @property
    def sent(self) -> float:
        """Returns the bytes a device sends each time over the best ring of g devices: (g - 1) / g of the array, twice that for
        an all-reduce, all of it for a permutation."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        return self.bytes * ((2 if self.kind == "all-reduce" else 1) * (self.group_size - 1) / self.group_size)

    @property
    def sent_between_slices(self) -> float:
        """Returns the bytes a device sends over the data-centre network each time, where the devices of a slice divide the work
        equally: (s - 1) / s of the array leaves or enters each of s slices, twice for an all-reduce."""
        if self.slices == 1:
            return 0.0
        if self.kind == "collective-permute":
            return float(self.bytes)
        ways = (2 if self.kind == "all-reduce" else 1) * (self.slices - 1) / self.slices
        members = 1 if self.kind == "all-to-all" else self.group_size / self.slices
        return self.bytes * ways / members

    @property
    def sent_inside_slices(self) -> float:
        """Returns the bytes a device sends over the interconnect each time: all, or those for devices of its own slice."""
        if self.slices == 1:
            return self.sent
        members = self.group_size / self.slices
        passes = {"all-reduce": 2.0, "collective-permute": 0.0}.get(self.kind, 1.0)
        return self.bytes * passes * (members - 1) / members


class Occurrence(NamedTuple):
    """A collective at one place of a program's text."""

    instruction: Instruction
    kind: str
    scope: Mapping[str, Instruction]  # the computation it is in
    visit: Visit  # of the instruction that runs it: itself, or the fusion that contains it
    path: str  # its op_name, or that of the instruction around it


def _kind(instruction: Instruction) -> str:
    """Returns the kind of a collective; of any other instruction its opcode."""
    if instruction.opcode != "send":
        return instruction.opcode.removesuffix("-start")
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    return TRANSFERS.get(transfer[1], "collective-permute") if transfer else "send"


def _inside(program: Program, visit: Visit, computation: str = "", around: str = "") -> Iterator[Occurrence]:
    """Yields the collectives that an instruction is or starts, also those in its fused or asynchronous computations.

    A TPU's compiler writes a reduce-scatter as an all-reduce in a fusion that it calls all-reduce-scatter.
    """
    instruction = visit.instruction
    computation = computation or visit.computation
    scope = program.computations[computation]
    kind = _kind(instruction)
    path = _path(instruction, scope) or around
    if kind in KINDS:
        kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else kind
        yield Occurrence(instruction, kind, scope, visit, path)
    if instruction.opcode in ("fusion", "async-start", "custom-call"):
        for callee in instruction.called("calls", "called_computations"):
            for inner in program.computations[callee].values():
                yield from _inside(program, visit._replace(instruction=inner), callee, path)


def _channel(instruction: Instruction) -> str | None:
    match = re.search(r"channel_id=(\d+)", instruction.attributes)
    return match[1] if match else None


def _bytes(kind: str, instruction: Instruction, scope: Mapping[str, Instruction], group_size: int) -> tuple[int, str]:
    """Returns (bytes of the whole array, its description) from the operands: a started collective's result holds them too."""
    is_one = kind == "collective-permute" or instruction.opcode == "send"
    operands = instruction.operands[:1] if is_one else instruction.operands
    arrays = [array for name in operands for array in scope[name].arrays]
    largest = max(arrays, key=lambda array: array.bytes)
    ways = group_size if kind == "all-gather" else 1
    text = f"{largest.dtype}[{','.join(map(str, largest.dims))}]"
    text += f" from each of {ways}" if ways > 1 else ""
    text += f" and {len(arrays) - 1} more" if len(arrays) > 1 else ""
    return ways * sum(array.bytes for array in arrays), text


def _path(instruction: Instruction, scope: Mapping[str, Instruction], depth: int = LOOK_BACK) -> str:
    """Returns an instruction's op_name, or else those of the nearest instructions among its operands."""
    if instruction.op_name or depth == 0:
        return instruction.op_name
    paths = (_path(scope[name], scope, depth - 1) for name in instruction.operands if name in scope)
    return ";".join(dict.fromkeys(filter(None, paths)))


def _padded(instruction: Instruction, scope: Mapping[str, Instruction]) -> str:
    """Returns how many operands ("all", "some", "none") are shards padded with zeros: the compiler gathers some weights so."""
    operands = [scope[name] for name in instruction.operands]
    padded = sum("dynamic-update-slice" in (each.opcode, *each.name.split(".")) for each in operands)
    return "none" if not padded else "all" if 2 * padded > len(operands) else "some"


def purpose_of(kind: str, axes: Sequence[str], path: str, padded: str = "none") -> str:
    """Returns what a collective is for, as text: inferred from its kind, its axes and the op_names it comes from."""
    names = [text for name, text in MODULES.items() if re.search(rf"/(\w+_)?{name}(/|;|$)", path)]
    module = " and ".join(names) or ("the layers" if "/layers" in path else "the model")
    is_backward = "transpose(" in path
    backward = ", backward" if is_backward else ""
    if kind == "collective-permute" and RULES["length"] in axes:
        return f"{module}: shards of the sequence passed around the ring{backward}"
    if kind == "collective-permute" and RULES["width"] in axes:
        return f"{module}: weights or gradients passed from device to device during a product{backward}"
    if kind == "all-to-all":
        return f"{module}: exchanged between devices that hold other channels and other tokens{backward}"
    if kind in ("all-reduce", "all-gather") and padded == "all":
        return f"weights of {module}, gathered where they are used{backward}, as a sum of shards padded with zeros"
    if kind == "all-gather" and RULES["width"] in axes:
        return f"weights of {module}, gathered where they are used{backward}"
    if kind in ("all-reduce", "reduce-scatter") and set(axes) & set(RULES["tokens"]):
        more = "; among them weights, gathered as a sum of padded shards" if padded == "some" else ""
        is_gradient = is_backward or kind == "reduce-scatter"
        return (
            f"gradients of {module}, summed over the batch{more}" if is_gradient else f"{module}: sums over the batch"
        )
    if set(axes) == {RULES["heads"]}:
        return f"{module}: partial outputs, summed over the split of heads, channels or vocabulary{backward}"
    return f"{module}{backward}"


def _place(loops: tuple[int | None, ...]) -> str:
    if not loops:
        return "once"
    passes = " x ".join("a number that depends on the data" if count is None else f"{count:,}" for count in loops)
    return f"in a loop of {passes}" if len(loops) == 1 else f"in loops of {passes}"


class Devices(NamedTuple):
    """Where a program's partitions are: in a mesh, through which they are numbered, and in slices."""

    mesh: Mapping[str, int]  # axis -> size; empty: not known
    slice_of: Int[np.ndarray, " partitions"]  # empty: all in one

    def group(self, instruction: Instruction, partitions: int) -> tuple[int, int, tuple[str, ...]]:
        """Returns (devices in each group of a collective, slices these are in, mesh axes along which they differ)."""
        if instruction.opcode == "send":
            across = self.slice_of.reshape(tuple(self.mesh.values()))
            axes = (axis for at, axis in enumerate(self.mesh) if (across != across.take([0], at)).any())
            return *between_slices(instruction.attributes), tuple(axes)
        groups = groups_of(instruction.attributes, partitions)
        slices = max(len(set(group)) for group in self.slice_of[groups].tolist()) if self.slice_of.size else 1
        return groups.shape[1], slices, along(groups, self.mesh) if self.mesh else ()


def _read(program: Program, occurrence: Occurrence, devices: Devices) -> Collective:
    instruction, kind, scope, visit, path = occurrence
    members, slices, axes = devices.group(instruction, program.partitions)
    size, arrays = _bytes(kind, instruction, scope, members)
    is_number = arrays[0] in "su"
    purpose = "token numbers" if is_number else purpose_of(kind, axes, path, _padded(instruction, scope))
    return Collective(kind, size, members, slices, axes, visit.times, _place(visit.loops), arrays, path, purpose)


def collectives(
    program: Program, mesh: Mapping[str, int] | None = None, slice_of: Sequence[int] = ()
) -> list[Collective]:
    """Returns every collective of a compiled program, once each: one spread over several fusions keeps its channel.

    mesh: axis -> size, in the order in which partitions are numbered. slice_of: the slice of each partition; empty: all in one.
    """
    occurrences: dict[tuple, Occurrence] = {}
    for at, visit in enumerate(program.visits):
        for occurrence in _inside(program, visit):
            is_spread = occurrence.instruction.name not in program.computations[visit.computation]
            channel = _channel(occurrence.instruction) if is_spread else None
            occurrences.setdefault((channel or at, occurrence.kind, visit.loops), occurrence)
    devices = Devices(mesh or {}, np.asarray(slice_of, int))
    read = [_read(program, occurrence, devices) for occurrence in occurrences.values()]
    return [collective for collective in read if collective.group_size > 1]
