"""Do the results on one text hold on another, with nothing tuned in between?

  python -m experiments.domains --text FOLDER --out runs/domains --jobs 2           # WikiText-2 and books, both as bytes
  python -m experiments.domains --paper --text FOLDER --out runs/domains_paper   # configs/wikitext103.py and configs/books.py

The paper takes its slopes from WikiText-103 over to the Toronto BookCorpus as they were. Here the same recipe, to the last
number, is trained on both texts, and the methods are compared on each by bits a byte and by how the loss changes with length.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from alibi_jax.config import Config, PositionName, replace
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import Record, non_overlapping
from alibi_jax.evaluate.report import write_report
from alibi_jax.run.command import exit_with
from alibi_jax.run.display import number
from alibi_jax.run.invocation import recorded_command
from experiments import paper
from experiments.extrapolation import ratios
from experiments.grid import by_length, recipe, train_and_evaluate, write_results

COMPARABLE = (
    "Comparable with the paper: on the books, as on WikiText, ALiBi trained short is to hold or better its loss at longer "
    "inputs. Not comparable: the perplexities (other tokens, other books, other sizes). Bits a byte compare between rows of "
    "one text; between texts they also say which is easier."
)


@dataclasses.dataclass(frozen=True)
class Domains:
    """One recipe on two texts."""

    out: Path = Path("runs/domains")  # folder of the results, one folder a run inside
    positions: tuple[PositionName, ...] = ("alibi", "sinusoidal", "rotary")  # methods compared
    text: Path | None = None  # folder with wikitext-2/ or its zip, and books/
    jobs: int = 1  # runs at once, one core each
    paper: bool = False  # configs/wikitext103.py and configs/books.py: only tokens and softmax differ between the two

    def bases(self) -> dict[str, Config]:
        """Returns text -> config."""
        if self.paper:
            names = {"wikitext": "wikitext103", "books": "books"}
            return {name: recipe(Path(f"configs/{file}.py"), self.text) for name, file in names.items()}
        books = recipe(Path("configs/books_small.py"), self.text)
        wikitext = recipe(Path("configs/wikitext2_small.py"), self.text)
        data = dataclasses.replace(wikitext.data, tokenizer="bytes")
        return {"wikitext": dataclasses.replace(books, data=data), "books": books}

    def __call__(self) -> str:
        start = time.monotonic()
        configs = {}
        for name, base in self.bases().items():
            configs |= {f"{name}-{position}": replace(base, "model", position=position) for position in self.positions}
        records = read_records(train_and_evaluate(configs, self.out, self.jobs))
        write_report(records, self.out, "One recipe, two texts", recorded_command())
        sections = {
            "Bits a byte, non-overlapping": bits_table(records),
            "Perplexity over the same run's at its training length": ratios(records),
            "In the paper: Toronto BookCorpus, validation perplexity": by_length("model", paper.BOOKS),
            "What can be compared": COMPARABLE,
        }
        minutes = (time.monotonic() - start) / 60
        return write_results(self.out, "One recipe, two texts, nothing tuned in between", sections, configs, minutes)


def bits_table(records: Sequence[Record]) -> str:
    """Returns bits per byte of non-overlapping windows, runs by lengths."""
    rows: dict[str, dict[int, str]] = {}
    for record in non_overlapping(records):
        text = number(record.statistics["bits_per_byte"], 4, "") if record.status == "ok" else record.status
        rows.setdefault(record.run, {})[record.length] = text
    return by_length("run", rows)


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Domains))
