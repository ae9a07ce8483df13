"""How a part runs in a process of its own: rows, written as JSON that is whole after each of them.

A part is a module with a generator `rows(interpret) -> Iterator[dict]`. A row is a flat dict that JSON can hold, yielded as
soon as it is measured. A row in which `passed` is False makes the part fail, and `reason` says why; the part goes on. An
exception ends the part. The rows before it are kept, also where the process is killed.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from alibi_jax.evaluate.sweep import provenance
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from benchmarks.gpu.kernels import kernel_and_reason

ROOT = Path(__file__).parents[2]
# packages that may be there
OPTIONAL = (
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "torch",
    "triton",
    "tokamax",
)

WITHOUT = "a kernel of ours that is not timed, and why"

Rows = Callable[..., Iterator[dict[str, Any]]]


def run_part(part: str, rows: Rows, arguments: Sequence[str] | None = None, autotuned: bool = True) -> None:
    """Runs a part from the command line, `--out FILE --interpret`, and ends the process with status 1 where it failed.

    Parts that time kernels also take `--without KERNEL:WHY`, which their rows get as `without`, kernel -> why. arguments: those
    of the command line where None. Without --interpret the default device must be a GPU. autotuned: XLA times variants of its
    own products of matrices, which takes most of a minute a program in float32.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{part}", description="One part of `make gpu`.")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--interpret", action="store_true", help="small shapes on any device, kernels step by step")
    parser.add_argument("--without", action="append", type=kernel_and_reason, metavar="KERNEL:WHY", help=WITHOUT)
    options = parser.parse_args(arguments)
    # before a device is opened: PyTorch shares its memory
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not autotuned:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    if not options.interpret and jax.default_backend() != "gpu":
        raise SystemExit(
            f"{part}: got the platform {jax.default_backend()}, expected a GPU. Run it on a machine with one, or try it here "
            "with --interpret."
        )
    if options.without:
        rows = functools.partial(rows, without=dict(options.without))
    record = measure(part, rows, options.out, options.interpret)
    raise SystemExit(1 if failures(record) else 0)


def measure(part: str, rows: Rows, out: Path, interpret: bool) -> dict[str, Any]:
    """Prints and writes every row as it is measured, and returns the record that `out` holds in the end.

    part, command, commit, versions, machine, date, device, interpret, started (seconds since 1970), seconds, finished, error
    (text, or None), rows. An exception of the rows is recorded as the error, and raised.
    """
    facts = {"part": part, "command": recorded_command(), "commit": _commit(), **provenance(), "device": _device()}
    facts["versions"] |= _optional_versions()
    record = facts | {"interpret": interpret, "started": time.time(), "seconds": 0.0, "finished": False}
    record |= {"error": None, "rows": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    write(record, out)
    try:
        for row in rows(interpret):
            record["rows"].append({name: _json_number(value) for name, value in row.items()})
            print(f"{part}:", *(f"{name}={_shown(value)}" for name, value in row.items()), flush=True)
            write(record, out)
        record["finished"] = True
    finally:
        error = sys.exception()
        record["error"] = "".join(traceback.format_exception(error)[-3:]) if error else None
        write(record, out)
    return record


def write(record: dict[str, Any], out: Path) -> None:
    """Writes a record with the seconds it has taken so far."""
    record["seconds"] = time.time() - record["started"]
    write_atomically(out, json.dumps(record, indent=1, allow_nan=False) + "\n")


def failures(record: dict[str, Any]) -> list[str]:
    """Returns what went wrong in a part, a line each: its error, and the rows that did not pass."""
    lines = [] if record["error"] is None else [record["error"].strip().splitlines()[-1]]
    if record["error"] is None and not record["finished"]:
        lines.append("it did not finish")
    bad = [row for row in record["rows"] if row.get("passed") is False]
    if bad:
        first = ", ".join(f"{name} {_shown(value)}" for name, value in bad[0].items())
        lines.append(f"{len(bad)} of {len(record['rows'])} rows did not pass, the first: {first}")
    return lines


def attempt(make: Callable[[], Any]) -> tuple[Any, str]:
    """Returns (what `make` returns, ""), or (None, the error in a line) where it raises, so that a part can go on.

    Everything is caught here, and here alone: compilers and peers raise errors of many types, and one that fails must not
    cost the minutes of the others.
    """
    try:
        return make(), ""
    except Exception as error:
        if not isinstance(error, NotImplementedError):  # whose message says what cannot be served
            traceback.print_exc()
        return None, f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]


def _json_number(value: Any) -> Any:
    """Returns a value as JSON holds it: numbers of numpy as Python's, NaN and infinity as text."""
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _commit() -> str | None:
    """Returns the commit of the checkout, with "-dirty" where files differ from it; None where git cannot say."""
    if shutil.which("git") is None:
        return None
    ours = f"safe.directory={ROOT}"  # also where the checkout belongs to another user, as a mounted one may
    command = ["git", "-C", str(ROOT), "-c", ours, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def _optional_versions() -> dict[str, str]:
    installed = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in OPTIONAL if name in installed}


def _device() -> dict[str, Any]:
    """Returns the kind of the default device and, of a GPU, its compute capability, memory in bytes, and driver."""
    device = jax.devices()[0]
    facts = {"kind": device.device_kind, "platform": device.platform}
    if device.platform != "gpu":
        return facts
    facts["capability"] = device.compute_capability
    facts["memory"] = (device.memory_stats() or {}).get("bytes_limit")
    return facts | {"driver": _driver()}


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip().partition("\n")[0] or None
