"""Bundles of the TPU kernels' regions, ours and those of jax's splash attention, by chip, pass, head width and blocks.

python -m benchmarks.tpu_schedule                        # everything, 15 minutes on two cores; needs libtpu and no TPU
python -m benchmarks.tpu_schedule --only ours --plan     # after a change of the kernels, 4 minutes
python -m benchmarks.tpu_schedule --only ours,v5e,forward,128,bfloat16

OUT/COMPILER.json has the rows of a version of the compiler: those compiled anew replace the older ones of the same
implementation, chip, pass, width and dtype. OUT/results.md and OUT/bundles.png show all of them. It compares programs, and is
no time.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax

from alibi_jax.evaluate.sweep import provenance
from alibi_jax.plan.attention import FIGURES
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from benchmarks.tpu_schedule.compiler import TOPOLOGIES, Case, dumping
from benchmarks.tpu_schedule.table import write_page

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "tpu_schedule"
IMPLEMENTATIONS = ("ours", "splash", "splash_fused")
PASSES = ("forward", "backward")
DTYPES = ("bfloat16", "float32")  # float32 of one width
PLACE = ("implementation", "chip", "pass_name", "width", "dtype")  # what rows are replaced by
WIDTHS = (64, 128, 256)  # channels of a head
# Tokens; long enough that queries, keys and values do not fit the memory of a core, where programs differ. Beyond the second
# our backward kernel keeps its sums of dq outside, where heads are 128 wide.
LENGTH, LONG = 32_768, 131_072
SPLASH_BLOCKS = ((512, 512), (512, 1024), (1024, 1024))  # queries, keys


class Work(NamedTuple):
    """What one process compiles."""

    implementation: str
    chip: str
    cases: tuple[Case, ...]


class Job(NamedTuple):
    """A process that compiles."""

    work: Work
    process: subprocess.Popen
    folder: tempfile.TemporaryDirectory  # of the compiler's texts
    output: IO[str]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options: implementations, chips, passes, widths, dtypes, out (a folder), jobs, plan."""
    names = [*IMPLEMENTATIONS, *TOPOLOGIES, *PASSES, *map(str, WIDTHS), *DTYPES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu_schedule", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        default="",
        help=f"implementations, chips, passes, widths in channels, dtypes: some of {', '.join(names)}",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at once, each of 2 GB")
    parser.add_argument("--plan", action="store_true", help="write alibi_jax/plan/attention_bundles.json, too")
    options = parser.parse_args(arguments)
    only = [name for name in options.only.split(",") if name]
    if unknown := set(only) - set(names):
        parser.error(f"--only: got {sorted(unknown)}, expected some of {', '.join(names)}. Correct the name.")
    options.implementations = [name for name in IMPLEMENTATIONS if name in only] or list(IMPLEMENTATIONS)
    options.chips = [name for name in TOPOLOGIES if name in only] or list(TOPOLOGIES)
    options.passes = [name for name in PASSES if name in only] or list(PASSES)
    options.widths = [width for width in WIDTHS if str(width) in only] or list(WIDTHS)
    options.dtypes = [name for name in DTYPES if name in only] or list(DTYPES)
    return options


def cases(implementation: str, options: argparse.Namespace) -> Iterator[Case]:
    """Yields what is compiled of an implementation for a chip; splash attention's passes are compiled together."""
    for dtype, width in itertools.product(options.dtypes, options.widths):
        if dtype == "float32" and width != 128:
            continue
        if implementation == "ours":
            yield from (Case(name, width, dtype, LENGTH) for name in options.passes)
            if dtype == "bfloat16" and "backward" in options.passes:
                yield Case("backward", width, dtype, LONG * 128 // max(width, 128))
        elif implementation == "splash" or (dtype, width) == ("bfloat16", 128):
            for blocks in SPLASH_BLOCKS if dtype == "bfloat16" else SPLASH_BLOCKS[:1]:
                yield Case("backward", width, dtype, LENGTH, *blocks)


def start(work: Work) -> Job:
    """Starts a process that compiles."""
    folder = tempfile.TemporaryDirectory(prefix="tpu_schedule-")
    output = tempfile.TemporaryFile("w+")
    environment = os.environ | dumping(Path(folder.name)) | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.tpu_schedule.compiler", work.implementation, work.chip]
    process = subprocess.Popen([*command, *map(str, work.cases)], stdout=output, env=environment)
    return Job(work, process, folder, output)


def finish(job: Job) -> list[dict[str, Any]]:
    """Returns the rows of a process that has ended; CalledProcessError where it failed."""
    if job.process.returncode:
        raise subprocess.CalledProcessError(job.process.returncode, job.process.args)
    job.output.seek(0)
    rows = [json.loads(line) for line in job.output]
    print(f"{job.work.implementation} on {job.work.chip}: {len(rows)} rows", flush=True)
    return rows


def end(job: Job) -> None:
    """Ends a process, if it still runs, and deletes its files."""
    job.process.kill()
    job.process.wait()
    job.folder.cleanup()
    job.output.close()


def compile_all(work: Sequence[Work], jobs: int) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of each piece of work, `jobs` at once. No folder or process is left, however it ends."""
    waiting, running = list(work), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(start(waiting.pop(0)))
            time.sleep(0.1)
            for job in [job for job in running if job.process.poll() is not None]:
                rows = finish(job)
                end(job)
                running.remove(job)
                yield rows
    finally:
        for job in running:
            end(job)


def merged(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the record of a compiler with rows in place of those of the same PLACE."""

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        names = IMPLEMENTATIONS, list(TOPOLOGIES), PASSES, WIDTHS, DTYPES
        return tuple(each.index(row[name]) for each, name in zip(names, PLACE, strict=True))

    new = {place(row) for row in rows}
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    return {"command": recorded_command(), **provenance(), "compiler": path.stem} | {
        "rows": sorted([*(row for row in kept if place(row) not in new), *rows], key=place)
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, a line for each row."""
    head = json.dumps({name: value for name, value in record.items() if name != "rows"})
    lines = ",\n".join(json.dumps(row) for row in record["rows"])
    write_atomically(path, f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles everything asked for, and writes the rows, the page and the plot."""
    options = options_of(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that folders are deleted
    jax.config.update("jax_platforms", "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    path = options.out / f"libtpu_{importlib.metadata.version('libtpu')}.json"
    pairs = itertools.product(options.implementations, options.chips)
    work = [Work(implementation, chip, tuple(cases(implementation, options))) for implementation, chip in pairs]
    for rows in compile_all(work, options.jobs):
        record = merged(path, rows)
        write(path, record)
    if options.plan:
        write(FIGURES, record | {"rows": [row for row in record["rows"] if row["implementation"] == "ours"]})
    write_page(options.out)
    print(f"{time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
