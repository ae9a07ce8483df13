"""Which Pythons and packages the tests run on."""

import re
import sys
from pathlib import Path

from newest_python import newest

ROOT = Path(__file__).parents[1]


def interpreter(folder: Path, name: str, answer: str) -> Path:
    """A stand-in that says which Python it is, or that it is none."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_the_newest_python_is_the_latest_release_that_starts(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    interpreter(one, "python3.100", "echo not installed >&2; exit 127")
    interpreter(one, "python3.99", "echo False 3 99")  # no release yet
    interpreter(one, "python3.98t", "echo True 3 98")
    interpreter(one, "python3.9", "echo True 3 9")
    interpreter(other, "python3.101", "").chmod(0o644)
    expected = interpreter(other, "python3.97", "echo True 3 97")
    interpreter(one, "python3.96", "echo True 3 96")
    assert newest([one, tmp_path / "missing", other]) == expected


def test_no_python_is_newer_than_this_one(tmp_path):
    interpreter(tmp_path, "python3.9", "echo True 3 9")
    interpreter(tmp_path, f"python3.{sys.version_info[1]}", f"echo True 3 {sys.version_info[1]}")
    assert newest([tmp_path]) is None


def test_every_requirement_has_the_lower_bound_that_test_oldest_installs():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert requirements
    for line in requirements:
        assert re.match(r"[A-Za-z0-9_-]+(\[[a-z]+\])?>=[0-9.]+(\s|$)", line), line
