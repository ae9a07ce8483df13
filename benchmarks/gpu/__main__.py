"""All parts of the benchmark on a GPU, within nine minutes; each in a process of its own, and none stops the others.

make gpu                                            # on a machine with a GPU; installs nothing, needs no network
python -m benchmarks.gpu --only correctness,step    # some parts; the report joins them with those of earlier calls
python -m benchmarks.gpu --interpret                # anywhere: small shapes, kernels step by step; shows that it works

Minutes at most: correctness 1:40, step 1:20, speed 3:30, training 1:50, report 0:40, and some seconds that look for the GPU.
An H200 beside 16 cores took 0:59, 0:36, 3:09 and 1:28.
A part that is cut at its limit keeps its rows; those of speed begin with the most telling shapes. Whoever has a GPU for 15
minutes runs `--only correctness,step` first, 3:40 at most: what fails there is mended before anything is timed. Then
`--only speed,training` with the same --out, 6:00 at most; with `--times 1.3`, 7:36.

speed and training leave out our kernels that did not finish correctness, or did not pass it in bfloat16, which is timed: the
record in --out says which. Where it holds none, all take part; `--without KERNEL:WHY` leaves one out.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.kernels import kernel_and_reason, unproven
from benchmarks.gpu.part import ROOT, WITHOUT, failures, write

PARTS = {"correctness": 100, "step": 80, "speed": 210, "training": 110}  # seconds each may take, start-up included
TIMED = ("speed", "training")  # those that time kernels
INTERPRETED_TIMES = 5  # as long each may take where kernels run step by step, on few cores
REPORT_SECONDS = 40
KILL_SECONDS = 10  # that a process which was killed may take to end
RESULTS = ROOT / "experiments" / "results" / "gpu"
INTERPRETED = ROOT / "runs" / "gpu"  # where results of the interpreter go, which are none of a GPU


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options: only (names of parts, in the order of PARTS), out (a folder), interpret, times, without."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="What one GPU shows within 9 minutes."
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--interpret", action="store_true", help="small shapes on any device, kernels step by step")
    parser.add_argument("--times", type=float, default=1.0, help="how many times its limit a part may take")
    without = f"{WITHOUT}; those that did not pass `correctness` are not, either"
    parser.add_argument(
        "--without", action="append", default=[], type=kernel_and_reason, metavar="KERNEL:WHY", help=without
    )
    options = parser.parse_args(arguments)
    unknown = set(options.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(
            f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(PARTS)}. Correct the name."
        )
    options.only = [part for part in PARTS if part in options.only.split(",")]
    options.out = (options.out or (INTERPRETED if options.interpret else RESULTS)).resolve()
    return options


def run_within(command: Sequence[str], seconds: float) -> str:
    """Runs a command in the checkout, kills its processes at the limit, and returns what went wrong in a line, or ""."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"killed at its limit of {seconds:.0f} s"
    finally:  # also where we are interrupted; and what a process that has ended left running
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs may keep it: the others go on
            process.wait(KILL_SECONDS)
    return "" if status == 0 else f"ended with status {status}"


def run(part: str, command: Sequence[str], out: Path, seconds: float) -> list[str]:
    """Runs a part that writes the file `out`, and returns what went wrong in lines; the file says so, too."""
    out.unlink(missing_ok=True)  # else an earlier run's would be taken for this one's
    problem = run_within([*command, "--out", str(out)], seconds)
    if not out.exists():
        return [f"{part}: {problem or 'it ended well'}, and wrote nothing. What it printed says why."]
    record = json.loads(out.read_text())
    if record["error"] is None and not record["finished"]:
        record["error"] = problem
        write(record, out)
    return [f"{part}: {line}" for line in failures(record) or ([problem] if problem else [])]


def left_out(options: argparse.Namespace) -> list[str]:
    """Returns the options of a part that times kernels: those to leave out, as asked for or as they did not pass correctness.

    Where no correctness of this kind was recorded in the folder of the results, all take part.
    """
    out = options.out / "parts" / "correctness.json"
    record = json.loads(out.read_text()) if out.exists() else {"interpret": None}
    reasons = unproven(record) if record["interpret"] == options.interpret else {}
    return [f"--without={kernel}:{why}" for kernel, why in (reasons | dict(options.without)).items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts, then the report; prints what went wrong, and returns the exit status."""
    options, started, problems = options_of(arguments), time.monotonic(), []
    python = [sys.executable, "-m"]
    if not options.interpret:
        check_gpu()
    flags = ["--interpret"] if options.interpret else []
    for part in options.only:
        out = options.out / "parts" / f"{part}.json"
        seconds = options.times * PARTS[part] * (INTERPRETED_TIMES if options.interpret else 1)
        without = left_out(options) if part in TIMED else []
        problems += run(part, [*python, f"benchmarks.gpu.{part}", *flags, *without], out, seconds)
    report = run_within([*python, "benchmarks.gpu.report", "--out", str(options.out)], REPORT_SECONDS)
    problems += [f"report: {report}"] if report else []
    seconds = time.monotonic() - started
    print(
        *problems,
        f"{', '.join(options.only)}: {seconds:.0f} s, {len(problems) or 'no'} problems; {options.out}",
        sep="\n",
    )
    return 1 if problems else 0


def check_gpu() -> None:
    """Ends the program where JAX sees no GPU. Asked in a process of its own, which leaves the device alone."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    if done.stdout.strip() != "gpu":
        raise SystemExit(
            f"make gpu: got the platform {done.stdout.strip() or 'none'}, expected a GPU and a JAX with its CUDA plugin. "
            "Run it on such a machine, or try it here with `make gpu INTERPRET=1`."
        )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the part is killed, too
    sys.exit(main())
