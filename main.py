"""alibi_jax: train short, test long.

  python main.py prepare CONFIG [options]       text -> a corpus of tokens on disk
  python main.py train CONFIG [options]         train a model; the same command again goes on from its last checkpoint
  python main.py evaluate WORKDIR [options]     loss of every held-out token at many input lengths
  python main.py report FOLDER ... [options]    figure, tables and a page from one or more evaluations

CONFIG is a recipe (configs/*.py), a config.json, or the folder of a run; WORKDIR the folder of a run. Any field of the
config is an option, such as --model.position rotary. `python main.py COMMAND --help` lists them with their meaning.
"""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from alibi_jax.cli import REFUSED, run_command
from alibi_jax.config import Config, ConfigError, EvaluateConfig, MeshConfig, load_config
from alibi_jax.data.corpus import prepare
from alibi_jax.evaluate.report import read_records, write_report
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.evaluate.tables import summary_table
from alibi_jax.train import train


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Read the text a config names, learn its tokenizer, and write the corpus that training and evaluation read."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    force: bool = False  # prepare again where there is a corpus already

    def __call__(self) -> str:
        corpus = prepare(self.config.data, force=self.force)
        splits = ", ".join(f"{name} {facts['tokens']:,} tokens" for name, facts in corpus.facts["splits"].items())
        return f"{corpus.folder}: {splits}; vocabulary {corpus.tokenizer.vocab_size:,}; {corpus.fingerprint[:12]}"


@dataclasses.dataclass(frozen=True)
class Train:
    """Train in a folder, or go on from the checkpoint there."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path = Path("runs/train")  # folder of the run: config, checkpoints, metrics

    def __call__(self) -> str:
        train(self.config, self.workdir)
        return f"trained: {self.workdir}. Next: python main.py evaluate {self.workdir}"


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score held-out text at many input lengths, non-overlapping and sliding."""

    workdir: tyro.conf.Positional[Path]  # folder of a trained run
    evaluate: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    mesh: MeshConfig  # devices to evaluate on, whatever the run was trained on
    out: Path | None = None  # folder of results; WORKDIR/evaluation/SPLIT if not given
    label: str | None = None  # what the run is called in tables; its folder's name if not given

    def __call__(self) -> str:
        folder = evaluate_run(self.workdir, self.evaluate, self.out, self.label, self.mesh)
        return f"{summary_table(read_records([folder]))}\n\n{folder}. Next: python main.py report {folder}"


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html, extrapolation.png and sweep.csv from folders of results."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # folders that `evaluate` wrote
    out: Path = Path("report")  # folder of the report
    title: str = "Length extrapolation"  # of the page

    def __call__(self) -> str:
        records = read_records(self.folders)
        page = write_report(records, self.out, self.title, shlex.join(["python", "main.py", *sys.argv[1:]]))
        return f"{summary_table(records)}\n\n{page}"


def parse(arguments: list[str]) -> Prepare | Train | Evaluate | Report:
    """The command named first, its options over the config named second."""
    kinds = {"prepare": Prepare, "train": Train, "evaluate": Evaluate, "report": Report}
    if not arguments or arguments[0] not in kinds:
        print(__doc__)
        raise SystemExit(0 if arguments and arguments[0] in ("-h", "--help") else REFUSED)
    name, *rest = arguments
    kind, path = kinds[name], rest[0] if rest and not rest[0].startswith("-") else None
    if kind is Report:
        return tyro.cli(Report, args=rest, prog="main.py report")
    config = load_config(path) if path else Config()
    if kind is Evaluate:
        default = Evaluate(tyro.MISSING, config.evaluate, MeshConfig())
        return tyro.cli(Evaluate, default=default, args=rest, prog="main.py evaluate")
    if not path and not {"-h", "--help"} & set(rest):
        raise ConfigError(
            f"{name}: got no config, expected a recipe, a .json or a run's folder. Try configs/quickstart.py."
        )
    return tyro.cli(kind, default=kind(config), args=rest[1:] if path else rest, prog=f"main.py {name} CONFIG")


def main(arguments: list[str]) -> int:
    """Runs one command; returns its exit status."""
    return run_command(lambda: parse(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
