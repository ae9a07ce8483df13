"""The groups of devices in a collective, which XLA prints in three ways."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

Groups = Int[np.ndarray, "groups devices"]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _iota(dims: Sequence[int], order: Sequence[int]) -> Int[np.ndarray, "..."]:
    """Returns 0, 1, 2 ... as an array of `dims`, its dimensions then put in `order`."""
    ids = np.arange(math.prod(dims)).reshape(dims)
    return ids.transpose(order) if order else ids


def _of_mesh(axes: str, ids: str | None, chosen: str) -> Groups:
    """Returns groups along some axes of a mesh: mesh['a'=4,'b'=8] {'b','a':(2)2} is all of b, and of a's 2 x 2 the second."""
    sizes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", axes))
    choices = re.findall(r"'?([A-Za-z_][\w.]*)'?(?::\((\d+)\)(\d+))?", chosen)
    factors, inside = [], []  # of the axes, split where a choice begins or ends; whether a group runs along each
    for axis, size in sizes.items():
        spans = [
            (int(before or 1), int(before or 1) * int(count or size)) for name, before, count in choices if name == axis
        ]
        edges = sorted({1, int(size), *(edge for span in spans for edge in span)})
        for low, high in itertools.pairwise(edges):
            inside.append(any(first <= low and high <= last for first, last in spans))
            factors.append(high // low)
    total = math.prod(factors)
    if ids is None:
        devices = np.arange(total)
    elif ids.startswith("["):
        dims, _, order = ids.partition("T")
        devices = _iota(_numbers(dims), _numbers(order))
    else:
        devices = np.array(_numbers(ids))
    order = sorted(range(len(factors)), key=lambda at: inside[at])
    members = math.prod(size for size, is_inside in zip(factors, inside, strict=True) if is_inside)
    return devices.reshape(factors).transpose(order).reshape(-1, members)


def groups_of(attributes: str, partitions: int) -> Groups:
    """Returns the groups of a collective, numbered as the program's partitions; of a permutation the pairs [source, target]."""
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
    """Returns (devices, slices) in each group of a transfer over the data-centre network.

    XLA prints its target as slices, such as "{1,2,3}x{0:3}", each device with its counterparts, or as groups of devices, whose
    numbers grow by 100,000 per slice.
    """
    target = re.search(r'_xla_megascale_target="?(\{.*?\})(?:x|\}|,_xla)', attributes)[1]
    listed = [int(number) for number in re.findall(r"\d+", target.split("}")[0])]
    if not target.startswith("{{"):
        count = listed[1] - listed[0] + 1 if ":" in target else len(listed)
        return count, count
    return len(listed), len({number // 100_000 for number in listed})


def along(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ. Partitions are numbered with the last axis fastest."""
    if groups.max() >= math.prod(mesh.values()):
        return ()
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(axis for axis, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any())
