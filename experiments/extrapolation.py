"""Does a model trained on short inputs read long ones? One small model for each position method, everything else equal.

  python experiments/extrapolation.py --config configs/quickstart.py --out runs/quickstart

Trains the config once for every method, evaluates each on the same held-out tokens at 1, 2, 4, 8 and 16 times the training
length, non-overlapping and sliding (alibi_jax/evaluate/nats.py says how), and writes report.html, extrapolation.png,
sweep.csv, table.md and every token's nats. It can be stopped at any moment and run again: finished parts are not repeated.
"""

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from alibi_jax.cli import run_command
from alibi_jax.config import Config, PositionName, load_config, replace
from alibi_jax.evaluate.report import read_records, write_report
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.evaluate.tables import summary_table
from alibi_jax.train import train


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """Train every position method short, test it long, write a report."""

    config: Annotated[Path, tyro.conf.arg(metavar="CONFIG")] = Path("configs/quickstart.py")  # a recipe or .json
    out: Path = Path("runs/quickstart")  # folder of the report; one folder a method inside
    positions: tuple[PositionName, ...] = ("alibi", "sinusoidal", "rotary", "t5", "none")  # methods compared
    seeds: tuple[int, ...] = (0,)  # each method is trained once for each

    def configs(self) -> dict[str, Config]:
        """label -> config, the same but for the position method and the seed."""
        base = load_config(self.config)
        made = {}
        for position in self.positions:
            for seed in self.seeds:
                label = position if len(self.seeds) == 1 else f"{position}-s{seed}"
                made[label] = replace(replace(base, "model", position=position), "train", seed=seed)
        return made

    def __call__(self) -> str:
        start, folders = time.monotonic(), []
        for number, (label, config) in enumerate(self.configs().items(), start=1):
            named = f"{number}/{len(self.positions) * len(self.seeds)} {label}"
            train(config, self.out / label, label=f"train {named}")
            folders.append(evaluate_run(self.out / label, config.evaluate, label=label))
        records = read_records(folders)
        command = shlex.join(["python", *sys.argv])
        page = write_report(records, self.out, "Train short, test long", command)
        minutes = (time.monotonic() - start) / 60
        return (
            f"\nPerplexity by input length, non-overlapping\n{summary_table(records)}\n\n{page} ({minutes:.1f} minutes)"
        )


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(Extrapolation)))
