"""What the experiments have in common: a set of named runs trained and evaluated, several at once, and a page of results.

A run that is finished is not repeated, one that was stopped goes on, so every script can be killed and run again.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alibi_jax.config import Config, EvaluateConfig, load_config, replace, to_json
from alibi_jax.errors import ResultsError, require
from alibi_jax.evaluate.reader import explained
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.evaluate.tables import DASH, markdown
from alibi_jax.run.display import markdown_code, markdown_text, number
from alibi_jax.run.invocation import recorded_command
from alibi_jax.sharding import check_mesh, make_mesh, num_shards
from alibi_jax.storage import write_atomically
from alibi_jax.train import train
from experiments.processes import Call, spread

REMOVE = "Remove the file to measure again."


def recipe(path: Path, text: Path | None) -> Config:
    """Returns the config of a recipe; `text`, unless None, is the folder that holds wikitext-2/ (or its zip) and books/."""
    config = load_config(path)
    require(
        text is None or config.data.source != "stdlib",
        "text",
        f"{text} with a recipe whose text is Python's standard library",
        "none, or a recipe of WikiText or of files",
        "Leave it out, or choose another --config.",
    )
    if text is None:
        return config
    if config.data.source == "tfds":
        return replace(config, "data", tfds_manual_dir=str(text))
    paths = {name: getattr(config.data, name) for name in ("train_path", "valid_path", "test_path")}
    return replace(config, "data", **{name: str(text / path) if path else path for name, path in paths.items()})


def at_length(config: Config, length: int) -> Config:
    """Returns the config of the same run trained at another length, evaluated at that and every longer length of the config's.

    An update has as many tokens, but for whole sequences on every device.
    """
    tokens = config.train.train_length * config.train.batch_size
    ways = num_shards(make_mesh(config.mesh), "batch")
    batch = tokens // length // ways * ways
    require(
        batch > 0,
        "train_lengths",
        f"{length} with {tokens} tokens an update on {ways} devices",
        f"at most {tokens // ways}",
        "Choose shorter lengths, or a recipe with a larger batch.",
    )
    if config.evaluate.lengths:  # else multiples of the training length, whatever it is
        lengths = tuple(sorted({length, *(at for at in config.evaluate.lengths if at > length)}))
        config = replace(config, "evaluate", lengths=lengths)
    return replace(config, "train", train_length=length, batch_size=batch)


def _evaluate(folder: Path, evaluate: EvaluateConfig, out: Path, label: str) -> None:
    evaluate_run(folder, evaluate, out, label=label)


def _train_and_evaluate(folder: Path, config: Config, label: str) -> None:
    train(config, folder, label=f"train {label}")
    evaluate_run(folder, config.evaluate, label=label)


def train_and_evaluate(
    configs: Mapping[str, Config], out: Path, jobs: int, report: Callable[[list[Path]], object] | None = None
) -> list[Path]:
    """Trains and evaluates every config in a folder of `out` named by its label; returns the folders of results.

    report: called with the folders that are there so far, whenever two or more are and others are still to come.
    """
    for config in configs.values():
        check_mesh(config, make_mesh(config.mesh))  # of all, before days are spent on the first
    folders = {label: out / label / "evaluation" / config.evaluate.split for label, config in configs.items()}
    done: set[str] = set()

    def finished(call: Call) -> None:
        done.add(call[-1])
        if report and 1 < len(done) < len(folders):
            report([folder for label, folder in folders.items() if label in done])

    spread(_train_and_evaluate, [(out / label, config, label) for label, config in configs.items()], jobs, finished)
    return list(folders.values())


def evaluate_all(runs: Sequence[Path], evaluate: EvaluateConfig, out: Path, jobs: int) -> list[Path]:
    """Evaluates trained runs into folders of `out` named like theirs; returns those."""
    spread(_evaluate, [(run, evaluate, out / run.name, run.name) for run in runs], jobs)
    return [out / run.name for run in runs]


def by_length(first: str, rows: Mapping[str, Mapping[int, str | float]]) -> str:
    """Returns a Markdown table of name -> length -> cell, a dash where there is none; `first` heads the names."""
    lengths = sorted({length for row in rows.values() for length in row})
    cells = [
        [markdown_text(name), *(_cell(row[at]) if at in row else DASH for at in lengths)] for name, row in rows.items()
    ]
    return markdown([first, *(f"{at:,}" for at in lengths)], cells)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else number(value, 2, "")


def text_of(config: Config) -> str:
    """Returns one line on the text and the tokens of a config."""
    data = config.data
    source = data.tfds_name or data.train_path or data.source
    scored = f"the first {config.evaluate.max_tokens:,} tokens" if config.evaluate.max_tokens else "all"
    tokens = (
        f"by the tokenizer in {markdown_text(data.tokenizer_path)}" if data.tokenizer_path else f"as {data.tokenizer}"
    )
    return f"{markdown_text(source)} {tokens}; scored: {scored} of {config.evaluate.split}"


def read_kept(path: Path, nothing: dict[str, Any]) -> dict[str, Any]:
    """Returns what an earlier invocation kept in a JSON file, which has the keys of `nothing`; without a file, `nothing`."""
    if not path.exists():
        return nothing
    with explained(path.parent):
        content = path.read_bytes()
    try:
        kept = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: got what is not JSON ({error}), expected results. {REMOVE}") from error
    if not isinstance(kept, dict) or not nothing.keys() <= kept.keys():
        raise ResultsError(f"{path}: got other JSON, expected an object with {sorted(nothing)}. {REMOVE}")
    return kept


def _minutes(path: Path) -> list[float]:
    """Of earlier invocations."""
    lines = path.read_text(errors="replace").split() if path.exists() else []
    if not all(re.fullmatch(r"\d+(\.\d+)?(e-\d+)?", line) for line in lines):
        raise ResultsError(f"{path}: got {lines}, expected a number of minutes on each line. Remove it to count anew.")
    return [float(line) for line in lines]


def write_results(
    out: Path, title: str, sections: Mapping[str, str], configs: Mapping[str, Config], minutes: float, text: str = ""
) -> str:
    """Writes out/results.md, the sections under their headings and where the numbers come from, and returns its text.

    configs: of what was run, by name; the first is written to out/config.json. minutes: of this invocation; those of earlier
    ones that reached their end are added. text: what was read, where the configs do not say.
    """
    before = _minutes(out / "minutes")
    spent = sum(before) + minutes
    origin = provenance()
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    text = text or "; ".join(dict.fromkeys(map(text_of, configs.values())))
    facts = [
        markdown_code(recorded_command()),
        f"{origin['machine']}, {os.cpu_count()} CPU cores; {versions}; {origin['date'][:10]}; {spent:.1f} minutes.",
        f"Text: {text}. The first run's config is config.json; the others differ as their names say.",
    ]
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    page = f"# {title}\n\n{body}\n\n## Where the numbers come from\n\n" + "\n\n".join(facts) + "\n"
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "minutes", "".join(f"{each}\n" for each in [*before, minutes]))
        write_atomically(out / "config.json", to_json(next(iter(configs.values()))) + "\n")
        write_atomically(out / "results.md", page)
    return page
