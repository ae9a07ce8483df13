"""A compiled program's text as instructions, and how often each of them runs.

XLA prints a computation as a line `%name (...) -> type {` (ENTRY before the first to run), then one line per instruction,
`%name = shape opcode(operands), attributes`. The program is that of one device.
"""

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # of other types the number after the letter: f32, s8, f8e4m3fn
ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+(?:e\d\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
ASSIGNED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
OTHER_MEMORY = re.compile(r"S\([1-9]\d*\)")  # on a TPU S(1) is the chip's own vector memory, S(5) the host's


class Shape(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # not in another memory of the chip, nor the host's

    @property
    def bytes(self) -> int:
        """Returns the bytes of its elements, without a tiled layout's padding."""
        digits = re.match(r"\d+", self.dtype[1:])
        bits = BITS.get(self.dtype) or int(digits[0] if digits else 0)
        return -(-math.prod(self.dims) * bits // 8)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Shape, ...]  # of the result, a tuple's flattened
    operands: tuple[str, ...]  # names, within the same computation
    literal: str  # the text in brackets: the operands, a parameter's number, a constant's value
    attributes: str
    is_root: bool

    def called(self, *keys: str) -> list[str]:
        """Returns the computations named by attributes such as body=%x or branch_computations={%x, %y}."""
        names = []
        for key in keys:
            match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            names += NAME.findall(match[1]) if match else []
        return names

    @property
    def op_name(self) -> str:
        """Returns the source it was compiled from, such as jit(train_step)/.../attention/dot_general; empty if not known."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


class Visit(NamedTuple):
    """An instruction at the place where it runs."""

    instruction: Instruction
    computation: str
    loops: tuple[int | None, ...]  # passes of each loop around it, outermost first; None: it depends on the data

    @property
    def times(self) -> int | None:
        """Returns how often it runs in one call of the program; None where that depends on the data."""
        return None if None in self.loops else math.prod(self.loops)


def arrays_in(text: str) -> tuple[Shape, ...]:
    """Returns the arrays of a printed shape."""
    return tuple(
        Shape(dtype, tuple(int(size) for size in dims.split(",") if size), not OTHER_MEMORY.search(layout or ""))
        for dtype, dims, layout in ARRAY.findall(text)
    )


def shapes(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """Returns (dtype, dimensions) of every array in a program, also those within fusions."""
    return {(shape.dtype, shape.dims) for shape in arrays_in(text)}


def _closing(text: str, start: int) -> int:
    """Returns the index at which the bracket that opens at `start` closes."""
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
    arrays = arrays_in(line[start:end])
    return Instruction(assigned[2], opcode[1], arrays, operands, inside, line[close + 1 :], bool(assigned[1]))


class Program:
    """A compiled program: computations, each a dict from name to Instruction, in the order printed."""

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
            elif instruction := _instruction(line):
                current[instruction.name] = instruction

    @cached_property
    def visits(self) -> list[Visit]:
        """Returns every instruction that runs by itself, none within fusions; of a conditional all branches."""
        return list(self._walk(self.entry, ()))

    def _walk(self, computation: str, loops: tuple[int | None, ...]) -> Iterator[Visit]:
        for instruction in self.computations[computation].values():
            yield Visit(instruction, computation, loops)
            inner, callees = loops, []
            if instruction.opcode == "while":
                inner = (*loops, self.trip_count(instruction, computation))
                callees = instruction.called("body")
            elif instruction.opcode == "call":
                callees = instruction.called("to_apply")
            elif instruction.opcode == "conditional":
                callees = instruction.called("branch_computations", "true_computation", "false_computation")
            for callee in callees:
                yield from self._walk(callee, inner)

    def root(self, computation: str) -> Instruction:
        """Returns the instruction whose value a computation returns."""
        return next(i for i in self.computations[computation].values() if i.is_root)

    def trip_count(self, loop: Instruction, computation: str) -> int | None:
        """Returns the passes of a while loop: the compiler's note, or else the constant that its counter is compared with.

        A counter is assumed to start at the value in the loop's operand and to grow by one, as those of JAX's scan, map and
        fori_loop do. None where the bound is not a constant: it depends on the data.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = loop.called("condition")[0]
        test = self.root(condition)
        if test.opcode != "compare" or len(test.operands) != 2:
            return None
        counter, bound = (self.computations[condition][name] for name in test.operands)
        direction = re.search(r"direction=(\w+)", test.attributes)[1]
        if bound.opcode != "constant" or counter.opcode != "get-tuple-element" or direction not in ("LT", "LE"):
            return None
        start = self._initial(loop, computation, int(re.search(r"index=(\d+)", counter.attributes)[1]))
        return None if start is None else max(0, int(bound.literal) - start + (direction == "LE"))

    def _initial(self, loop: Instruction, computation: str, index: int) -> int | None:
        """Returns the value with which element `index` of a loop's operand starts; None where it is not a constant."""
        instructions = self.computations[computation]
        carried = instructions.get(loop.operands[0])
        if carried is None or carried.opcode != "tuple":
            return None
        value = instructions[carried.operands[index]]
        while value.opcode in ("copy", "bitcast") and value.operands:
            value = instructions[value.operands[0]]
        return int(value.literal) if value.opcode == "constant" and value.literal.lstrip("-").isdigit() else None
