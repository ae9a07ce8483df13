"""How far does an ALiBi model read? One that was imported, or trained here, at inputs longer than those it was trained on.

  alibi-jax import bloom FOLDER --workdir runs/bloom-560m
  python -m experiments.imported runs/bloom-560m --text TEXT --out runs/bloom-560m-reads

Compared are the slopes as they are, and two ways to stretch them for an input of L tokens, with nothing trained again. PI
divides every slope by L / training length (2310.13017). NTK divides that of head h of H by its power (h - 1) / (H - 1), so that
the steepest head sees as sharply as before (as for rotary embeddings; ntk of model.slope_scaling). Up to the training length
all three are the same.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from alibi_jax.config import Config, EvaluateConfig, ModelConfig, load_config, replace
from alibi_jax.errors import ConfigError, require
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import Record, non_overlapping, sliding
from alibi_jax.evaluate.report import write_report
from alibi_jax.evaluate.run import evaluate_run, run_label
from alibi_jax.evaluate.tables import markdown_table
from alibi_jax.run.command import exit_with
from alibi_jax.run.display import markdown_text
from alibi_jax.run.invocation import recorded_command
from experiments.early_tokens import gain_table
from experiments.grid import write_results

TIMES = (1, 2, 4, 8)  # the lengths, in training lengths
READ = (
    "Far context: targets past the training length, better or worse than with only that much to read. Below zero the model "
    "does not read further than it was trained to. Early tokens: the rest, which any model gains by longer windows."
)


@dataclasses.dataclass(frozen=True)
class Imported:
    """Score a model past its training length, with its slopes as they are and stretched."""

    run: tyro.conf.Positional[Path]  # folder of an imported model, or of a trained run of ALiBi
    # file, folder or glob of UTF-8 text; a twentieth of it is scored; None: the text of the run's own config
    text: Path | None = None
    out: Path = Path("runs/imported")  # folder of the results, one folder a setting inside
    lengths: tuple[int, ...] = ()  # input lengths, tokens; empty: 1, 2, 4 and 8 times the training length
    max_tokens: int = 0  # score only this many tokens from the start; 0: all
    split: Literal["valid", "test"] = "valid"  # held-out split to score
    directory: Path | None = None  # folder of prepared corpora; None: as the run's own config says

    def config(self) -> Config:
        """Returns the run's config with the text, and with the evaluation of all settings."""
        config = load_config(self.run)
        require(
            config.model.position == "alibi",
            "run",
            f"{self.run}, a model of position {config.model.position}",
            "one of ALiBi: only slopes can be stretched so",
            "Choose another folder, or evaluate this one.",
        )
        lengths = self.lengths or tuple(times * config.train.train_length for times in TIMES)
        evaluate = EvaluateConfig(lengths=lengths, max_tokens=self.max_tokens, split=self.split)
        text = {"source": "files", "train_path": str(self.text)} if self.text else {}
        places = {"directory": str(self.directory)} if self.directory else {}
        return replace(dataclasses.replace(config, evaluate=evaluate), "data", **text, **places)

    def __call__(self) -> str:
        start = time.monotonic()
        config = self.config()
        settings, without = settings_of(config.model, config.train.train_length)
        folders = {name: self.out / name.replace(" ", "_") for name in settings}
        for name, slopes in settings.items():
            evaluate_run(self.run, config.evaluate, folders[name], name, data=config.data, slopes=slopes)
        records = read_records(list(folders.values()))
        title = f"How far does {run_label(self.run, None)} read?"
        page = write_report(records, self.out, title, recorded_command())
        minutes = (time.monotonic() - start) / 60
        text = write_results(self.out, markdown_text(title), sections_of(records, without), {"run": config}, minutes)
        return f"{text}\n{page}"


def settings_of(model: ModelConfig, train_length: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Returns name -> the fields of slopes that differ from the model's own, and name -> why a setting is left out."""
    stretched = {
        "PI": {"slope_length": train_length},
        "NTK": {"slope_length": train_length, "slope_scaling": "ntk"},
    }
    settings: dict[str, dict[str, Any]] = {"as is": {}}
    without = {}
    for name, slopes in stretched.items():
        try:
            changed = dataclasses.replace(model, **slopes)
        except ConfigError as error:
            without[name] = str(error)
            continue
        if changed == model:
            without[name] = "the model's own slopes are stretched so"
        else:
            settings[name] = slopes
    return settings, without


def sections_of(records: Sequence[Record], without: Mapping[str, str]) -> dict[str, str]:
    """Returns heading -> text of the page of results."""
    slid = sliding(records)[1]
    sections = {"Perplexity by length and setting, non-overlapping": markdown_table(non_overlapping(records))}
    if slid:
        sections["Perplexity by length and setting, sliding"] = markdown_table(slid)
    sections["The gain over the training length, split in two"] = f"{gain_table(records)}\n\n{READ}"
    if without:
        sections["Settings left out"] = "\n".join(f"- {name}: {markdown_text(why)}" for name, why in without.items())
    return sections


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Imported))
