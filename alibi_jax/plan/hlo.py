"""A compiled program's text as instructions, and how often each of them runs.

XLA prints a computation as a line `%name (...) -> type {` (ENTRY before the first to run), then a line an instruction,
`%name = shape opcode(operands), attributes`. What is read here is what one device does.
"""

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # others end in theirs: f32, s8, u4; but f8e4m3fn has 8
ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+(?:e\d\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
ASSIGNED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
OTHER_MEMORY = re.compile(r"S\([1-9]\d*\)")  # on a TPU S(1) is the chip's own vector memory, S(5) the host's


class Shape(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # and not in another memory of the chip, or the host's

    @property
    def bytes(self) -> int:
        """Its elements' bytes, without what a layout in tiles adds."""
        digits = re.match(r"\d+", self.dtype[1:])
        bits = BITS.get(self.dtype) or int(digits[0] if digits else 0)
        return -(-math.prod(self.dims) * bits // 8)


class Instruction(NamedTuple):
    name: str
    opcode: str
    arrays: tuple[Shape, ...]  # of the result, a tuple's flattened
    operands: tuple[str, ...]  # names, within the same computation
    literal: str  # what stands in the brackets: the operands, a parameter's number, a constant's value
    attributes: str
    is_root: bool

    def called(self, *keys: str) -> list[str]:
        """Computations named by attributes such as body=%x or branch_computations={%x, %y}."""
        found = []
        for key in keys:
            match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            found += NAME.findall(match[1]) if match else []
        return found

    @property
    def op_name(self) -> str:
        """What of the source it was made from, such as jit(train_step)/.../attention/dot_general; empty if unsaid."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


class Visit(NamedTuple):
    """An instruction where it runs."""

    instruction: Instruction
    computation: str
    loops: tuple[int | None, ...]  # passes of each loop around it, outermost first; None: as many as the data ask for

    @property
    def times(self) -> int | None:
        """How often it runs in one call of the program, None where that depends on the data."""
        return None if None in self.loops else math.prod(self.loops)


def arrays_in(text: str) -> tuple[Shape, ...]:
    """The arrays of a printed shape."""
    return tuple(
        Shape(dtype, tuple(int(size) for size in dims.split(",") if size), not OTHER_MEMORY.search(layout or ""))
        for dtype, dims, layout in ARRAY.findall(text)
    )


def shapes(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of every array in a program, those within fusions too."""
    return {(shape.dtype, shape.dims) for shape in arrays_in(text)}


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text)


def _instruction(line: str) -> Instruction | None:
    assigned = ASSIGNED.match(line)
    if not assigned:
        return None
    start = assigned.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.find(" ", start)
    opcode = re.compile(r"\s*([\w\-]+)\(").match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    operands = tuple(NAME.findall(inside))
    arrays, rest = arrays_in(line[start:end]), line[close + 1 :]
    return Instruction(assigned[2], opcode[1], arrays, operands, inside, rest, bool(assigned[1]))


class Program:
    """computation -> instruction -> Instruction, in the order printed."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        match = re.search(r"\bnum_partitions=(\d+)", text[:100_000])
        self.partitions = int(match[1]) if match else 1
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = HEAD.match(line)
            if head:
                current = self.computations.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
            elif found := _instruction(line):
                current[found.name] = found

    @cached_property
    def visits(self) -> list[Visit]:
        """Every instruction that runs by itself, not those within fusions; of a conditional all branches."""
        return list(self._walk(self.entry, ()))

    def _walk(self, computation: str, loops: tuple[int | None, ...]) -> Iterator[Visit]:
        for instruction in self.computations[computation].values():
            yield Visit(instruction, computation, loops)
            inner, callees = loops, []
            if instruction.opcode == "while":
                inner, callees = (*loops, self.trip_count(instruction, computation)), instruction.called("body")
            elif instruction.opcode == "call":
                callees = instruction.called("to_apply")
            elif instruction.opcode == "conditional":
                callees = instruction.called("branch_computations", "true_computation", "false_computation")
            for callee in callees:
                yield from self._walk(callee, inner)

    def root(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation].values() if i.is_root)

    def trip_count(self, loop: Instruction, computation: str) -> int | None:
        """Passes of a while loop: what the compiler says, or else the constant its counter is compared with.

        A counter is taken to start where the loop's own operand says and to grow by one, as those of JAX's scan, map and
        fori_loop do. None where the bound is no constant: it depends on the data.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition")[0]]
        test = next(i for i in condition.values() if i.is_root)
        if test.opcode != "compare" or len(test.operands) != 2:
            return None
        counter, bound = (condition[name] for name in test.operands)
        direction = re.search(r"direction=(\w+)", test.attributes)[1]
        if bound.opcode != "constant" or counter.opcode != "get-tuple-element" or direction not in ("LT", "LE"):
            return None
        start = self._initial(loop, computation, int(re.search(r"index=(\d+)", counter.attributes)[1]))
        return None if start is None else max(0, int(bound.literal) - start + (direction == "LE"))

    def _initial(self, loop: Instruction, computation: str, index: int) -> int | None:
        """The number element `index` of a loop's operand starts with, None where it is not written down."""
        instructions = self.computations[computation]
        carried = instructions.get(loop.operands[0])
        if carried is None or carried.opcode != "tuple":
            return None
        value = instructions[carried.operands[index]]
        while value.opcode in ("copy", "bitcast") and value.operands:
            value = instructions[value.operands[0]]
        return int(value.literal) if value.opcode == "constant" and value.literal.lstrip("-").isdigit() else None
