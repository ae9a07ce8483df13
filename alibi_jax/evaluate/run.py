"""Evaluate a trained run, or an imported model, from its folder."""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alibi_jax.config import Config, DataConfig, EvaluateConfig, MeshConfig, ModelConfig, load_config
from alibi_jax.data.corpus import Corpus, open_corpus
from alibi_jax.data.tokenizer.foreign import digest, has_tokenizer
from alibi_jax.errors import CheckpointError, ConfigError, require
from alibi_jax.evaluate.records import MANY_UNKNOWN
from alibi_jax.evaluate.sweep import plan, sweep
from alibi_jax.model import TransformerLM
from alibi_jax.model.placement import parameter_shapes, tree_shardings
from alibi_jax.model.served import check_served
from alibi_jax.run.agreement import check_same
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.display import decoded
from alibi_jax.run.exchange import first_host_first, from_first_host
from alibi_jax.run.hosts import several
from alibi_jax.run.origin import Origin
from alibi_jax.run.workdir import check_corpus, imported_from, saved_steps, trained_on
from alibi_jax.sharding import check_divides, make_mesh, placed_shapes
from alibi_jax.storage import Location, in_bucket, locate

TRIES = 5  # to read a checkpoint of a run that goes on saving
REMOVING_SECONDS = 2.0  # that a checkpoint may take to go

logger = logging.getLogger("alibi_jax")


def load_params(workdir: Location, config: Config, which: str, fingerprint: str | None = None) -> tuple[int, Any]:
    """Returns (step, parameters) of the best or last checkpoint of a run, placed on the mesh of `jax.set_mesh`.

    ConfigError where it is of another config or, unless None, another text than the one of `fingerprint`. A run at work
    removes old checkpoints: one that goes while it is read is replaced by what is then the best or the last.
    """
    gone = ""
    for left in reversed(range(TRIES)):
        before = saved_steps(workdir)
        try:
            step, params = _load_params(workdir, config, which, fingerprint)
        except CheckpointError:
            gone = _removed(workdir, before)
            if not gone or not left or several():  # hosts have to read the same one
                raise
        else:
            if gone:
                logger.info("checkpoints: step %s was removed while it was read; step %d is taken instead", gone, step)
            return step, params


def _removed(workdir: Location, steps: list[int]) -> str:
    """Those of the steps that are gone, or go in the next seconds: Orbax removes file by file, the folder last."""
    deadline = time.monotonic() + REMOVING_SECONDS
    while not (gone := sorted(set(steps) - set(saved_steps(workdir)))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return ", ".join(map(str, gone))


def _load_params(workdir: Location, config: Config, which: str, fingerprint: str | None) -> tuple[int, Any]:
    mesh = jax.sharding.get_mesh()
    shapes = parameter_shapes(config.model)
    abstract = placed_shapes(shapes, tree_shardings(config.model, shapes, mesh))
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    checkpoints = Checkpoints(workdir, read_only=True, origin=Origin(config, fingerprint), largest=largest)
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise CheckpointError(f"checkpoints: got none in {checkpoints.folder}, expected a trained run. Train it first.")
    step = int(from_first_host(str(step)))
    return step, checkpoints.restore(step, params=abstract)["params"]


def run_label(workdir: Location, label: str | None) -> str:
    """Returns what a run is called: its label, or the name of its folder; ConfigError for a label that shows nothing."""
    if label is None:
        return decoded(workdir.name if in_bucket(workdir) else os.path.basename(os.path.abspath(workdir))) or "run"
    if not label.strip():
        raise ConfigError(f"label: got {label!r}, expected text to call the run by. Leave --label out, or name it.")
    return decoded(label)


def _warn_of_unknown_words(rate: float) -> None:
    if rate > MANY_UNKNOWN:
        logger.warning(
            "evaluate: %.1f%% of the words are outside the vocabulary: the model only has to predict that they are, which "
            "makes every number look better. Train on text with these words, or with --data.tokenizer bpe.",
            100 * rate,
        )


def _config_of_run(
    workdir: Location, evaluate: EvaluateConfig | None, mesh: MeshConfig | None, data: DataConfig | None
) -> Config:
    """The run's config, to be evaluated as asked; ConfigError where hosts disagree on it."""
    config = load_config(workdir)
    require(
        workdir.is_dir(),
        "workdir",
        f"{workdir}, which is no folder",
        "the folder of a trained run",
        "Name that folder.",
    )
    config = dataclasses.replace(
        config, evaluate=evaluate or config.evaluate, mesh=mesh or MeshConfig(), data=data or config.data
    )
    check_same(**dataclasses.asdict(config))
    return config


def _corpus_of_run(workdir: Location, config: Config) -> Corpus:
    """The corpus that the run was trained on, compared before a checkpoint is read, whose error would be less clear.

    Of an imported model any text that its own tokenizer divides.
    """
    with first_host_first():
        if imported_from(workdir):
            check_tokenizer(workdir, config.data)
            corpus = open_corpus(config.data)
            check_vocabulary(corpus, config.model)
            return corpus
        trained = trained_on(workdir)
        corpus = open_corpus(config.data, trained if _names_same_text(config.data, load_config(workdir).data) else None)
        if trained:
            check_corpus(workdir, corpus.fingerprint)
    return corpus


def _names_same_text(data: DataConfig, own: DataConfig) -> bool:
    """Returns whether two configs name the same text, wherever corpora and the tokenizer's file are."""
    return dataclasses.replace(data, directory=own.directory, tokenizer_path=own.tokenizer_path) == own


def check_tokenizer(workdir: Location, data: DataConfig) -> None:
    """Raises ConfigError for another tokenizer than the one in an imported model's folder; without one, logs a warning."""
    if not has_tokenizer(workdir):
        logger.warning("evaluate: %s has no tokenizer: that of data.tokenizer has to be the model's own", workdir)
        return
    if data.tokenizer == "file" and digest(data.tokenizer_path) == digest(workdir):
        return
    other = data.tokenizer_path or data.tokenizer
    raise ConfigError(
        f"data.tokenizer: got {other}, expected the model's own tokenizer, whose file is in {workdir}: to the model the tokens "
        "of another are other words. Leave --data.tokenizer and --data.tokenizer-path out."
    )


def check_vocabulary(corpus: Corpus, model: ModelConfig) -> None:
    """Raises ConfigError where a corpus may have tokens that a model has no row for."""
    size, rows = corpus.tokenizer.vocab_size, model.vocab_size
    expected = f"at most {rows:,}, the rows of the model's embedding"
    require(size <= rows, "data.tokenizer", f"{size:,} tokens", expected, "Use the model's own tokenizer.")


def _facts(config: Config, corpus: Corpus, num_tokens: int, params: Any, imported: dict[str, Any]) -> dict[str, Any]:
    """What every record of an evaluation holds of the run and its text; how an imported model was trained is not known."""
    sections = dataclasses.asdict(config)
    if imported:
        known = {name: sections[name] for name in ("model", "data", "evaluate", "mesh")}
        sections = {"imported": {name: imported.get(name) for name in ("family", "source")}} | known
    return {
        "position": config.model.position,
        "train_length": config.train.train_length,
        "split": config.evaluate.split,
        "corpus_fingerprint": corpus.fingerprint,
        "unknown_words": corpus.num_unknown(config.evaluate.split, num_tokens),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "config": sections,
    }


def evaluate_run(
    workdir: str | Path,
    evaluate: EvaluateConfig | None = None,
    out: str | Path | None = None,
    label: str | None = None,
    mesh: MeshConfig | None = None,
    data: DataConfig | None = None,
    slopes: Mapping[str, Any] | None = None,
) -> Location:
    """Sweeps the run in `workdir` and returns the folder of results: `out`, or workdir/evaluation/<split>.

    evaluate: what to sweep; None: as the run's config says. label: what the run is called in tables; None: the name of its
    folder. mesh: None: all devices along the batch, whatever the run was trained on. data: the text; None: as the run's config
    says. A trained run takes none but the text it was trained with, an imported model any, by its own tokenizer. slopes: fields
    of the model that divide ALiBi's slopes, such as slope_length, to score with in place of its own. Errors: ConfigError (also
    where the corpus is not the one trained on), CheckpointError (no checkpoint, a damaged one), DataError, ResultsError (`out`
    holds another evaluation, or the text has one token), HeldError (another evaluation is at work in `out`), OSError (a full
    disk).
    """
    workdir = locate(workdir)
    label = run_label(workdir, label)
    config = _config_of_run(workdir, evaluate, mesh, data)
    evaluate = config.evaluate
    imported = imported_from(workdir)
    corpus = _corpus_of_run(workdir, config)
    stream = corpus.tokens(evaluate.split)
    stream = np.asarray(stream[: evaluate.max_tokens or None])
    out = locate(out) if out else workdir / "evaluation" / evaluate.split
    mesh = make_mesh(config.mesh)
    check_divides(evaluate.lengths or (config.train.train_length,), mesh)
    pairs = plan(evaluate, config.train.train_length)
    require(pairs != [], "evaluate.strides", "none", "one or more, such as L or L/4", "Pass --strides L.")
    stretched = dataclasses.replace(config, model=dataclasses.replace(config.model, **(slopes or {})))
    scored = dataclasses.replace(stretched.model, attention=evaluate.attention)
    with jax.set_mesh(mesh):
        lengths = (length for length, _ in pairs if length <= len(stream))  # longer ones are not scored
        check_served("attention", scored, lengths, trained=False)
        fingerprint = None if imported else corpus.fingerprint
        step, params = load_params(workdir, config, evaluate.checkpoint, fingerprint)
        if not imported:
            check_corpus(workdir, corpus.fingerprint)
        facts = {"run": label, "checkpoint_step": step, **_facts(stretched, corpus, len(stream), params, imported)}
        _warn_of_unknown_words(facts["unknown_words"] / max(1, len(stream)))
        sweep(
            TransformerLM(scored),
            params,
            stream,
            config=evaluate,
            first_input=corpus.tokenizer.first_input,
            num_bytes=corpus.num_bytes(evaluate.split, len(stream)),
            folder=out,
            facts=facts,
        )
    return out
