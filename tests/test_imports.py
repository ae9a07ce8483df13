"""Imports run one way, and nothing heavy is imported by importing the library."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# room -> rooms it may import from
ALLOWED = {
    "errors": set(),
    "storage": {"errors"},
    "config": {"errors", "storage"},
    "positions.bias": set(),
    "positions": {"errors", "positions.bias"},
    "sharding": {"config", "errors"},
    "attention": {"errors", "positions.bias", "sharding"},
    "plan.chips": set(),
    "model": {"attention", "config", "errors", "plan.chips", "positions", "positions.bias", "sharding"},
    "data": {"config", "errors", "storage"},
    "optimizer": {"config", "errors"},
    "run": {"config", "errors", "model", "plan.chips", "sharding", "storage"},
    "evaluate": {"config", "data", "errors", "model", "positions", "run", "sharding", "storage"},
    "loop": {"config", "data", "errors", "evaluate", "model", "run", "sharding", "storage"},
    "train": {"config", "data", "errors", "evaluate", "loop", "model", "optimizer", "run", "sharding", "storage"},
    "plan": {"config", "data", "errors", "evaluate", "model", "plan.chips", "run", "sharding", "storage", "train"},
    "run.commands": {"config", "data", "errors", "evaluate", "plan", "run", "storage", "train"},
    "run.parse": {"config", "errors", "run", "run.commands"},
    "__main__": {"run", "run.parse"},
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if names == ["alibi_jax"] and [alias.name for alias in node.names] == ["__version__"]:
            continue
        assert "alibi_jax" not in names, f"{path} imports from the package as a whole"
        rooms |= {room_of(name) for name in names if name.startswith("alibi_jax.")}
    return rooms


def room_of(module: str) -> str:
    """The room of alibi_jax.ROOM...; what knows nobody is a room of its own."""
    inside = module.removeprefix("alibi_jax.")
    return inside if inside in ALLOWED else inside.split(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "alibi_jax").rglob("*.py")), ids=lambda path: path.stem)
def test_rooms_import_one_way(path):
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
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


@pytest.mark.versions
def test_no_figure_no_matplotlib():
    """The command line, the experiments and all tables do without, until a figure is drawn."""
    code = "import sys, main, experiments.extrapolation, alibi_jax.evaluate.tables; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# A module or package of data/ imports those before it alone, and within a package there is no circle.
DATA = "document facts vocabulary batches paths splits sources tokenizer layout text names lookup write aside earlier corpus"
LATE = {("sources.tfds", "sources.wikitext")}  # imported in a function, as it loads tensorflow_datasets


def imports_of_data(nodes: Iterable[ast.AST], modules: Iterable[str]) -> set[str]:
    """The modules of data/ that import statements name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("alibi_jax.data."):
            parent = node.module.removeprefix("alibi_jax.data").removeprefix(".")
            names |= {f"{parent}.{alias.name}".strip(".") for alias in node.names} & set(modules) or {parent}
    return names


def test_the_modules_of_data_import_one_way_and_at_their_tops():
    folder = ROOT / "alibi_jax/data"
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.py")}
    paths = {name.removesuffix("__init__").strip("/").replace("/", "."): path for name, path in paths.items()}
    trees = {module: ast.parse(path.read_text()) for module, path in paths.items()}
    imports = {module: imports_of_data(ast.walk(tree), paths) for module, tree in trees.items()}
    graphlib.TopologicalSorter(imports).prepare()  # CycleError names the modules of a circle
    order = ["", *DATA.split()]
    assert {module.split(".")[0] for module in paths} == set(order)
    for module, others in imports.items():
        room = module.split(".")[0]
        allowed = {*order[: order.index(room)], room}
        assert {other.split(".")[0] for other in others} <= allowed, module
    late = {
        (module, other) for module in paths for other in imports[module] - imports_of_data(trees[module].body, paths)
    }
    assert late == LATE
