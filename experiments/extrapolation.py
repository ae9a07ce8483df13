"""Does a model trained on short inputs read long ones? Every position method, at one or more training lengths, all else equal.

  python -m experiments.extrapolation --config configs/quickstart.py --out runs/quickstart
  python -m experiments.extrapolation --config configs/wikitext2_small.py --train-lengths 64 256 --more-seeds 1 2 --jobs 2 \\
      --out runs/wikitext2                                        # figures 1 and 4, tables 2-5 of the paper, in small
  python -m experiments.extrapolation --paper --out runs/wikitext103    # the paper's own model, 286,000 updates

Trains the config once for every method, length and seed, evaluates each on the same held-out tokens at every longer length,
non-overlapping and sliding (alibi_jax/evaluate/nats.py says how), and writes results.md (with the paper's figures beside ours),
report.html, extrapolation.png, sweep.csv, table.md and every token's nats. It can be stopped at any moment and run again:
what is finished is not repeated.
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from alibi_jax.config import Config, PositionName, replace
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import Record, line_name, non_overlapping
from alibi_jax.evaluate.report import write_report
from alibi_jax.evaluate.tables import DASH, markdown, markdown_table, summary_table
from alibi_jax.run.command import exit_with
from alibi_jax.run.display import markdown_text, number, perplexity_digits
from alibi_jax.run.invocation import recorded_command
from experiments import paper
from experiments.grid import at_length, by_length, recipe, train_and_evaluate, write_results

PAPER_LENGTHS = (512, 1024, 1536, 2048, 3072)
COMPARABLE = (
    "Not comparable with the paper: the perplexities themselves (other text or vocabulary, a model some hundred times smaller, "
    "thousands of times fewer tokens). Comparable: each method's perplexity over its own at the training length."
)
SAME_SETTING = "The setting is the paper's, but for bfloat16 and the MLP's initial values: perplexities compare too."


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """Train every position method short, test it long, write a report."""

    config: Annotated[Path, tyro.conf.arg(metavar="CONFIG")] = Path("configs/quickstart.py")  # a recipe or .json
    out: Path = Path("runs/quickstart")  # folder of the report; one folder a run inside
    positions: tuple[PositionName, ...] = ("alibi", "sinusoidal", "rotary", "t5", "none")  # methods compared
    train_lengths: tuple[int, ...] = ()  # lengths every method is trained at, tokens; empty: the config's
    seeds: tuple[int, ...] = (0,)  # every method is trained once for each
    more_seeds: tuple[int, ...] = ()  # further seeds of the first method at the first length: the headline row
    text: Path | None = None  # folder with wikitext-2/ or its zip, or books/; none: the config's paths, or a download
    jobs: int = 1  # runs at once, one core each; 1 takes all cores or devices for one run
    paper: bool = False  # in place of --config: configs/wikitext103.py at 512 to 3,072 tokens, evaluated up to 15,512

    def base(self) -> tuple[Config, tuple[int, ...]]:
        """Returns the config that all runs have in common, and the training lengths."""
        if not self.paper:
            config = recipe(self.config, self.text)
            return config, self.train_lengths or (config.train.train_length,)
        config = recipe(Path("configs/wikitext103.py"), self.text)
        lengths = tuple(sorted({*PAPER_LENGTHS, *paper.TRAINED_AT_512["alibi"]}))
        return replace(config, "evaluate", lengths=lengths), self.train_lengths or PAPER_LENGTHS

    def configs(self) -> dict[str, Config]:
        """Returns label -> config, the same but for position method, training length and seed."""
        base, lengths = self.base()
        grid = list(itertools.product(lengths, self.positions, self.seeds))
        grid += [(lengths[0], self.positions[0], seed) for seed in self.more_seeds]
        configs = {}
        for length, position, seed in grid:
            label = position + (f"-{length}" if len(lengths) > 1 else "")
            label += f"-s{seed}" if seed != self.seeds[0] else ""
            config = base if length == base.train.train_length else at_length(base, length)
            configs[label] = replace(replace(config, "model", position=position), "train", seed=seed)
        return configs

    def __call__(self) -> str:
        start = time.monotonic()
        configs = self.configs()

        def report(folders: Sequence[Path]) -> tuple[list[Record], str]:
            records = read_records(folders)
            page = write_report(records, self.out, "Train short, test long", recorded_command())
            return records, f"{page} ({(time.monotonic() - start) / 60:.1f} minutes)"

        def report_so_far(folders: Sequence[Path]) -> None:
            records, page = report(folders)
            runs = ", ".join(dict.fromkeys(record.run for record in records))
            print(f"report of {runs}: {page}", file=sys.stderr, flush=True)

        records, page = report(train_and_evaluate(configs, self.out, self.jobs, report_so_far))
        minutes = (time.monotonic() - start) / 60
        sections = {
            "Perplexity, non-overlapping": markdown_table(records),
            "Over the same run's at its training length": ratios(records),
            **seeds_section(records),
            "In the paper: WikiText-103, trained at 512": paper_table(),
            "In the paper: over the same run's at its training length": paper_ratios(),
            "In the paper: ALiBi by training length, beside sinusoidal trained at the column's": paper_lengths_table(),
            "What can be compared": SAME_SETTING if self.paper else COMPARABLE,
        }
        write_results(self.out, "Train short, test long", sections, configs, minutes)
        return f"\nPerplexity by input length, non-overlapping\n{summary_table(records)}\n\n{page}"


def paper_table() -> str:
    """Returns the paper's perplexities of models trained at 512 tokens, method by length."""
    return by_length("run", paper.TRAINED_AT_512) + "\n\nT5 bias at 12,512: 64.94, then out of memory."


def paper_ratios() -> str:
    """Returns the same over each method's own at 512."""
    return ratio_table(
        {name: {at / 512: row[at] / row[512] for at in row} for name, row in paper.TRAINED_AT_512.items()}
    )


def paper_lengths_table() -> str:
    """Returns the paper's perplexities of ALiBi by training length, beside sinusoidal trained at each length."""
    by_train_length = {f"ALiBi {length}": row for length, row in paper.ALIBI_BY_TRAIN_LENGTH.items()}
    return by_length("run", by_train_length | {"sinusoidal": paper.SINUSOIDAL_AT_ITS_LENGTH})


def ratios(records: Sequence[Record]) -> str:
    """Returns perplexity over the same run's at its training length, runs by multiples of that length."""
    scored = [record for record in non_overlapping(records) if record.status == "ok"]
    own = {record.run: record.statistics["perplexity"] for record in scored if record.length == record.train_length}
    rows: dict[str, dict[float, float]] = {run: {} for run in own}
    for record in scored:
        if math.isfinite(own.get(record.run, math.inf)):
            times = record.length / record.train_length
            rows[record.run][times] = record.statistics["perplexity"] / own[record.run]
    return ratio_table(rows)


def ratio_table(ratios: Mapping[str, Mapping[float, float]]) -> str:
    """Returns run -> multiple of its training length -> ratio in Markdown."""
    times = sorted({at for row in ratios.values() for at in row})
    rows = [
        [markdown_text(run), *(number(row[at], 3, "") if at in row else DASH for at in times)]
        for run, row in ratios.items()
    ]
    return markdown(["run", *(f"{at:.3g}x" for at in times)], rows)


def mean_and_error(values: Sequence[float]) -> str:
    """Returns the mean over seeds and its standard error, std / sqrt(n)."""
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite perplexity among them, or a sum past the largest
        mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if not math.isfinite(mean):
        return number(mean, 0)
    return " ± ".join(number(value, perplexity_digits(mean), "") for value in (mean, error))


def seeds_section(records: Sequence[Record]) -> Mapping[str, str]:
    """Returns, of runs that were trained with several seeds, the mean at each length with its standard error."""
    by_name: dict[str, dict[int, list[float]]] = {}
    for record in non_overlapping(records):
        if record.status == "ok":
            lengths = by_name.setdefault(line_name(record), {})
            lengths.setdefault(record.length, []).append(record.statistics["perplexity"])
    rows = {}
    for name, lengths in by_name.items():
        count = max(map(len, lengths.values()))
        if count > 1:
            several = {at: mean_and_error(values) for at, values in lengths.items() if len(values) > 1}
            rows[f"{name}, {count} seeds"] = several
    return {"Mean over seeds, with its standard error": by_length("run", rows)} if rows else {}


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Extrapolation))
