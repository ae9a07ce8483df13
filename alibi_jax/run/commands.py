"""The commands, one class each: its fields are the options, calling it runs it and returns the text to print."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from alibi_jax.config import Config, EvaluateConfig, MeshConfig
from alibi_jax.config.checks import check_values
from alibi_jax.data.corpus import prepare, summary, verify
from alibi_jax.errors import ConfigError, Failed, require
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.report import write_report
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.evaluate.tables import summary_table
from alibi_jax.plan.run import plan_run
from alibi_jax.run.display import decoded
from alibi_jax.run.hosts import Hosts, connect, is_first
from alibi_jax.run.invocation import command_line, own_command, recorded_command
from alibi_jax.run.supervise import supervise
from alibi_jax.storage import locate
from alibi_jax.train import train


def _check_named(command: object, *options: str) -> None:
    """Raises ConfigError for a folder without a name, which would be the current folder."""
    for option in options:
        value = getattr(command, option)
        if isinstance(value, str):
            require(value.strip() != "", option, repr(value), "the name of a folder", "Name one; . is the current one.")


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Read the text a config names, learn its tokenizer, and write the corpus that training and evaluation read."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    force: bool = False  # prepare again where there is a corpus already
    verify: bool = False  # prepare nothing: compare every byte of the corpora there are with their checksums

    def __call__(self) -> str:
        if self.force and self.verify:
            raise ConfigError("prepare: got --force and --verify, expected one of them. Leave one out.")
        if self.verify:
            return "\n".join(f"whole: {summary(corpus)}" for corpus in verify(self.config.data))
        return summary(prepare(self.config.data, force=self.force))


@dataclasses.dataclass(frozen=True)
class Train:
    """Train in a folder, or go on from the checkpoint there."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: str = "runs/train"  # folder of the run: config, checkpoints, metrics
    profile: str = ""  # steps to trace for TensorBoard's Profile page, counted from 1, such as 10-12
    hosts: Hosts = dataclasses.field(default_factory=Hosts)  # several hosts, each with this command

    def __post_init__(self) -> None:
        _check_named(self, "workdir")

    def __call__(self) -> str:
        connect(self.hosts)
        train(self.config, self.workdir, profile=self.profile)
        return f"trained: {self.workdir}. Next: {command_line('evaluate', self.workdir)}"


@dataclasses.dataclass(frozen=True)
class Supervise:
    """Run `train CONFIG ...`, given after --, and start it again whenever it dies, until it is done."""

    command: tyro.conf.Suppress[tuple[str, ...]]
    workdir: tyro.conf.Suppress[str]
    last_step: tyro.conf.Suppress[int]
    patience: int = 5  # restarts in a row without a new checkpoint, after which it gives up (exit status 4)
    stop_seconds: float = 300.0  # from a signal to stop until it is killed; it saves in them
    stall_seconds: float = (
        0.0  # without a step, after which it is killed and started again (0: never); let it compile and save
    )

    def __post_init__(self) -> None:
        check_values(self, "supervise")

    def __call__(self) -> str:
        command = own_command(list(self.command))
        times = self.stop_seconds, self.stall_seconds
        raise SystemExit(supervise(command, locate(self.workdir), self.patience, self.last_step, *times))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile a recipe's train step for devices that are not here, and say what it will cost: memory, time at best, what is
    sent. Exit status 1: it does not fit."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: str = tyro.MISSING  # v5e:16x16, v5p:4x4x4 (which is v5p-128), v6e:..., tpu7x:..., v4:..., cpu:8
    slices: int = 1  # so many of them, joined by the data-centre network
    lengths: tuple[int, ...] = ()  # evaluation lengths to plan too, tokens
    full: bool = False  # all of XLA's optimization, as a run has; otherwise its first level, some 4 times as fast
    search: bool = False  # try meshes, remat and gradient accumulation, and rank them
    batches: tuple[int, ...] = ()  # searched batch sizes, sequences; empty: the config's
    tries: int = 8  # candidates a search compiles
    json: Path | None = None  # file for all of it

    def __post_init__(self) -> None:
        check_values(self, "plan")

    def __call__(self) -> str:
        text, fits = plan_run(
            self.config,
            self.topology,
            slices=self.slices,
            lengths=self.lengths,
            full=self.full,
            searches=self.search,
            batches=self.batches,
            tries=self.tries,
            json=self.json,
        )
        if not fits:
            print(text)
            raise SystemExit(Failed.status)
        return text


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score held-out text at many input lengths, non-overlapping and sliding."""

    workdir: tyro.conf.Positional[str]  # folder of a trained run
    evaluate: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    mesh: MeshConfig  # devices to evaluate on, whatever the run was trained on
    out: str | None = None  # folder of results; WORKDIR/evaluation/SPLIT if not given
    label: str | None = None  # what the run is called in tables; its folder's name if not given
    hosts: Hosts = dataclasses.field(default_factory=Hosts)  # several hosts, each with this command

    def __post_init__(self) -> None:
        _check_named(self, "workdir", "out")

    def __call__(self) -> str:
        connect(self.hosts)
        folder = evaluate_run(self.workdir, self.evaluate, self.out, self.label, self.mesh)
        if not is_first():  # which alone writes the results, and tells
            return ""
        return f"{summary_table(read_records([folder]))}\n\n{folder}. Next: {command_line('report', str(folder))}"


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html, extrapolation.png and sweep.csv from folders of results."""

    folders: tyro.conf.Positional[tuple[str, ...]]  # folders that `evaluate` wrote
    out: str = "report"  # folder of the report
    title: str = "Length extrapolation"  # of the page

    def __post_init__(self) -> None:
        require(self.folders != (), "folders", "none", "one or more folders that `evaluate` wrote", "Name them.")
        _check_named(self, "out")

    def __call__(self) -> str:
        records = read_records(self.folders)
        page = write_report(records, self.out, decoded(self.title), recorded_command())
        return f"{summary_table(records)}\n\n{page}"
