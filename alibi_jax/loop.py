"""The loop around the step: batches in, metrics out one step late, validation, checkpoints, clean stops."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Int

from alibi_jax.config import Config, TrainConfig
from alibi_jax.data.batches import Batches
from alibi_jax.data.corpus import Corpus
from alibi_jax.errors import Diverged, Interrupted
from alibi_jax.evaluate.nats import token_nats, windows_per_batch
from alibi_jax.evaluate.records import too_short
from alibi_jax.evaluate.statistics import bits_per_byte
from alibi_jax.model import TransformerLM
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.child import tell_supervisor
from alibi_jax.run.exchange import Agreement
from alibi_jax.run.metrics import MetricsLog, Speed
from alibi_jax.run.profile import Trace, compilation_check
from alibi_jax.run.progress import Bar, loss_text
from alibi_jax.sharding import HostShard, put_batch
from alibi_jax.storage import Location

VALIDATION_TOKENS = 8192  # of one batch of validation windows: it needs no more memory than a training step


class Outputs(NamedTuple):
    """What a run writes and shows while it trains."""

    checkpoints: Checkpoints
    log: MetricsLog
    bar: Bar
    trace: Trace  # a profile of some steps
    speed: Speed


@contextlib.contextmanager
def open_outputs(
    config: Config, workdir: Location, checkpoints: Checkpoints, step: int, label: str, traced: range
) -> Iterator[Outputs]:
    """Opens the outputs of a run that goes on from `step`; `label` stands before the bar, the steps `traced` are profiled."""
    train = config.train
    speed = Speed(config.model, train.train_length, train.batch_size * train.train_length)
    with (
        contextlib.closing(MetricsLog(workdir, step)) as log,
        contextlib.closing(Trace(traced, workdir / "tensorboard")) as trace,
        Bar(label, train.steps, step) as bar,
    ):
        yield Outputs(checkpoints, log, bar, trace, speed)


def placed_batches(
    batches: Batches, shard: HostShard, first: int, last: int
) -> Iterator[tuple[int, Int[Array, "B L"], Int[Array, "B L"]]]:
    """Yields (step, inputs, targets) of the steps first + 1 ... last, placed on the mesh; this host reads its shard of each."""
    with contextlib.closing(batches.read_ahead(first)) as ahead:
        for step, inputs, targets in itertools.islice(ahead, last - first):
            yield step + 1, put_batch(inputs, shard), put_batch(targets, shard)


def run_steps(
    config: Config,
    corpus: Corpus,
    outputs: Outputs,
    step_function: Callable[..., tuple[Any, dict[str, Array]]],
    state: Any,
    batches: Iterator[tuple[int, Array, Array]],
    stop: list[str],
) -> None:
    """Trains `state` on all of `batches`, or until `stop` holds a signal's name: then saves and raises Interrupted.

    Metrics are fetched one step late, so that the device never waits for the host. Called inside `jax.set_mesh(mesh)`.
    Diverged where a loss or a norm is not finite: nothing of that step or after it is saved.
    """
    train = config.train
    agreed = Agreement(jax.sharding.get_mesh())
    check_compilation = compilation_check(step_function, "state", "inputs", "targets")
    report = functools.partial(_report, config, corpus, outputs)
    waiting = None  # (step, metrics) of the last step, not yet fetched
    for step, inputs, targets in batches:
        with outputs.trace.step(step):
            updated, metrics = step_function(state, inputs, targets)
        check_compilation(state, inputs, targets)
        state = updated
        outputs.trace.after(step, metrics)
        stopping = agreed(stop)  # read once a step: a signal may come at any moment
        if waiting:
            report(*waiting)
        waiting = step, metrics
        validates = _due(step, train.validate_every, train.steps)
        saves = stopping or _due(step, train.checkpoint_every, train.steps)
        if validates or saves:
            report(*waiting)
            waiting = None
            nats = _validate(config, corpus, outputs, step, state.params) if validates else None
            if saves:
                _save(outputs, step, state, nats)
            outputs.speed.restart()
        if stopping:
            outputs.checkpoints.wait()
            raise Interrupted(
                f"{stopping[0]}: step {step} of {train.steps} is saved in {outputs.checkpoints.folder.parent}. "
                "Run the same command to go on from it."
            )


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _report(config: Config, corpus: Corpus, outputs: Outputs, step: int, metrics: dict[str, Array]) -> None:
    """Waits for a step's metrics, checks them, and puts them into the log and beside the bar."""
    values = {name: float(value) for name, value in metrics.items()}
    outputs.speed.steps += 1
    tell_supervisor()
    _check_finite(step, values, outputs.checkpoints)
    if _due(step, config.train.log_every, config.train.steps):
        facts = corpus.facts["splits"]["train"]
        bits = values["loss"] * (facts["tokens"] / facts["bytes"] / math.log(2))
        outputs.log.write(step, {**values, "bits_per_byte": bits, **outputs.speed.reading()})
    outputs.bar.update(step, loss_text(values["loss"], outputs.speed.tokens_per_second))


def _validate(config: Config, corpus: Corpus, outputs: Outputs, step: int, params: Any) -> float:
    """Logs validation loss and bits per byte at each length; returns the first length's loss in nats."""
    train = config.train
    model = TransformerLM(config.model)
    stream = corpus.tokens("valid")[: train.validate_tokens]
    losses = []
    for length in train.validate_lengths or (train.train_length,):
        windows = windows_per_batch(VALIDATION_TOKENS, length)
        first_input = corpus.tokenizer.first_input
        scores = token_nats(model, params, stream, length=length, first_input=first_input, batch_size=windows)
        losses.append(float(scores.mean(dtype="float64")))
        tell_supervisor()
        _check_finite(step, {f"validation loss at {length}": losses[-1]}, outputs.checkpoints)
        bits = bits_per_byte(scores, corpus.num_bytes("valid", len(stream)))
        outputs.log.write(step, {f"valid_loss_{length}": losses[-1], f"valid_bits_per_byte_{length}": bits})
    return losses[0]


def _save(outputs: Outputs, step: int, state: Any, validation_nats: float | None) -> None:
    outputs.log.flush()  # first: a run that goes on from the checkpoint lacks no line before it
    rest = {"step": state.step, "moments": state.optimizer}
    outputs.checkpoints.save(step, state.params, rest, validation_nats)


def _check_finite(step: int, values: dict[str, float], checkpoints: Checkpoints) -> None:
    bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        saved = checkpoints.latest()
        kept = f"The checkpoint of step {saved} is kept" if saved else "No checkpoint had been saved yet"
        raise Diverged(
            f"training: got {', '.join(bad)} at step {step}, expected finite numbers. {kept} in {checkpoints.folder}; "
            "train again into another --workdir with a lower --optimizer.peak-learning-rate or a longer warm-up."
        )


def unfilled_lengths(train: TrainConfig, tokens: int) -> list[str]:
    """Returns a warning for each validation length of which a validation text of `tokens` tokens has no full window."""
    reasons = (too_short(length, length, min(tokens, train.validate_tokens)) for length in train.validate_lengths)
    return [
        f"train.validate_lengths: {reason}; its loss is that of shorter inputs. Raise train.validate_tokens, lengthen the "
        "validation text, or leave the length out."
        for reason in reasons
        if reason
    ]
