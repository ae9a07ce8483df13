"""The commands, one class each: its fields are the options, calling it runs it and returns the text to print."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import jax
import tyro

from alibi_jax.config import Config, DataConfig, EvaluateConfig, MeshConfig
from alibi_jax.config.checks import check_values
from alibi_jax.config.sizes import parameter_count
from alibi_jax.convert.exporting import Format, export_run
from alibi_jax.convert.importing import Dtype, import_model
from alibi_jax.data.corpus import prepare, summary, verify
from alibi_jax.errors import ConfigError, Failed, require
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.report import write_report
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.evaluate.tables import summary_table, warnings
from alibi_jax.plan.run import plan_run
from alibi_jax.run.connect import connect
from alibi_jax.run.display import decoded
from alibi_jax.run.hosts import Hosts, is_first
from alibi_jax.run.invocation import command_line, own_command, recorded_command
from alibi_jax.run.supervise import supervise
from alibi_jax.storage import locate
from alibi_jax.train import train

logger = logging.getLogger("alibi_jax")


def _check_named(command: object, *options: str) -> None:
    """Raises ConfigError for a folder without a name, which would be the current folder."""
    for option in options:
        value = getattr(command, option)
        if isinstance(value, str):
            require(value.strip() != "", option, repr(value), "the name of a folder", "Name one; . is the current one.")


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Read the text that a config names, train its tokenizer, and write the corpus for training and evaluation."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    force: bool = False  # prepare again even if there is a corpus
    verify: bool = False  # prepare nothing; compare every byte of the existing corpora with their checksums

    def __call__(self) -> str:
        """Prepares or verifies the corpus and returns a summary; ConfigError for both at once."""
        if self.force and self.verify:
            raise ConfigError("prepare: got --force and --verify, expected one of them. Leave one out.")
        if self.verify:
            return "\n".join(f"whole: {summary(corpus)}" for corpus in verify(self.config.data))
        return summary(prepare(self.config.data, force=self.force))


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model in a folder, or resume from the last checkpoint there."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: str = "runs/train"  # folder of the run, for its config, checkpoints and metrics
    # folder of a trained run or an imported model, whose parameters a new run begins with; None: from the seed
    init_from: str | None = None
    profile: str = ""  # steps to trace for TensorBoard's Profile page, such as 10-12; the first is 1
    hosts: Hosts = dataclasses.field(default_factory=Hosts)  # For several hosts, each of which runs this command.

    def __post_init__(self) -> None:
        _check_named(self, "workdir", "init_from")

    def __call__(self) -> str:
        """Trains, and returns the next command."""
        connect(self.hosts)
        train(self.config, self.workdir, profile=self.profile, init_from=self.init_from)
        return f"trained: {self.workdir}. Next: {command_line('evaluate', self.workdir)}"


@dataclasses.dataclass(frozen=True)
class Supervise:
    """Run the command `train CONFIG ...` that follows --, and restart it whenever it dies, until it is done."""

    command: tyro.conf.Suppress[tuple[str, ...]]
    workdir: tyro.conf.Suppress[str]
    last_step: tyro.conf.Suppress[int]
    patience: int = 5  # restarts in a row without a new checkpoint before giving up (exit status 4)
    stop_seconds: float = 300.0  # time for the run to save after a signal to stop; then it is killed
    # time without a step until the run is killed and restarted; 0: never. Allow for compilation, validation and saving
    stall_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_values(self, "supervise")

    def __call__(self) -> NoReturn:
        """Supervises the command, and ends this one with its exit status."""
        command = own_command(list(self.command))
        times = self.stop_seconds, self.stall_seconds
        raise SystemExit(supervise(command, locate(self.workdir), self.patience, self.last_step, *times))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile a config's train step for devices that need not be here, and estimate its cost: memory, the least time, the bytes
    sent between devices. Exit status 1: it does not fit."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    topology: str = tyro.MISSING  # such as v5e:16x16, v5p:4x4x4 (v5p-128), v6e:8x8, tpu7x:4x4x4, v4:2x2x2, cpu:8
    slices: int = 1  # slices of that topology, connected by the data-centre network
    lengths: tuple[int, ...] = ()  # evaluation lengths to plan as well, tokens
    full: bool = False  # compile with all of XLA's optimizations, as a run does; takes about 4 times as long
    search: bool = False  # rank meshes, with and without remat and gradient accumulation
    batches: tuple[int, ...] = ()  # with search: batch sizes to try, sequences; empty: the config's
    tries: int = 8  # with search: candidates to compile
    # of the blocks of causal attention those that ALiBi's reach leaves, a fraction; or a reach.csv of experiments/reach.py
    attention_share: float | Path = 1.0
    json: Path | None = None  # file for the whole plan as JSON

    def __post_init__(self) -> None:
        check_values(self, "plan")

    def __call__(self) -> str:
        """Returns the plan as text; ends the command with status 1 where nothing fits."""
        text, fits = plan_run(
            self.config,
            self.topology,
            slices=self.slices,
            lengths=self.lengths,
            full=self.full,
            searches=self.search,
            batches=self.batches,
            tries=self.tries,
            attention_share=self.attention_share,
            json=self.json,
        )
        if not fits:
            print(text)
            raise SystemExit(Failed.status)
        return text


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's model and its tokenizer as a folder that transformers loads, or as safetensors files of our own names."""

    # folder of a trained run or an imported model
    workdir: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WORKDIR")]
    format: Format  # a family of transformers, which the model has to be one of, or safetensors, which holds any model
    out: str  # folder to write, new or empty
    checkpoint: Literal["best", "last"] = "best"  # checkpoint of the run, by validation loss or by step

    def __post_init__(self) -> None:
        _check_named(self, "workdir", "out")

    def __call__(self) -> str:
        """Exports, and returns the folder."""
        return f"exported: {export_run(self.workdir, self.format, self.out, self.checkpoint)}"


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score held-out text at many input lengths, non-overlapping and sliding."""

    # folder of a trained run or an imported model
    workdir: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="WORKDIR")]
    evaluate: Annotated[EvaluateConfig, tyro.conf.arg(name="")]
    mesh: MeshConfig  # Devices to evaluate on, whatever the model was trained on.
    data: DataConfig  # Text to score an imported model on; a trained run takes only its own.
    out: str | None = None  # folder of the results; None: WORKDIR/evaluation/SPLIT
    label: str | None = None  # name of the run in tables and figures; None: its folder's name
    hosts: Hosts = dataclasses.field(default_factory=Hosts)  # For several hosts, each of which runs this command.

    def __post_init__(self) -> None:
        _check_named(self, "workdir", "out")

    def __call__(self) -> str:
        """Evaluates, and returns a table of perplexities and the next command."""
        connect(self.hosts)
        folder = evaluate_run(self.workdir, self.evaluate, self.out, self.label, self.mesh, self.data)
        if not is_first():  # the first host alone writes the results and prints them
            return ""
        records = read_records([folder])
        scored = any(record.status == "ok" for record in records)
        following = f" Next: {command_line('report', str(folder))}" if scored else ""
        return f"{summary_table(records)}\n\n{folder}.{following}"


@dataclasses.dataclass(frozen=True)
class Import:
    """Write another program's model as the folder of a run, to evaluate, or to train on from with --init-from."""

    # bloom, mpt, falcon, btlm, jais, baichuan, refact, fairseq, alibi_jax; auto: as its config.json says
    family: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FAMILY")]
    # folder with config.json and its tensors (.safetensors or .bin); fairseq: a .pt file beside its dict.txt
    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    workdir: str  # new folder, for its config, parameters and tokenizer
    dtype: Dtype = "auto"  # data type of the parameters; auto: bfloat16 if all tensors are, else float32
    train_length: int | None = None  # inputs that the model was trained on, tokens; None: as its config says

    def __post_init__(self) -> None:
        _check_named(self, "path", "workdir")
        check_values(self, "import")

    def __call__(self) -> str:
        """Imports the model, and returns what it is and the next command."""
        jax.config.update("jax_platforms", "cpu")  # an accelerator would wait, or be taken from whoever computes on it
        config = import_model(self.family, self.path, self.workdir, self.dtype, self.train_length)
        text = "--data.source", "files", "--data.train-path"
        return (
            f"imported: {self.workdir}, {parameter_count(config.model):,} parameters in {config.model.parameter_dtype}. "
            f"Next: {command_line('evaluate', self.workdir, *text)} TEXT"
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html, extrapolation.png, table.md and sweep.csv from folders of results."""

    # folders of results that `evaluate` wrote
    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FOLDER ...")]
    out: str = "report"  # folder of the report
    title: str = "Length extrapolation"  # title of the page

    def __post_init__(self) -> None:
        require(self.folders != (), "folders", "none", "one or more folders that `evaluate` wrote", "Name them.")
        _check_named(self, "out")

    def __call__(self) -> str:
        """Writes the report, and returns a table of perplexities and the path of its page."""
        records = read_records(self.folders)
        for message in warnings(records):
            logger.warning("%s", message)
        page = write_report(records, self.out, decoded(self.title), recorded_command())
        return f"{summary_table(records)}\n\n{page}"
