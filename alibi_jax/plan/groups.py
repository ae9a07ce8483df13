"""Which devices take part in a collective together, as XLA prints it in three ways."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _iota(dims: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """0, 1, 2 ... as an array of `dims`, its dimensions put in another order."""
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order) if order else ids


def _of_mesh(axes: str, ids: str | None, chosen: str) -> np.ndarray:
    """Groups along some axes of a mesh, such as mesh['a'=4,'b'=8] {'b','a':(2)2}: all of b, and of a's 2 x 2 the second."""
    sizes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", axes))
    picked = re.findall(r"'?([A-Za-z_][\w.]*)'?(?::\((\d+)\)(\d+))?", chosen)
    parts, inside = [], []
    for axis, size in sizes.items():
        spans = [
            (int(before or 1), int(before or 1) * int(count or size)) for name, before, count in picked if name == axis
        ]
        edges = sorted({1, int(size), *(edge for span in spans for edge in span)})
        for low, high in itertools.pairwise(edges):
            inside.append(any(first <= low and high <= last for first, last in spans))
            parts.append(high // low)
    total = math.prod(parts)
    if ids is None:
        devices = np.arange(total)
    elif ids.startswith("["):
        dims, _, order = ids.partition("T")
        devices = _iota(_numbers(dims), _numbers(order))
    else:
        devices = np.array(_numbers(ids))
    order = sorted(range(len(parts)), key=lambda at: inside[at])
    width = math.prod(part for part, is_inside in zip(parts, inside, strict=True) if is_inside)
    return devices.reshape(parts).transpose(order).reshape(-1, width)


def groups_of(attributes: str, partitions: int) -> np.ndarray:
    """[groups, devices in each], numbered as the program's partitions; of a permutation [pairs, (source, target)]."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        return np.array(_numbers(pairs[1])).reshape(-1, 2)
    mesh = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", attributes)
    if mesh:
        return _of_mesh(*mesh.groups())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        return _iota(_numbers(iota[2]), _numbers(iota[3] or "")).reshape(_numbers(iota[1]))
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        return np.array([_numbers(group) for group in re.findall(r"\{([\d,]*)\}", listed[1])])
    return np.arange(partitions)[None]


def between_slices(attributes: str) -> tuple[int, int]:
    """(devices, slices) in each group of a transfer over the data-centre network. Its target is printed as slices, such as
    "{1,2,3}x{0:3}", each device with its like, or as groups of devices numbered 100,000 a slice."""
    target = re.search(r'_xla_megascale_target="?(\{.*?\})(?:x|\}|,_xla)', attributes)[1]
    listed = [int(number) for number in re.findall(r"\d+", target.split("}")[0])]
    if not target.startswith("{{"):
        count = listed[1] - listed[0] + 1 if ":" in target else len(listed)
        return count, count
    return len(listed), len({number // 100_000 for number in listed})


def along(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh that a collective's devices differ in; partitions are numbered through the mesh, last axis first."""
    if groups.max() >= math.prod(mesh.values()):
        return ()
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(axis for axis, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any())
