"""The loop around the step: batches in, metrics out one step late, validation, saving, clean stops."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array

from alibi_jax.config import Config, TrainConfig
from alibi_jax.data.batches import batches
from alibi_jax.data.corpus import Corpus
from alibi_jax.errors import Diverged, Interrupted
from alibi_jax.evaluate.nats import token_nats
from alibi_jax.evaluate.records import too_short
from alibi_jax.evaluate.statistics import bits_per_byte
from alibi_jax.model import TransformerLM
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.hosts import Agreement, is_first
from alibi_jax.run.metrics import MetricsLog, Speed
from alibi_jax.run.profile import Trace
from alibi_jax.run.progress import Bar, loss_text
from alibi_jax.run.supervise import tell_supervisor
from alibi_jax.sharding import Share, batch_ways, host_share, put_batch
from alibi_jax.storage import Location

VALIDATION_TOKENS = 8192  # of one batch of validation windows; at least one window a device

logger = logging.getLogger("alibi_jax")


def batch_arguments(config: Config, corpus: Corpus, share: Share) -> tuple:
    """What `batches` and `Batches` are given on this host."""
    train = config.train
    return corpus.tokens("train"), train.train_length, train.batch_size, train.seed, share.rows, share.columns


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def unfilled_lengths(train: TrainConfig, tokens: int) -> list[str]:
    """A warning for each validation length of which a text of so many tokens has no full window."""
    reasons = (too_short(length, length, min(tokens, train.validate_tokens)) for length in train.validate_lengths)
    return [
        f"train.validate_lengths: {reason}; its loss is that of shorter inputs. Raise train.validate_tokens, lengthen the "
        "validation text, or leave the length out."
        for reason in reasons
        if reason
    ]


class Run(NamedTuple):
    """What a run has before its first step."""

    config: Config
    corpus: Corpus
    mesh: Mesh
    checkpoints: Checkpoints
    workdir: Location
    label: str  # before the bar
    traced: range  # steps


class Loop:
    """One run's loop, from the step after `step`. What it changes is the state it is given, the run's folder, and the bar."""

    def __init__(self, run: Run, step: int) -> None:
        self.config, self.corpus, self.mesh, self.checkpoints = run.config, run.corpus, run.mesh, run.checkpoints
        config, corpus = run.config, run.corpus
        self.model, self.log = TransformerLM(config.model), MetricsLog(run.workdir, step)
        self.bar = Bar(run.label, config.train.steps, step)
        self.trace = Trace(run.traced, run.workdir / "tensorboard")
        self.first = self.saved = step
        train, facts = config.train, corpus.facts["splits"]["train"]
        self.speed = Speed(config.model, train.train_length, train.batch_size * train.train_length)
        self.bits_per_nat = facts["tokens"] / facts["bytes"] / math.log(2)  # bits a byte for each nat a token
        self.tokens_per_second = 0.0
        for warning in unfilled_lengths(train, len(corpus.tokens("valid"))) if is_first() else ():
            logger.warning(warning)

    def run(self, state: Any, step_function: Callable, stop: list[str]) -> None:
        """Steps until the last, or until `stop` holds a signal's name: then saves and raises Interrupted."""
        with contextlib.closing(self.log), contextlib.closing(self.trace), self.bar:
            self._run(state, step_function, stop)

    def _run(self, state: Any, step_function: Callable, stop: list[str]) -> None:
        train, waiting, agreed = self.config.train, None, Agreement(self.mesh)
        for step, inputs, targets in self._batches():
            with self.trace.step(step):
                state, metrics = step_function(state, inputs, targets)
            self.trace.after(step, metrics)
            stopping = agreed(stop)  # read once a step: a signal may come at any moment
            if waiting:  # one step late, so that the device never waits for the host
                self._report(*waiting)
            waiting = step, metrics
            validates = _due(step, train.validate_every, train.steps)
            saves = stopping or _due(step, train.checkpoint_every, train.steps)
            if validates or saves:
                self._report(*waiting)
                waiting, nats = None, self._validate(step, state.params) if validates else None
                if saves:
                    self._save(step, state, nats)
                self.speed.restart()
            if stopping:
                self.checkpoints.wait()
                said = f"{stopping[0]}: step {step} of {train.steps} is saved in {self.checkpoints.folder.parent}."
                raise Interrupted(f"{said} Run the same command to go on from it.")

    def _batches(self) -> Iterator[tuple[int, Array, Array]]:
        """(step from 1, inputs, targets) of the steps still to do, placed on the mesh; this host reads its share."""
        share = host_share((self.config.train.batch_size, self.config.train.train_length), self.mesh)
        made = batches(*batch_arguments(self.config, self.corpus, share), first_step=self.first)
        with contextlib.closing(made):
            for _, (done, inputs, targets) in zip(range(self.first, self.config.train.steps), made, strict=False):
                yield done + 1, put_batch(inputs, share), put_batch(targets, share)

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            kept = f"The checkpoint of step {self.saved} is kept" if self.saved else "No checkpoint had been saved yet"
            raise Diverged(
                f"training: got {', '.join(bad)} at step {step}, expected finite numbers. {kept} in "
                f"{self.checkpoints.folder}; train again into another --workdir with a lower "
                "--optimizer.peak-learning-rate or a longer warm-up."
            )

    def _report(self, step: int, metrics: dict[str, Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self.speed.steps += 1
        tell_supervisor()
        self._check_finite(step, values)
        if _due(step, self.config.train.log_every, self.config.train.steps):
            readings = self.speed.reading()
            self.tokens_per_second = readings["tokens_per_second"]
            self.log.write(step, {**values, "bits_per_byte": values["loss"] * self.bits_per_nat, **readings})
        self.bar.update(step, loss_text(values["loss"], self.tokens_per_second))

    def _validate(self, step: int, params: Any) -> float:
        """Logs validation loss and bits per byte at each length; returns the first length's loss in nats."""
        train, losses = self.config.train, []
        stream = self.corpus.tokens("valid")[: train.validate_tokens]
        ways, first_input = batch_ways(self.mesh), self.corpus.tokenizer.first_input
        for length in train.validate_lengths or (train.train_length,):
            rows = -(-max(1, VALIDATION_TOKENS // length) // ways) * ways
            scores = token_nats(self.model, params, stream, length=length, first_input=first_input, batch_size=rows)
            losses.append(float(scores.mean(dtype="float64")))
            tell_supervisor()
            self._check_finite(step, {f"validation loss at {length}": losses[-1]})
            bits = bits_per_byte(scores, self.corpus.num_bytes("valid", len(stream)))
            self.log.write(step, {f"valid_loss_{length}": losses[-1], f"valid_bits_per_byte_{length}": bits})
        return losses[0]

    def _save(self, step: int, state: Any, validation_nats: float | None) -> None:
        rest = {"step": state.step, "moments": state.optimizer}
        self.log.flush()  # first: a run that goes on from the checkpoint lacks no line before it
        self.checkpoints.save(step, state.params, rest, validation_nats)
        self.saved = step
