"""Bytes a compiled program moves between a chip and its memory: an estimate from its text, not a measurement.

Every instruction that runs by itself reads its operands and writes its results once, times the passes of the loops around it.
Of a sliced array only the slice is counted, and arrays in other memories are not. A fusion or a kernel that reads a block twice
is counted once: this program moves no less, though another program for the same model may.
"""

from collections.abc import Iterator, Mapping

from alibi_jax.plan.hlo import Instruction, Program, Shape, Visit

FREE = {  # move nothing: names, numbers, control flow, and ends of what is counted at its start
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "call", "conditional", "opt-barrier", "async-start", "async-update", "async-done", "domain"),
}
SLICES = ("dynamic-slice", "slice", "gather")  # read as much as they write
RENAMES = ("bitcast", "convert", "copy", "reshape", "transpose")  # within a fusion: their operand under another name


def _hbm(arrays: tuple[Shape, ...]) -> int:
    return sum(array.bytes for array in arrays if array.in_hbm)


def _users(scope: Mapping[str, Instruction], name: str) -> Iterator[tuple[Instruction, int]]:
    """Yields (instruction, index among its operands) of each use of a value, through those that only rename it."""
    for instruction in scope.values():
        for at, operand in enumerate(instruction.operands):
            if operand == name and instruction.opcode in RENAMES and not instruction.is_root:
                yield from _users(scope, instruction.name)
            elif operand == name:
                yield instruction, at


def _updates(instruction: Instruction, scope: Mapping[str, Instruction]) -> int:
    """Returns the bytes written into an array: operand 1 of a dynamic-update-slice, the last of a scatter."""
    at = 1 if instruction.opcode == "dynamic-update-slice" else -1
    return sum(array.bytes for array in scope[instruction.operands[at]].arrays)


def _read_by(program: Program, computation: str, index: int, whole: int) -> int:
    """Returns the bytes that a fusion reads of its operand `index` (of `whole` bytes): the slices, where it only slices it."""
    scope = program.computations[computation]
    total = 0
    name = next(i.name for i in scope.values() if i.opcode == "parameter" and i.literal == str(index))
    for user, at in _users(scope, name):
        if user.opcode in SLICES and at == 0:
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode == "fusion":
            total += _read_by(program, user.called("calls")[0], at, whole)
        elif not (user.opcode in ("dynamic-update-slice", "scatter") and at == 0):
            return whole
    return min(total, whole)


def _written_by(scope: Mapping[str, Instruction], root: Instruction) -> list[int | None]:
    """Returns for each of a fusion's results the bytes written where it is updated in place, or None: all of it."""
    if root.opcode == "tuple":
        return [_written_by(scope, scope[name])[0] for name in root.operands]
    while root.opcode in RENAMES and root.operands:
        root = scope[root.operands[0]]
    return [_updates(root, scope) if root.opcode in ("dynamic-update-slice", "scatter") else None]


def _fusion(program: Program, instruction: Instruction, scope: Mapping[str, Instruction]) -> int:
    computation = instruction.called("calls")[0]
    read = 0
    for index, name in enumerate(instruction.operands):
        whole = _hbm(scope[name].arrays)
        read += _read_by(program, computation, index, whole) if whole else 0
    inside = program.computations[computation]
    updates = _written_by(inside, program.root(computation))
    if len(updates) != len(instruction.arrays):
        return read + _hbm(instruction.arrays)
    pairs = zip(updates, instruction.arrays, strict=True)
    return read + sum(array.bytes if update is None else update for update, array in pairs if array.in_hbm)


def _moved(program: Program, visit: Visit) -> int:
    """Returns the bytes that one run of an instruction moves to and from HBM."""
    instruction, scope = visit.instruction, program.computations[visit.computation]
    opcode, arrays = instruction.opcode, instruction.arrays
    if opcode in FREE or opcode.endswith("-done") or '"AllocateBuffer"' in instruction.attributes:
        return 0
    if opcode == "fusion":
        return _fusion(program, instruction, scope)
    if opcode in SLICES:
        return 2 * _hbm(arrays)
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _updates(instruction, scope)
    if opcode in ("copy-start", "slice-start"):  # the result holds source, destination and a flag
        sides = [array for array in arrays if array.dims]
        return min(array.bytes for array in sides) * sum(array.in_hbm for array in sides) if sides else 0
    written = 0 if opcode == "send" else _hbm(arrays)  # a send's result is its operand
    return sum(_hbm(scope[name].arrays) for name in instruction.operands if name in scope) + written


def hbm_bytes(program: Program) -> tuple[int, int]:
    """Returns (bytes one call moves, bytes more for one pass of each loop whose number of passes depends on the data)."""
    known = unknown = 0
    for visit in program.visits:
        if visit.times is None:
            unknown += _moved(program, visit)
        else:
            known += visit.times * _moved(program, visit)
    return known, unknown
