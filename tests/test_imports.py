"""Imports run one way, and nothing heavy is imported by importing the library."""

import ast
import dataclasses
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import alibi_jax

ROOT = Path(__file__).parents[1]

# room -> rooms it may import from
ALLOWED = {
    "errors": set(),
    "storage": {"errors"},
    "positions.bias": set(),
    "positions": {"errors", "positions.bias"},
    "config": {"errors", "positions", "storage"},
    "sharding": {"errors"},
    "attention": {"errors", "positions.bias", "sharding"},
    "plan.chips": set(),
    "model": {"attention", "config", "errors", "plan.chips", "positions", "positions.bias", "sharding"},
    "data": {"config", "errors", "storage"},
    "optimizer": {"config", "errors"},
    "run": {"config", "errors", "model", "plan.chips", "sharding", "storage"},
    "evaluate": {"config", "data", "errors", "model", "positions", "run", "sharding", "storage"},
    "loop": {"config", "data", "errors", "evaluate", "model", "run", "sharding", "storage"},
    "init_from": {"config", "errors", "model", "run", "sharding", "storage"},
    "train": {
        *(
            "config",
            "data",
            "errors",
            "evaluate",
            "init_from",
            "loop",
            "model",
            "optimizer",
            "run",
            "sharding",
            "storage",
        ),
    },
    "plan": {
        "attention",
        "config",
        "data",
        "errors",
        "evaluate",
        "model",
        "plan.chips",
        "run",
        "sharding",
        "storage",
        "train",
    },
    "convert": {"config", "data", "errors", "evaluate", "model", "positions", "run", "sharding", "storage"},
    "run.commands": {"config", "convert", "data", "errors", "evaluate", "plan", "run", "storage", "train"},
    "run.parse": {"config", "errors", "run", "run.commands"},
    "__main__": {"run", "run.parse"},
}


# what `from alibi_jax import attend` loads of the library beside attention, and may load of other packages
ATTEND_MODULES = {f"alibi_jax{name}" for name in ("", ".errors", ".positions", ".positions.bias", ".sharding")}
ATTEND_PACKAGES = {"absl", "jax", "jaxlib", "jaxtyping", "numpy", "typing_extensions", "wadler_lindig"}


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, stop: type | tuple = ()) -> list[ast.Import | ast.ImportFrom]:
    """The imports within a node that run, without those inside nodes of the types `stop`."""
    actual = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            actual.append(child)
        elif not isinstance(child, stop) and not for_type_checkers(child):
            actual += imports(child, stop)
    return actual


def module_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]


def imported_rooms(path: Path) -> set[str]:
    names = []
    for node in imports(ast.parse(path.read_text())):
        version_alone = [alias.name for alias in node.names] == ["__version__"]
        names += [] if version_alone else module_names(node)
    assert "alibi_jax" not in names, f"{path} imports from the package as a whole"
    return {room_of(name) for name in names if name.startswith("alibi_jax.")}


def room_of(module: str) -> str:
    """The room of alibi_jax.ROOM...; what knows nobody is a room of its own."""
    inside = module.removeprefix("alibi_jax.")
    return inside if inside in ALLOWED else inside.split(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "alibi_jax").rglob("*.py")), ids=lambda path: path.stem)
def test_rooms_import_one_way(path):
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    allowed = set() if room == "__init__" else ALLOWED[room] | {room}  # public names are imported when they are used
    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "alibi_jax").rglob("*.py")), ids=lambda path: path.stem)
def test_no_private_name_of_jax_is_needed_to_import_the_library(path):
    """A private name may go with any release: only the function that needs it may import it."""
    functions = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
    for node in imports(ast.parse(path.read_text()), stop=functions):
        names = [f"{name}.{alias.name}" for name in module_names(node) for alias in node.names]
        assert not [name for name in names if name.startswith("jax") and "._" in name]


def test_public_names_are_one_list():
    """What the package loads, what it lists, and what editors see."""
    tree = ast.parse((ROOT / "alibi_jax" / "__init__.py").read_text())
    seen = {
        alias.name: node.module
        for block in tree.body
        if for_type_checkers(block)
        for node in block.body
        for alias in node.names
    }
    assert seen == alibi_jax._MODULES | {"train": "alibi_jax.train"}
    assert sorted(seen) == alibi_jax.__all__
    assert set(seen) <= set(dir(alibi_jax))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        alibi_jax.trian  # noqa: B018


def test_mesh_axes_are_the_fields_of_the_mesh_config():
    from alibi_jax.config import MeshConfig
    from alibi_jax.sharding import AXES

    assert tuple(field.name for field in dataclasses.fields(MeshConfig)) == AXES


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.versions
def test_configs_import_the_config_alone_and_make_one(path):
    from alibi_jax.config import Config, load_config

    assert imported_rooms(path) == {"config"}
    assert isinstance(load_config(path), Config)


LOADING = """
import json, sys
import jax, jax.numpy
before = set(sys.modules)
from alibi_jax import attend
attend_alone = sorted(set(sys.modules) - before)
import alibi_jax.train
from alibi_jax import *
print(json.dumps([attend_alone, sorted(sys.modules), callable(train)]))
"""


@pytest.mark.versions
def test_attend_loads_attention_alone_and_the_library_no_other_framework():
    """In one process: `from alibi_jax import attend`, then all public names, of which `train` is also a module's."""
    done = subprocess.run([sys.executable, "-c", LOADING], cwd=ROOT, capture_output=True, text=True, check=True)
    attend_alone, everything, train_is_the_function = json.loads(done.stdout)
    own = {name for name in attend_alone if name.startswith("alibi_jax")}
    assert {name for name in own if not name.startswith("alibi_jax.attention")} == ATTEND_MODULES
    packages = {name.partition(".")[0] for name in set(attend_alone) - own}
    assert packages - sys.stdlib_module_names <= ATTEND_PACKAGES
    assert not {"tensorflow", "torch", "transformers", "tensorflow_datasets"} & set(everything)
    assert train_is_the_function


def test_no_mesh_axis_is_named_outside_sharding():
    for path in (ROOT / "alibi_jax").rglob("*.py"):
        if path.name not in ("sharding.py", "sections.py"):
            strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not {"fsdp", "tensor"} & {s for s in strings if isinstance(s, str)}, path


@pytest.mark.versions
def test_no_figure_no_matplotlib():
    """The commands, the experiments and all tables do without, until a figure is drawn."""
    code = "import sys, alibi_jax.run.commands, experiments.extrapolation; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# A module or package of data/ imports those before it alone, and within a package there is no circle.
DATA = """document facts vocabulary batches paths splits sources tokenizer layout stream text names lookup write aside earlier
corpus"""
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
