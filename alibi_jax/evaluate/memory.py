"""Memory that is left for scoring: of a device, or of the machine with the limits of this process."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import psutil

CURRENT = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
# limit, use and, in memory.stat, the page cache, which the kernel gives back when memory is asked for
VERSION_2 = (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
VERSION_1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def free_memory() -> int:
    """Returns the bytes that a device has left; on a CPU, its fraction of what this process has left."""
    facts = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in facts:
        return facts["bytes_limit"] - facts["bytes_in_use"]
    return host_memory() // jax.local_device_count()


class Limits(NamedTuple):
    """Bytes that scoring may take."""

    device: float  # on each device
    host: float


def memory_limits(gib: float) -> Limits:
    """Returns the limits: `gib` GiB on a device, or what is free there if 0; on the host what is free there."""
    return Limits(gib * 2**30 or float(free_memory()), float(host_memory()))


def host_memory(current: Path = CURRENT, mount: Path = MOUNT) -> int:
    """Returns the bytes this process can still take: the least of what its machine, control groups and address space have left.

    current: the file that names the process's control groups. mount: the folder they are mounted in.
    """
    left = [psutil.virtual_memory().available, *_left_in_groups(current, mount)]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        left.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(left))


def _left_in_groups(current: Path, mount: Path) -> Iterator[int]:
    """Bytes left in each control group that limits the process, its own and those above it, of both versions."""
    for line in (_text(current) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for root in (mount, mount / "unified"):
                yield from _left_along(root, path, VERSION_2)
        elif "memory" in controllers.split(","):
            for root in (mount / "memory", mount / controllers):
                yield from _left_along(root, path, VERSION_1)


def _left_along(root: Path, path: str, names: tuple) -> Iterator[int]:
    """From the group at `path` up to `root`: in a container the path may be the host's, and only `root` is there."""
    limits, use, cache = names
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for depth in range(len(parts), -1, -1):
        group = root.joinpath(*parts[:depth])
        sizes = [size for size in map(_number, (group / name for name in limits)) if size is not None]
        used = _number(group / use)
        if sizes and used is not None:
            yield min(sizes) - used + min(used, _cached(group / "memory.stat", cache))


def _cached(path: Path, names: tuple[str, ...]) -> int:
    """Bytes of files' pages that the group could give back; 0 where that is not known."""
    lines = (line.split() for line in (_text(path) or "").splitlines())
    sizes = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}
    return sum(sizes.get(name, 0) for name in names)


def _number(path: Path) -> int | None:
    """A file's number; None where there is none, such as "max", which is no limit."""
    text = (_text(path) or "").strip()
    return int(text) if text.isascii() and text.isdecimal() else None


def _text(path: Path) -> str | None:
    """The text of a file; None where it is missing or cannot be read: then it sets no limit."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
