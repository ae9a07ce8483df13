"""Reader of what the TPU's compiler writes about a kernel: the bundles of its regions, and how far each unit is used in them.

A bundle is one instruction word of the TensorCore, and takes one cycle where nothing stalls. `*-final_bundles.txt` is the
program, one address a bundle; `*-final_hlo-static-per-bundle-utilization.txt` the units each bundle uses. Not to be seen in
them: waiting for copies, and for results beyond what is scheduled.

The compiler keeps no names of the source. A visit (the arithmetic of one pair of blocks) is known by its products and
exponentials; whether it masks and whether it keeps a running maximum by how often it puts a constant below zero in place of
something, and takes a maximum, for each exponential: about once, or hardly ever.
"""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

DELAY = 4  # bundles after a branch that run whether or not it is taken
MANY = 0.5  # operations for each exponential: one of every score is 1 and more, one of every query far less
HEADER = re.compile(r"^ *(0x[0-9a-f]+|0) +(?:[A-Z]{2}|  )?: *>* *\{")
BRANCH = re.compile(r"sbr\.rel (?:\([^)]*\) )?target = \$region(\d+)")
STARTS = re.compile(r"(?:Start|Start/End empty) region (\d+)")
MASKED = re.compile(r"= vsel [^;]*/-(?:inf|\d)")  # where not seen, -inf or a number near float32's lowest
OPERATION = re.compile(r" = (v[a-z]+[0-9]*)|\bvst\b")


class Span(NamedTuple):
    """The bundles from `first` up to, and without, `end`."""

    first: int
    end: int

    def __contains__(self, other: "Span") -> bool:
        """Returns whether another span lies in this one."""
        return self.first <= other.first and other.end <= self.end


class Program(NamedTuple):
    """A kernel's final program."""

    bundles: list[str]
    use: np.ndarray  # [bundles, units], of each unit's slots
    capacity: dict[str, int]  # slots of a unit in one bundle
    loops: list[Span]
    skipped: list[Span]  # what a branch may leave out
    marks: list[int]  # where a branch stands or leads to

    def count(self, span: Span) -> Counter:
        """Returns how often each vector operation stands in a span, by the first word of its name; and
        as `masked` how often a constant below zero is put in place of something."""
        texts = self.bundles[slice(*span)]
        counts = Counter(match[1] or "vst" for text in texts for match in OPERATION.finditer(text))
        return counts + Counter(masked=sum(len(MASKED.findall(text)) for text in texts))

    def used(self, span: Span, unit: str) -> int:
        """Returns the slots of a unit that a span uses."""
        return int(self.use[slice(*span), list(self.capacity).index(unit)].sum())


class Visit(NamedTuple):
    """The arithmetic of one pair of blocks."""

    bundles: int
    masked: bool
    maximum: bool  # keeps a running maximum
    loop: int  # bundles around it: of the loop over visits, copies included
    floors: dict[str, int]  # the least bundles by each unit alone
    spills: int  # stores of registers that overflow, and loads of them


class Schedule(NamedTuple):
    """The bundles of a kernel's regions."""

    program: int  # all
    longest_piece: int  # between two marks: what a visit was measured by before regions were read
    start: int  # of a block, before its visits
    finish: int  # after them
    last: int  # at the last visit to a block of the other side, where a sum of it is whole
    between: int  # loops between a block's and that over visits: of one head of a group
    every_pair: bool  # the grid runs over all pairs of blocks: `loop` is spent on those not visited, too
    visits: list[Visit]


def read_program(bundles: str, utilization: str) -> Program:
    """Returns the program of both texts; ValueError where they are not what this reader knows."""
    texts = _bundles(bundles)
    lines = [line for line in utilization.splitlines() if line.strip() and not line.startswith("==")]
    names = re.split(r",\s*", lines[0]) if lines else []
    if "MXU" not in names:
        raise ValueError(f"utilization: got {utilization[:80]!r}, expected a table of units. Correct the reader.")
    capacity = dict(zip(names, map(int, lines[1].split()), strict=True))
    use = np.array([line.split() for line in lines[2:]], int)
    if use.shape != (len(texts), len(names)):
        raise ValueError(f"utilization: got {use.shape}, expected {len(texts)} bundles. Take both files of one kernel.")
    starts = {int(region): at for at, text in enumerate(texts) for region in STARTS.findall(text)}
    exit_bundle = len(texts) - 1  # has no name where it is led to
    ends = [(at, int(region)) for at, text in enumerate(texts) for region in BRANCH.findall(text)]
    branches = [(at, starts.get(region, exit_bundle)) for at, region in ends]
    loops = [Span(to, at + 1 + DELAY) for at, to in branches if to <= at]
    skipped = [Span(at + 1 + DELAY, to) for at, to in branches if to > at + 1 + DELAY]
    marks = sorted({place for branch in branches for place in branch})
    return Program(texts, use, capacity, loops, skipped, marks)


def read_schedule(program: Program) -> Schedule:
    """Returns the bundles of the regions of an attention kernel; ValueError where it has no visit in a loop."""
    spans = _visits(program)
    around = [sorted((loop for loop in program.loops if span in loop), key=len_of) for span in spans]
    if not spans or not all(around):
        raise ValueError(f"got {len(spans)} visits in loops, expected some. Correct the reader for this compiler.")
    outer, inner = around[0][-1], {loops[0] for loops in around}
    working = {loop for loops in around for loop in loops}
    own = {loop: _own(loop, [*spans, *working]) for loop in working}
    storing = {loop: _storing(program, loop, spans) for loop in inner}
    for loop, regions in storing.items():
        own[loop] -= sum(map(len_of, regions))
    if outer in inner:
        last = 0
        start = sum(len_of(region) for region in storing[outer] if region.end <= spans[0].first)
        finish = sum(map(len_of, storing[outer])) - start
    else:
        last = sum(len_of(region) for regions in storing.values() for region in regions)
        start = min(loop.first for loop in inner) - outer.first
        finish = outer.end - max(loop.end for loop in inner)
    between = sum(own[loop] for loop in working - inner - {outer})
    visits = [_visit(program, span, own[loops[0]]) for span, loops in zip(spans, around, strict=True)]
    longest = max(b - a for a, b in zip(program.marks, program.marks[1:], strict=False))
    return Schedule(len(program.bundles), longest, start, finish, last, between, outer in inner, visits)


def len_of(span: Span) -> int:
    """Returns the number of bundles of a span."""
    return span.end - span.first


def _bundles(text: str) -> list[str]:
    """Returns the text of each bundle; a comment may go on over several lines."""
    bundles = []
    for line in text.splitlines():
        header = HEADER.match(line)
        if header and int(header[1], 16) == len(bundles):
            bundles.append(line)
        elif header:
            raise ValueError(
                f"got address {header[1]} after {len(bundles)} bundles, expected the next one. Correct the reader."
            )
        elif bundles:
            bundles[-1] += line
    return bundles


def _visits(program: Program) -> list[Span]:
    """Returns the least spans with products and exponentials: regions that a branch may leave out, or whole loops."""

    def works(span: Span) -> bool:
        return program.used(span, "MXU") > 0 and program.used(span, "EUP") > 0

    working = sorted({span for span in [*program.skipped, *program.loops] if works(span)})
    return [span for span in working if not any(other in span for other in working if other != span)]


def _own(loop: Span, inside: list[Span]) -> int:
    """Returns the bundles of a loop that are in none of the spans inside it."""
    covered = {at for span in inside if span in loop and span != loop for at in range(*span)}
    return len_of(loop) - len(covered)


def _storing(program: Program, loop: Span, visits: list[Span]) -> list[Span]:
    """Returns the regions of a loop, beside its visits, that a branch may leave out and that store vectors."""
    regions = [
        region
        for region in program.skipped
        if region in loop
        and program.used(region, "VSTORE") > 0
        and not any(visit in region or region in visit for visit in visits)
    ]
    return [region for region in regions if not any(region in other for other in regions if other != region)]


def _visit(program: Program, span: Span, loop: int) -> Visit:
    counts = program.count(span)
    many = MANY * program.used(span, "EUP")  # exponentials, hardly anything else
    floors = {
        unit: -(-program.used(span, unit) // slots)
        for unit, slots in program.capacity.items()
        if ":" not in unit  # fills and spills are among the loads and stores
    }
    spills = sum(program.used(span, unit) for unit in program.capacity if ":" in unit)
    masked, maximum = counts["masked"] > many, counts["vmax"] > many
    return Visit(len_of(span), masked, maximum, loop, floors, spills)
