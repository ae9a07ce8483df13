"""Imports run one way, and nothing heavy is imported by importing the library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room -> rooms it may import from
ALLOWED = {
    "positions": set(),
    "limits": set(),
    "checks": {"limits"},
    "sizes": {"sections"},  # for a name of a type alone
    "sections": {"checks", "limits", "sizes"},
    "storage": {"checks"},
    "recipes": {"checks", "storage"},
    "config": {"checks", "recipes", "sections", "storage"},
    "status": set(),
    "signals": {"status"},
    "guard": set(),
    "display": set(),
    "output": set(),
    "progress": {"display", "output"},
    "attention": {"positions", "sharding"},
    "sharding": {"config"},
    "loss": {"sharding"},
    "chips": set(),
    "model": {"attention", "chips", "config", "loss", "positions", "sharding"},
    "data": {"config", "storage"},
    "optimizer": {"config"},
    "origin": {"config", "storage"},
    "workdir": {"config", "origin", "storage"},
    "checkpoint": {"checks", "coordinator", "origin", "storage", "workdir"},
    "metrics": {"config", "model", "storage"},
    "supervise": {"checkpoint", "checks", "signals", "status", "storage", "workdir"},
    "evaluate": set(
        "agreement checkpoint config data display hosts model origin positions progress sharding storage workdir".split()
    ),
    "coordinator": {"checks"},
    "hosts": {"checks", "coordinator", "sharding", "status", "workdir"},
    "agreement": {"checks", "hosts"},
    "watch": {"checks"},
    "loop": set(
        "checkpoint config data evaluate hosts metrics model progress sharding signals storage supervise watch".split()
    ),
    "train": {"agreement", "checkpoint", "checks", "config", "data", "evaluate", "hosts", "loop", "model", "optimizer"}
    | {"origin", "sharding", "sizes", "storage", "watch", "workdir"},
    "plan": {"chips", "config", "data", "evaluate", "model", "sharding", "storage", "train"},
    "cli": set("checkpoint config data display evaluate hosts loop metrics output status workdir".split()),
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        assert "alibi_jax" not in names, f"{path} imports from the package as a whole"
        rooms |= {name.split(".")[1] for name in names if name.startswith("alibi_jax.")}
    return rooms


@pytest.mark.parametrize("path", sorted((ROOT / "alibi_jax").rglob("*.py")), ids=lambda path: path.stem)
def test_rooms_import_one_way(path):
    room = path.relative_to(ROOT / "alibi_jax").parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the public names come from every room
    assert imported_rooms(path) <= ALLOWED[room] | {room}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.versions
def test_configs_import_the_config_alone_and_make_one(path):
    from alibi_jax.config import Config, load_config

    assert imported_rooms(path) == {"config"}
    assert isinstance(load_config(path), Config)


@pytest.mark.versions
def test_importing_the_library_brings_no_tensorflow_torch_or_data_sets():
    code = "import sys, alibi_jax; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["tensorflow", "torch", "transformers", "tensorflow_datasets"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_mesh_axis_is_named_outside_sharding():
    for path in (ROOT / "alibi_jax").rglob("*.py"):
        if path.name not in ("sharding.py", "sections.py"):
            strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not {"fsdp", "tensor"} & {s for s in strings if isinstance(s, str)}, path
