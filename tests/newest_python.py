"""Prints the newest Python 3 that is installed beside this one and newer; nothing where there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path


def version(python: Path) -> tuple[int, int]:
    """(3, minor) of an interpreter; (0, 0) of one that does not start, such as pyenv's stand-in for a version not chosen."""
    code = "import sys, venv, ensurepip; print(sys.version_info.releaselevel == 'final', *sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    final, major, minor = done.stdout.split() if done.returncode == 0 else ("False", 0, 0)
    return (int(major), int(minor)) if final == "True" else (0, 0)


def newest(folders: list[Path]) -> Path | None:
    """The python3.N of the largest N past this one's, that starts, is a release and can make a venv."""
    pythons = [path for folder in folders for path in folder.glob("python3.*")]
    pythons = [path for path in pythons if re.fullmatch(r"python3\.\d+", path.name) and os.access(path, os.X_OK)]
    pythons.sort(key=lambda path: int(path.name.removeprefix("python3.")), reverse=True)
    return next((path for path in pythons if version(path) > sys.version_info[:2]), None)


if __name__ == "__main__":
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    print(newest(folders) or "")
