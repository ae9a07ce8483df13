"""Registers, spills and shared memory of the kernels for GPUs, by card, pass and tiles; compiled without a GPU.

make gpu-compile                                    # all, in an environment of its own
python -m benchmarks.gpu_compile --only l4,dq,dkv   # some

It tells which tiles cannot be good, and not which are fastest. A file OUT/CARD.json has what the last run compiled for a card;
OUT/results.md shows all files. Kernels of pallas_gpu with any tiles, and on Hopper those of mosaic_gpu.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alibi_jax.attention.tiles import CANDIDATES, HOPPER, Tiles
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from benchmarks.gpu_compile.cards import CARDS
from benchmarks.gpu_compile.compiler import PASSES, Case, figures
from benchmarks.gpu_compile.table import chosen_tiles, line, write_page

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "gpu_compile"
PACKAGES = ("jaxlib", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm")
WIDTHS = (64, 128)  # channels of a head
MOSAIC = "h100_mosaic"
MOSAIC_TILES = Tiles(64, 64, 4, 2)  # as mosaic_scores.py has them
# Mosaic GPU writes from jax 0.11 on how much shared memory a kernel takes.
RECORDS = (*CARDS, MOSAIC) if jax.__version_info__ >= (0, 11) else tuple(CARDS)

# What is tried for bfloat16, on a card with wgmma and one with mma.sync: (own, visited, warps, stages). Own rows stay with
# a program, visited ones pass by.
SWEPT = ("h100", "a100")
SWEEP = [
    *((64, visited, 4, 2) for visited in (64, 128)),
    *((own, 64, 8, 2) for own in (64, 128)),
    *((128, 64, 4, 2), (128, 128, 8, 2)),
]
# float32 has no tensor cores here, so that its programs are alike on all cards, long, and slow to compile: on the first alone.
SWEEP_FLOAT32 = [(64, 16, 4, 2), (32, 32, 4, 2), (32, 32, 8, 2), (64, 32, 8, 2)]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options: records, passes (names), out (a folder), jobs."""
    names = [*RECORDS, *PASSES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_compile", description="The kernels for GPUs, compiled without one."
    )
    meaning = f"cards ({MOSAIC}: the kernels of mosaic_gpu) and passes to compile, of {','.join(names)}"
    parser.add_argument("--only", default=",".join(names), help=meaning)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kernels compiled at once")
    options = parser.parse_args(arguments)
    only = options.only.split(",")
    if unknown := set(only) - set(names):
        parser.error(
            f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(names)}. Correct the name."
        )
    options.records = [name for name in RECORDS if name in only] or list(RECORDS)
    options.passes = [name for name in PASSES if name in only] or list(PASSES)
    return options


def tiles_of(sweep: list[tuple[int, int, int, int]], pass_name: str) -> list[Tiles]:
    """Returns the tiles of (own, visited, warps, stages): the queries are a program's own, or the keys in dkv."""
    return [Tiles(*((b, a) if pass_name == "dkv" else (a, b)), *rest) for a, b, *rest in sweep]


def cases(name: str, pass_name: str) -> list[Case]:
    """Returns what is compiled of a pass for a record: the candidates, and the sweep where the card stands for its kind."""
    if name == MOSAIC:
        return [Case(CARDS["h100"], pass_name, "bfloat16", width, MOSAIC_TILES, "mosaic_gpu") for width in WIDTHS]
    card, several = CARDS[name], []
    for dtype, width in itertools.product(("bfloat16", "float32"), WIDTHS):
        candidates = HOPPER if card.capability == (9, 0) else CANDIDATES
        tiles = list(candidates[jnp.dtype(dtype).itemsize, width]._asdict()[pass_name])
        if name in SWEPT and dtype == "bfloat16":
            tiles += tiles_of(SWEEP, pass_name)
        if name == SWEPT[0] and dtype == "float32":
            tiles += tiles_of(SWEEP_FLOAT32, pass_name)
        several += [Case(card, pass_name, dtype, width, each) for each in dict.fromkeys(tiles)]
    if name == SWEPT[0]:  # once, to show that float16 is as bfloat16, but for a multiplication a score backward
        halves = [(width, chosen_tiles(card, pass_name, "float16", width)) for width in WIDTHS]
        several += [Case(card, pass_name, "float16", *each) for each in halves]
    return several


def row(case: Case) -> dict[str, Any]:
    """Compiles a case, prints its line, and returns the case and its figures as a flat dict."""
    card, pass_name, dtype, width, tiles, _ = case
    result = {"pass": pass_name, "dtype": dtype, "width": width} | tiles._asdict() | figures(case)
    print(card.name, dtype, width, pass_name, line(result), flush=True)
    return result


def compile_record(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns a record: the card, what made it, and a row for each kernel."""
    started = time.monotonic()
    every = [case for each in options.passes for case in cases(name, each)]
    with ThreadPoolExecutor(1 if name == MOSAIC else options.jobs) as pool:
        rows = list(pool.map(row, every))
    record = {"card": every[0].card.name, "kernels": every[0].implementation, "command": recorded_command()}
    record |= provenance()
    record["versions"] |= {package: importlib.metadata.version(package) for package in PACKAGES}
    return record | {"seconds": round(time.monotonic() - started), "rows": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles everything asked for, and writes the figures of each card, and the page of all that are in the folder."""
    options = options_of(arguments)
    jax.config.update("jax_platforms", "cpu")  # what is here; the compiler for GPUs needs none
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.records:
        record = compile_record(name, options)
        write_atomically(options.out / f"{name}.json", json.dumps(record) + "\n")
        print(f"{name}: {len(record['rows'])} kernels, {record['seconds']} s", flush=True)
        write_page(options.out)


if __name__ == "__main__":
    main()
