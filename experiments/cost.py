"""What does each position method cost, in speed and memory, to train and to evaluate? (Table 1 of the paper.)

  python experiments/cost.py --out runs/cost                    # a small model, minutes on two cores
  python experiments/cost.py --paper --out runs/cost_paper      # configs/wikitext103.py, 9,216 tokens a step, as the paper

One model for every method, the same weights' shapes, tokens and optimizer; the methods take turns in one run, and a time is the
median of the turns. A training step is forward, loss, backward, clip and update; evaluation is one batch of windows. Memory is
what the compiler sets aside for the step beside parameters and moments (`temporary`), which needs no watching.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import paper
from alibi_jax.atomic import write_atomically
from alibi_jax.cli import run_command
from alibi_jax.config import Config, PositionName, load_config, replace
from alibi_jax.evaluate.nats import window_nats
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.model import TransformerLM
from alibi_jax.optimizer import make_optimizer
from alibi_jax.train import init_state, train_step
from grid import markdown, write_results

PAUSE = 0.1  # seconds between turns, so that the threads of the one before are asleep
BASELINE = "sinusoidal"
COMPARABLE = (
    "Comparable with the paper: each method over sinusoidal at the same length. Not comparable: words a second and gigabytes "
    "(one V100 in fp16 against this machine). The paper's attention is dense for every method; here ALiBi may skip keys that "
    "its decay makes needless (exact to rounding), which no other method can, and no method ever holds all scores at once."
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Speed and memory of a training step and of an evaluation, method by method."""

    config: Path = Path("configs/books_small.py")  # a recipe; its model is widened by the options below
    out: Path = Path("runs/cost")  # folder of the results
    positions: tuple[PositionName, ...] = ("sinusoidal", "rotary", "t5", "alibi", "none")  # methods compared
    lengths: tuple[int, ...] = (512, 1024, 3072)  # input lengths, tokens
    tokens: int = 3072  # tokens of a step; the batch is this over the length
    width: int = 256  # channels; the MLP has four times as many
    num_layers: int = 4  # transformer layers
    num_heads: int = 8  # attention heads
    repeats: int = 5  # timed turns of each, after one that is not
    paper: bool = False  # configs/wikitext103.py as it is, 9,216 tokens a step

    def base(self) -> Config:
        if self.paper:
            return load_config("configs/wikitext103.py")
        model = {"width": self.width, "num_layers": self.num_layers, "num_heads": self.num_heads}
        return replace(load_config(self.config), "model", vocab_size=256, mlp_width=4 * self.width, **model)

    def __call__(self) -> str:
        start, base = time.monotonic(), self.base()
        tokens = 9216 if self.paper else self.tokens
        results = []
        for length in self.lengths:
            train = replace(base, "train", train_length=length, batch_size=max(1, tokens // length))
            results += measure(train, length, self.positions, self.repeats)
            print(rows_of(results, length), file=sys.stderr, flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        record = {"command": sys.argv, **provenance(), "results": results}
        write_atomically(self.out / "cost.json", json.dumps(record, indent=1) + "\n")
        sections = {
            "Training, thousand tokens a second (over sinusoidal)": ours(
                results, "train_tokens_per_second", self.lengths
            ),
            "Evaluation, thousand tokens a second (over sinusoidal)": ours(
                results, "evaluate_tokens_per_second", self.lengths
            ),
            "Training, temporary memory, MiB (over sinusoidal)": ours(results, "train_mib", self.lengths),
            "Evaluation, temporary memory, MiB (over sinusoidal)": ours(results, "evaluate_mib", self.lengths),
            "In the paper: training, thousand words a second (over sinusoidal)": beside(paper.SPEED),
            "In the paper: memory, GB (over sinusoidal)": beside(paper.MEMORY),
            "What can be compared": COMPARABLE,
        }
        return write_results(
            self.out, "What each position method costs", sections, base, (time.monotonic() - start) / 60
        )


@dataclasses.dataclass
class Contender:
    """One method at one length: what it compiled, and how long each turn took."""

    train: Callable[[], None]
    evaluate: Callable[[], None]
    memory: dict[str, float]  # MiB
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {"train": [], "evaluate": []})


def make_contender(config: Config) -> Contender:
    """Compiles both programs of a config; `train` and `evaluate` run one turn and wait for it."""
    model, optimizer = TransformerLM(config.model), make_optimizer(config.optimizer, config.train.steps)
    rows = np.random.default_rng(0).integers(256, size=(config.train.batch_size, config.train.train_length + 1))
    inputs, targets = (jax.device_put(part.astype(np.int32)) for part in (rows[:, :-1], rows[:, 1:]))
    state = jax.jit(functools.partial(init_state, config, model, optimizer))()
    step = functools.partial(train_step, config, model, optimizer)
    stepping = jax.jit(step, donate_argnums=0).lower(state, inputs, targets).compile()
    scoring = window_nats.lower(model, state.params, inputs, targets).compile()
    params = jax.tree.map(lambda x: x.copy(), state.params)  # the step consumes the state's

    def train() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(stepping(state, inputs, targets))

    def evaluate() -> None:
        jax.block_until_ready(scoring(params, inputs, targets))

    programs = {"train": stepping, "evaluate": scoring}
    memory = {name: program.memory_analysis().temp_size_in_bytes / 2**20 for name, program in programs.items()}
    return Contender(train, evaluate, memory)


def measure(base: Config, length: int, positions: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """All methods at one length, in turns."""
    contenders = {position: make_contender(replace(base, "model", position=position)) for position in positions}
    for turn in range(repeats + 1):
        for contender in contenders.values():
            for name, act in (("train", contender.train), ("evaluate", contender.evaluate)):
                time.sleep(PAUSE)
                start = time.perf_counter()
                act()
                if turn > 0:
                    contender.seconds[name].append(time.perf_counter() - start)
    tokens = length * base.train.batch_size
    return [
        {"position": position, "length": length, "batch": base.train.batch_size}
        | {f"{name}_tokens_per_second": tokens / statistics.median(taken) for name, taken in contender.seconds.items()}
        | {f"{name}_seconds": taken for name, taken in contender.seconds.items()}
        | {f"{name}_mib": mib for name, mib in contender.memory.items()}
        for position, contender in contenders.items()
    ]


def rows_of(results: list[dict[str, Any]], length: int) -> str:
    return "\n".join(
        f"{r['length']:>6} {r['position']:<11}{r['train_tokens_per_second']:>9,.0f} tokens/s{r['train_mib']:>9,.0f} MiB"
        for r in results
        if r["length"] == length
    )


def ours(results: list[dict[str, Any]], field: str, lengths: tuple[int, ...]) -> str:
    thousand = 1000 if field.endswith("second") else 1
    table: dict[str, dict[int, float]] = {}
    for result in results:
        table.setdefault(result["position"], {})[result["length"]] = result[field] / thousand
    return beside(table)


def beside(table: dict[str, dict[int, float]]) -> str:
    """Method by length, each figure with its ratio to sinusoidal at the same length."""
    lengths = sorted(table[BASELINE])

    def cell(row: dict[int, float], at: int) -> str:
        value = f"{row[at]:,.1f}" if row[at] < 100 else f"{row[at]:,.0f}"
        return f"{value} ({row[at] / table[BASELINE][at]:.2f})"

    return markdown(
        ["method", *(f"{at:,}" for at in lengths)],
        [[name, *(cell(row, at) for at in lengths)] for name, row in table.items()],
    )


if __name__ == "__main__":
    sys.exit(run_command(lambda: tyro.cli(Cost)))
