"""What the experiments share: a set of named runs trained and evaluated, several at once, and a page of results.

A run that is finished is not repeated, one that was stopped goes on, so every script can be killed and run again.
"""

import datetime
import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from alibi_jax.atomic import write_atomically
from alibi_jax.checks import require
from alibi_jax.config import Config, EvaluateConfig, load_config, replace, to_json
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.train import train


def recipe(path: Path, text: Path | None) -> Config:
    """The config of a recipe; `text`, where given, is the folder that holds wikitext-2/ (or its zip) and books/."""
    config = load_config(path)
    if text is None:
        return config
    if config.data.source == "tfds":
        return replace(config, "data", tfds_manual_dir=str(text))
    paths = {name: str(text / getattr(config.data, name)) for name in ("train_path", "valid_path", "test_path")}
    return replace(config, "data", **paths)


def at_length(config: Config, length: int) -> Config:
    """The same run trained at another length: as many tokens an update, and evaluated at no shorter length."""
    tokens = config.train.train_length * config.train.batch_size
    require(
        tokens % length == 0,
        "train_lengths",
        f"{length} with {tokens} tokens an update",
        "a length that divides them",
        "Choose another length.",
    )
    lengths = tuple(at for at in config.evaluate.lengths if at >= length)
    config = replace(config, "evaluate", lengths=lengths)
    return replace(config, "train", train_length=length, batch_size=tokens // length)


def _take_core(cores: multiprocessing.Queue) -> None:
    os.sched_setaffinity(0, {cores.get()})  # before JAX asks how many there are


def _evaluate(folder: Path, evaluate: EvaluateConfig, out: Path | None, label: str) -> Path:
    return evaluate_run(folder, evaluate, out, label=label)


def _train_and_evaluate(folder: Path, config: Config, label: str) -> Path:
    train(config, folder, label=f"train {label}")
    return evaluate_run(folder, config.evaluate, label=label)


def _spread(function: Callable[..., Path], calls: Sequence[tuple], jobs: int) -> list[Path]:
    """function(*call) of every call, one after the other, or in `jobs` processes of one core each."""
    require(jobs >= 1, "jobs", jobs, "1 or more", "Raise it.")
    if jobs == 1:
        return [function(*call) for call in calls]
    spawn = multiprocessing.get_context("spawn")
    cores = spawn.Queue()
    available = sorted(os.sched_getaffinity(0))
    for job in range(jobs):
        cores.put(available[job % len(available)])
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_take_core, initargs=(cores,)) as pool:
        return list(pool.map(function, *zip(*calls, strict=True)))


def train_and_evaluate(configs: Mapping[str, Config], out: Path, jobs: int) -> list[Path]:
    """Trains and evaluates every config in a folder of `out` named by its label; returns the folders of results."""
    return _spread(_train_and_evaluate, [(out / label, config, label) for label, config in configs.items()], jobs)


def evaluate_all(runs: Sequence[Path], evaluate: EvaluateConfig, out: Path, jobs: int) -> list[Path]:
    """Evaluates trained runs into folders of `out` named like theirs; returns those."""
    return _spread(_evaluate, [(run, evaluate, out / run.name, run.name) for run in runs], jobs)


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_results(out: Path, title: str, sections: Mapping[str, str], config: Config, minutes: float) -> str:
    """Writes out/results.md, the sections under their headings and where the numbers come from, and returns its text."""
    said = provenance()
    command = shlex.join(["python", *sys.argv])
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    facts = [
        f"`{command}`",
        f"{said['machine']}; {os.cpu_count()} CPU cores; {versions}; {datetime.date.today()}; {minutes:.1f} minutes.",
        f"Text: {config.data.source} {config.data.tfds_name or config.data.tokenizer}, {config.evaluate.split} split.",
    ]
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    page = f"# {title}\n\n{body}\n\n## Where the numbers come from\n\n" + "\n\n".join(facts) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.json", to_json(config) + "\n")
    write_atomically(out / "results.md", page)
    return page
