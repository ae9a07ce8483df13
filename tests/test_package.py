"""What an installed package has: every module, every recipe, the command, one version."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import alibi_jax
from alibi_jax.config.recipes import recipe_names

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules() -> set[str]:
    """Every module of the package, as a wheel names it, recipes included."""
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "alibi_jax").rglob("*.py")}
    return own | {f"alibi_jax/configs/{name}.py" for name in recipe_names()}


def test_every_folder_with_modules_is_a_package_and_recipes_go_inside():
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {name.rpartition("/")[0].replace("/", ".") for name in modules()}
    assert sorted(setuptools["packages"]) == sorted(folders)
    assert setuptools["package-dir"] == {"alibi_jax.configs": "configs"} and not (ROOT / "alibi_jax/configs").exists()
    assert PROJECT["project"]["scripts"] == {"alibi-jax": "alibi_jax.__main__:main"}
    assert setuptools["dynamic"]["version"] == {"attr": "alibi_jax.__version__"}


def test_version_names_the_devices():
    done = subprocess.run([sys.executable, "-m", "alibi_jax", "--version"], cwd=ROOT, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == ""
    assert first.startswith(f"alibi_jax {alibi_jax.__version__}, jax 0.") and second.startswith("devices: 8 ")


def test_citation_names_the_software_and_the_paper():
    """As the schema of the Citation File Format 1.2.0 wants them."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["title"] == "alibi_jax" and citation["message"]
    assert citation["authors"] and citation["type"] == "software"
    (paper,) = citation["references"]
    assert paper["type"] == "conference-paper" and [person["family-names"] for person in paper["authors"]] == [
        "Press",
        "Smith",
        "Lewis",
    ]


@pytest.mark.slow
def test_a_wheel_has_every_module_and_recipe(tmp_path):
    """Needs a package index for setuptools."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == modules(), json.dumps(sorted(names))
