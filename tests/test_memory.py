"""Memory that is left, from control groups built as files."""

import resource
import types

import psutil
import pytest

from alibi_jax.evaluate import memory

GIB = 2**30


def group(folder, **files):
    """A control group: name -> text or number; memory.stat from a dict. Names are written with _ for the first dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        text = "".join(f"{key} {size}\n" for key, size in value.items()) if isinstance(value, dict) else f"{value}\n"
        (folder / name.replace("_", ".", 1)).write_text(text)


@pytest.fixture
def left(tmp_path, monkeypatch):
    """left(text of /proc/self/cgroup) -> GiB, on a machine that has 64."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=64 * GIB))

    def call(groups):
        (tmp_path / "cgroup").write_text(groups)
        return memory.host_memory(tmp_path / "cgroup", tmp_path / "mount") / GIB

    return call


def test_the_page_cache_is_not_used_memory(left, tmp_path):
    stat = {"anon": GIB, "file": 7 * GIB, "inactive_file": 5 * GIB, "active_file": 2 * GIB, "shmem": 0}
    group(tmp_path / "mount", memory_max=8 * GIB, memory_current=8 * GIB - 2**20, memory_stat=stat)
    assert left("0::/\n") == pytest.approx(7, abs=0.01)
    assert left("0::/container/of/the/host\n") == pytest.approx(7, abs=0.01)  # of which this mount shows the root alone
    assert left("") == 64


def test_the_smallest_limit_of_a_group_and_those_above_it_counts(left, tmp_path):
    group(tmp_path / "mount" / "a", memory_max=6 * GIB, memory_current=GIB)
    group(tmp_path / "mount" / "a" / "b", memory_max="max", memory_current=GIB)
    assert left("0::/a/b\n") == 5
    group(tmp_path / "mount" / "a" / "b", memory_high=3 * GIB)
    assert left("0::/a/b\n") == 2
    assert left("0::/../a/b\n") == 2
    assert left("0::/a\n") == 5
    group(tmp_path / "mount" / "a" / "b", memory_current=4 * GIB)
    assert left("0::/a/b\n") == 0


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory"])
def test_version_1_is_read_too(left, tmp_path, controllers):
    root = tmp_path / "mount" / controllers
    group(root, memory_limit_in_bytes=9223372036854771712, memory_usage_in_bytes=30 * GIB)
    assert left(f"4:{controllers}:/\n3:cpuset:/\n0::/\n") == 64
    stat = {"inactive_file": 0, "total_inactive_file": GIB, "total_active_file": GIB}
    group(root / "docker", memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=3 * GIB, memory_stat=stat)
    assert left(f"4:{controllers}:/docker\n3:cpuset:/\n0::/\n") == 3


@pytest.mark.parametrize("text", ["", "x", "-1", "²", "max", "\udcff"])
def test_what_is_no_number_is_no_limit(left, tmp_path, text):
    group(tmp_path / "mount", memory_current=GIB)
    (tmp_path / "mount" / "memory.max").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert left("0::/\nnonsense\n") == 64
    (tmp_path / "mount" / "memory.max").unlink()
    (tmp_path / "mount" / "memory.max").mkdir()  # cannot be read
    assert left("0::/\n") == 64


def test_the_address_space_is_a_limit(left, monkeypatch):
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 2 * GIB, resource.RLIM_INFINITY))
    assert left("") == pytest.approx(2, abs=0.5)


def test_a_device_has_its_fraction(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 800)
    assert memory.free_memory() == 100  # of eight
