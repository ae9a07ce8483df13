"""Fails where two collections of the tests, begun seconds apart and with different hashes, do not name the same tests.

A name that holds a time, an address or the order of a set makes pytest-xdist refuse a run by chance:
"Different tests were collected".
"""

import difflib
import os
import subprocess
import sys
import time

SECONDS = 2  # apart: a time in a name is then another one


def collection(hash_seed: str) -> subprocess.Popen:
    """The start of a process that prints the name of every test, those that are not run by default too."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", "-q", "-m", "not peers"]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main() -> int:
    first = collection("1")
    time.sleep(SECONDS)
    processes = [first, collection("2")]
    texts = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        print(*texts, sep="\n")
        return 1
    names = [[line for line in text.splitlines() if "::" in line] for text in texts]
    changed = list(difflib.unified_diff(*names, "first", "second", lineterm="", n=0))
    if changed:
        print("Names of tests differ between two collections. Give them fixed ids.", *changed, sep="\n")
    else:
        print(f"{len(names[0])} tests have the same names in two collections.")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
