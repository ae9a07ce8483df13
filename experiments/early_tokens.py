"""Does a longer input help because the model reads further, or because fewer tokens stand near the start of a window?

  python -m experiments.early_tokens --runs runs/wikitext2/{alibi,sinusoidal,rotary,t5,none}-64 --out runs/early_tokens --jobs 2
  python -m experiments.early_tokens --runs runs/wikitext103/{alibi,sinusoidal,t5}-512 --paper --out runs/early_tokens_paper

Scores the same tokens with non-overlapping windows and with the paper's sliding window of stride 1, in which every token sees
as much as the length allows (tables 13-15), and splits the gain of each longer input in two (evaluate/statistics.py). The
runs are those of experiments/extrapolation.py, or any others. With stride 1 every token costs a whole window: the default
is 2,048 tokens; --paper takes the paper's lengths and the whole split.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from alibi_jax.config import load_config
from alibi_jax.errors import require
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import Record
from alibi_jax.evaluate.report import write_report
from alibi_jax.evaluate.tables import markdown, perplexity_text
from alibi_jax.run.command import exit_with
from alibi_jax.run.display import markdown_text, number
from alibi_jax.run.invocation import recorded_command
from experiments import paper
from experiments.grid import by_length, evaluate_all, write_results

READ = (
    "Nats a token that non-overlapping windows gain over the same run at its training length; positive is better. Far "
    "context: of targets past the training length, against the same targets in sliding windows of that length and stride 1, "
    "paired, with its standard error; below zero, reading further hurts. Early tokens: the rest, because fewer targets stand "
    "near the start of a window (the early-token curse), from which sliding windows of stride 1 do not suffer at all."
)
COMPARABLE = (
    "Comparable with the paper: whether sliding perplexity rises or falls with the length, and how the gain splits in "
    "two. Perplexities compare only where model, text and vocabulary are the paper's."
)


@dataclasses.dataclass(frozen=True)
class EarlyTokens:
    """Both protocols on the same tokens of trained runs, and the gain split in two."""

    runs: tuple[Path, ...]  # folders of trained runs
    out: Path = Path("runs/early_tokens")  # folder of the results, one folder a run inside
    times: tuple[int, ...] = (1, 2, 4, 16)  # lengths, in training lengths
    max_tokens: int = 2048  # targets scored, from the start of the split; 0: all
    jobs: int = 1  # evaluations at once, one core each
    paper: bool = False  # the paper's lengths, 512 to 3,072 tokens, on the whole validation split

    def __call__(self) -> str:
        start = time.monotonic()
        configs = {run.name: load_config(run) for run in self.runs}
        trained = sorted({config.train.train_length for config in configs.values()})
        require(
            len(trained) == 1, "runs", f"runs trained at {trained}", "one training length", "Take each length apart."
        )
        config = configs[self.runs[0].name]
        length = trained[0]
        lengths = (512, 1024, 1536, 2048, 3072) if self.paper else tuple(length * times for times in self.times)
        evaluate = dataclasses.replace(
            config.evaluate,
            lengths=lengths,
            strides=("L", "1"),
            far_stride="1",
            max_tokens=0 if self.paper else self.max_tokens,
        )
        records = read_records(evaluate_all(self.runs, evaluate, self.out, self.jobs))
        page = write_report(records, self.out, "Early tokens and far context", recorded_command())
        sections = {
            "Perplexity, sliding window of stride 1": protocol_table(records, sliding=True),
            "Perplexity, non-overlapping windows": protocol_table(records, sliding=False),
            "The gain over the training length, split in two": f"{gain_table(records)}\n\n{READ}",
            "In the paper: WikiText-103, stride 1 beside non-overlapping": paper_table(),
            "What can be compared": COMPARABLE,
        }
        minutes = (time.monotonic() - start) / 60
        used = {name: dataclasses.replace(config, evaluate=evaluate) for name, config in configs.items()}
        text = write_results(self.out, "The early-token curse, and use of far context", sections, used, minutes)
        return f"{text}\n{page}"


def protocol_table(records: Sequence[Record], sliding: bool) -> str:
    """Returns the perplexity of every run at every length by one of the two protocols."""
    chosen = [record for record in records if record.stride == (1 if sliding else record.length)]
    rows: dict[str, dict[int, str]] = {}
    for record in chosen:
        rows.setdefault(record.run, {})[record.length] = perplexity_text(record)
    return by_length("run", rows)


def gain_table(records: Sequence[Record]) -> str:
    """Returns the gain of every longer length over the training length, split in two."""
    rows = []
    for record in records:
        gain = record.statistics.get("gain")
        if gain:
            total, far, early = (number(gain[name], 4, "", "+") for name in ("total", "far_context", "early_tokens"))
            far += f" ± {number(gain['far_context_error'], 4, '')}"
            rows.append([markdown_text(record.run), f"{record.length:,}", total, far, early])
    return markdown(["run", "length", "total gain", "far context", "early tokens"], rows)


def paper_table() -> str:
    """Returns the paper's perplexities by both protocols."""
    return by_length("model", paper.PROTOCOLS) + "\n\nSinusoidal past 512: 204 to 360."


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(EarlyTokens))
