"""Are the paper's slopes good ones? ALiBi with other slopes, trained and tested alike.

  python -m experiments.slopes --text FOLDER --out runs/slopes --jobs 2                      # books as bytes, minutes
  python -m experiments.slopes --paper --out runs/slopes_paper                               # the paper's WikiText-103 model

Compared: the paper's geometric slopes; one slope 2^-k for all heads; slopes trained from the paper's on; MPT's StoryWriter's
wider range, bias_max 16; and the paper's model evaluated with its slopes divided by s = length / training length (2310.13017),
without training anything again.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from alibi_jax.config import Config, MeshConfig, load_config, replace
from alibi_jax.data.corpus import open_corpus
from alibi_jax.errors import require
from alibi_jax.evaluate.nats import token_nats, windows_per_batch
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import Record, non_overlapping
from alibi_jax.evaluate.report import write_report
from alibi_jax.evaluate.run import load_params
from alibi_jax.evaluate.statistics import perplexity
from alibi_jax.evaluate.tables import markdown, markdown_table
from alibi_jax.model import TransformerLM
from alibi_jax.positions import alibi_slopes
from alibi_jax.run.command import exit_with
from alibi_jax.run.display import perplexity_number
from alibi_jax.run.invocation import recorded_command
from alibi_jax.run.workdir import trained_on
from alibi_jax.sharding import make_mesh
from experiments.extrapolation import ratios
from experiments.grid import recipe, train_and_evaluate, write_results

COMPARABLE = (
    "The paper gives no table of these: it keeps its slopes fixed, because learned ones extrapolated worse and cost 3 % of the "
    "speed (section 3). Comparable: that order. One seed each: small differences between rows are not to be read, least of all "
    "after minutes of training."
)


@dataclasses.dataclass(frozen=True)
class Slopes:
    """Train ALiBi with several kinds of slopes and evaluate each past the training length."""

    config: Path = Path("configs/books_small.py")  # a recipe whose position is alibi
    out: Path = Path("runs/slopes")  # folder of the results, one folder a run inside
    equal: tuple[float, ...] = (2, 4, 8)  # k of the models in which all heads have slope 2^-k
    text: Path | None = None  # folder with wikitext-2/ or its zip, or books/
    jobs: int = 1  # runs at once, one core each
    paper: bool = False  # in place of --config: configs/wikitext103.py, trained at 512

    def configs(self) -> dict[str, Config]:
        """Returns label -> config, one for each kind of slopes."""
        base = recipe(Path("configs/wikitext103.py") if self.paper else self.config, self.text)
        require(
            base.model.position == "alibi",
            "config",
            f"a recipe of position {base.model.position}",
            "one of ALiBi: slopes are its alone",
            "Choose another --config.",
        )
        changes = {"geometric (paper)": {}, "learned": {"slopes": "learned"}, "bias_max 16": {"bias_max": 16.0}}
        changes |= {f"all 2^-{k:g}": {"slopes": "equal", "bias_max": float(k)} for k in self.equal}
        return {name.replace(" ", "_"): replace(base, "model", **change) for name, change in changes.items()}

    def __call__(self) -> str:
        start = time.monotonic()
        configs = self.configs()
        folders = train_and_evaluate(configs, self.out, self.jobs)
        records = read_records(folders)
        write_report(records, self.out, "ALiBi with other slopes", recorded_command())
        first = self.out / next(iter(configs))
        sections = {
            "Perplexity, non-overlapping": markdown_table(records),
            "Over the same run's at its training length": ratios(records),
            "The paper's slopes divided by s at evaluation": divided_table(first, records),
            "Slopes as learned": learned_table(self.out / "learned"),
            "What can be compared": COMPARABLE,
        }
        minutes = (time.monotonic() - start) / 60
        return write_results(self.out, "ALiBi with other slopes", sections, configs, minutes)


def divided_table(run: Path, records: list[Record]) -> str:
    """Returns the perplexity at each length with the slopes as trained, and divided by length / training length."""
    config = load_config(run)
    trained = config.train.train_length
    corpus = open_corpus(config.data, trained_on(run))
    stream = np.asarray(corpus.tokens(config.evaluate.split)[: config.evaluate.max_tokens or None])
    plain = {
        record.length: record.statistics["perplexity"]
        for record in non_overlapping(records)
        if record.run == run.name and record.status == "ok"
    }
    rows = [["as trained"], ["divided by s"]]
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        _, params = load_params(run, config, config.evaluate.checkpoint, corpus.fingerprint)
        for length in plain:
            model = TransformerLM(dataclasses.replace(config.model, slope_divisor=length / trained))
            batch = windows_per_batch(config.evaluate.batch_tokens, length)
            nats = token_nats(
                model, params, stream, length=length, first_input=corpus.tokenizer.first_input, batch_size=batch
            )
            for row, value in zip(rows, (plain[length], perplexity(nats)), strict=True):
                row.append(perplexity_number(value, ""))
    return markdown(["slopes", *(f"{length:,} (s = {length / trained:g})" for length in plain)], rows)


def learned_table(run: Path) -> str:
    """Returns the slopes that training ended with, beside those it began with."""
    config = load_config(run)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        _, params = load_params(run, config, config.evaluate.checkpoint)
    learned = np.exp(np.asarray(params["position"]["log_slopes"]))
    heads = range(1, config.model.num_heads + 1)
    rows = [["before", *(f"{slope:.4f}" for slope in alibi_slopes(len(learned), config.model.bias_max))]]
    rows += [["after", *(f"{slope:.4f}" for slope in learned)]]
    return markdown(["slopes", *(f"head {head}" for head in heads)], rows)


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Slopes))
