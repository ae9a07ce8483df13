"""What does each position method cost, in speed and memory, to train and to evaluate? (Table 1 of the paper.)

  python -m experiments.cost --out runs/cost                    # a small model, minutes on two cores
  python -m experiments.cost --paper --out runs/cost_paper      # configs/wikitext103.py, 9,216 tokens a step, as the paper

One model for every method, the same weights' shapes, tokens and optimizer; the methods take turns in one run, and a time is the
median of the turns. A training step is forward, loss, backward, clip and update; evaluation is one batch of windows. Memory is
what the compiler counts for the step, parameters and moments included. Lengths already measured with the same options are not
measured again. Tokens are drawn by Zipf's law, so that the clusters of an adaptive softmax see about their usual fractions.
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

from alibi_jax.config import Config, PositionName, load_config, replace
from alibi_jax.errors import require
from alibi_jax.evaluate.nats import window_nats
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.evaluate.tables import markdown
from alibi_jax.model import TransformerLM
from alibi_jax.optimizer import make_optimizer
from alibi_jax.run.command import exit_with
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from alibi_jax.train import init_state, train_step
from experiments import paper
from experiments.grid import read_kept, write_results

PAUSE = 0.1  # seconds between turns, so that the threads of the one before are asleep
BASELINE = "sinusoidal"
COMPARABLE = (
    "Comparable with the paper: each method over sinusoidal at the same length. Not comparable: tokens a second and gigabytes "
    "(one V100 in fp16 against this machine; memory by the compiler's count against an allocator's). The paper's attention is "
    "dense for every method; here ALiBi may skip keys that its decay makes needless (exact to rounding), which no other method "
    "can, and no method ever holds all scores at once."
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Speed and memory of a training step and of an evaluation, method by method."""

    config: Path = Path("configs/books_small.py")  # a recipe; its model takes the sizes below
    out: Path = Path("runs/cost")  # folder of the results
    positions: tuple[PositionName, ...] = ("sinusoidal", "rotary", "t5", "alibi", "none")  # methods compared
    lengths: tuple[int, ...] = (512, 1024, 3072)  # input lengths, tokens
    tokens: int = 3072  # tokens of a step; the batch is this over the length
    width: int = 256  # channels; the MLP has four times as many
    num_layers: int = 4  # transformer layers
    num_heads: int = 8  # attention heads
    repeats: int = 5  # timed turns of each, after one that is not
    paper: bool = False  # in place of --config and the sizes: configs/wikitext103.py, 9,216 tokens a step

    def base(self) -> Config:
        """Returns the config that all methods are measured with."""
        if self.paper:
            return load_config("configs/wikitext103.py")
        model = {"width": self.width, "num_layers": self.num_layers, "num_heads": self.num_heads}
        config = load_config(self.config)
        vocab_size = max((256, *(4 * cutoff for cutoff in config.model.adaptive_cutoffs)))  # no text decides it
        vocab_size = config.model.vocab_size or vocab_size
        return replace(config, "model", vocab_size=vocab_size, mlp_width=4 * self.width, **model)

    def __call__(self) -> str:
        require(BASELINE in self.positions, "positions", self.positions, f"{BASELINE} among them", "Add it.")
        start = time.monotonic()
        configs = {}
        results = self.measured()
        for length in self.lengths:
            batch = max(1, (9216 if self.paper else self.tokens) // length)
            configs[str(length)] = replace(self.base(), "train", train_length=length, batch_size=batch)
            if length not in {result["length"] for result in results}:
                results += measure(configs[str(length)], length, self.positions, self.repeats)
                self.keep(results)
            print(rows_of(results, length), file=sys.stderr, flush=True)
        titles = {
            "Training, thousand tokens a second": "train_tokens_per_second",
            "Evaluation, thousand tokens a second": "evaluate_tokens_per_second",
            "Training, MiB": "train_mib",
            "Evaluation, MiB": "evaluate_mib",
        }
        sections = {f"{title} (over sinusoidal)": ours(results, field, self.lengths) for title, field in titles.items()}
        sections |= {
            "In the paper: training, thousand tokens a second (over sinusoidal)": beside(paper.SPEED),
            "In the paper: memory, GB (over sinusoidal)": beside(paper.MEMORY),
            "What can be compared": COMPARABLE,
        }
        minutes = (time.monotonic() - start) / 60
        text = "tokens drawn by Zipf's law"
        return write_results(self.out, "What each position method costs", sections, configs, minutes, text)

    def options(self) -> dict[str, Any]:
        """Returns what decides the result of a length."""
        fields = {
            name: getattr(self, name) for name in ("tokens", "width", "num_layers", "num_heads", "repeats", "paper")
        }
        return fields | {"config": str(self.config), "positions": list(self.positions)}

    def measured(self) -> list[dict[str, Any]]:
        """Returns the results that an earlier invocation with these options has kept."""
        path = self.out / "cost.json"
        record = read_kept(path, {"options": self.options(), "results": []})
        require(
            record["options"] == self.options(),
            "out",
            f"{path}, measured with {record['options']}",
            f"none, or one with {self.options()}",
            "Write into another --out folder.",
        )
        return record["results"]

    def keep(self, results: list[dict[str, Any]]) -> None:
        """Writes the results so far to cost.json."""
        self.out.mkdir(parents=True, exist_ok=True)
        record = {"command": recorded_command(), "options": self.options(), **provenance(), "results": results}
        write_atomically(self.out / "cost.json", json.dumps(record, indent=1) + "\n")


@dataclasses.dataclass
class Contender:
    """One method at one length: what it compiled, and how long each turn took."""

    train: Callable[[], None]
    evaluate: Callable[[], None]
    memory: dict[str, float]  # MiB
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {"train": [], "evaluate": []})


def make_contender(config: Config) -> Contender:
    """Returns the compiled programs of a config; `train` and `evaluate` run one turn and wait for it."""
    model = TransformerLM(config.model)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    chances = 1 / np.arange(1, config.model.vocab_size + 1)
    shape = config.train.batch_size, config.train.train_length + 1
    rows = np.random.default_rng(0).choice(config.model.vocab_size, p=chances / chances.sum(), size=shape)
    inputs, targets = (jax.device_put(tokens.astype(np.int32)) for tokens in (rows[:, :-1], rows[:, 1:]))
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
    memory = {name: mebibytes(program.memory_analysis()) for name, program in programs.items()}
    return Contender(train, evaluate, memory)


def mebibytes(counted: Any) -> float:
    """Returns the MiB of inputs, of outputs that do not take an input's place, and of what is held in between."""
    outputs = counted.output_size_in_bytes - counted.alias_size_in_bytes
    return (counted.argument_size_in_bytes + outputs + counted.temp_size_in_bytes) / 2**20


def measure(base: Config, length: int, positions: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """Returns the results of all methods at one length, which take turns."""
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
    """Returns the results of one length as lines for the terminal."""
    return "\n".join(
        f"{r['length']:>6} {r['position']:<11}{r['train_tokens_per_second']:>9,.0f} tokens/s{r['train_mib']:>9,.0f} MiB"
        for r in results
        if r["length"] == length
    )


def ours(results: list[dict[str, Any]], field: str, lengths: tuple[int, ...]) -> str:
    """Returns the table of one measured field."""
    thousand = 1000 if field.endswith("second") else 1
    table: dict[str, dict[int, float]] = {}
    for result in (result for result in results if result["length"] in lengths):
        table.setdefault(result["position"], {})[result["length"]] = result[field] / thousand
    return beside(table)


def beside(table: dict[str, dict[int, float]]) -> str:
    """Returns method by length in Markdown, each figure with its ratio to sinusoidal at the same length."""
    lengths = sorted(table[BASELINE])

    def cell(row: dict[int, float], at: int) -> str:
        value = f"{row[at]:,.1f}" if row[at] < 100 else f"{row[at]:,.0f}"
        return f"{value} ({row[at] / table[BASELINE][at]:.2f})"

    return markdown(
        ["method", *(f"{at:,}" for at in lengths)],
        [[name, *(cell(row, at) for at in lengths)] for name, row in table.items()],
    )


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Cost))
