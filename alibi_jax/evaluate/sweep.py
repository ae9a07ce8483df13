"""A sweep over lengths and strides: one compilation for each shape, every result kept, nothing scored twice."""

import contextlib
import datetime
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from alibi_jax.config import EvaluateConfig, parse_stride
from alibi_jax.errors import LengthError, ResultsError
from alibi_jax.evaluate.memory import Limits, memory_limits
from alibi_jax.evaluate.nats import HOST_BYTES, least_memory, memory_needed, token_nats, windows_per_batch
from alibi_jax.evaluate.reader import checksum
from alibi_jax.evaluate.records import Record, nats_file, record_of, too_short
from alibi_jax.evaluate.results import Results
from alibi_jax.run.exchange import first_host_first, from_first_host
from alibi_jax.run.lock import only_run
from alibi_jax.run.progress import Bar
from alibi_jax.storage import Location

GIB = 2**30
ORDINARY_TOKENS = 2**20  # of a batch; up to here its shape is what was asked for, whatever the text

logger = logging.getLogger("alibi_jax")


def provenance() -> dict[str, Any]:
    """Returns versions, machine and date, for results that are kept."""
    packages = ("jax", "flax", "optax", "numpy")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    device = jax.devices()[0]
    machine = (
        f"{jax.device_count()} x {device.device_kind} ({device.platform}), {platform.machine()}, {platform.system()}"
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions, "machine": machine, "date": now}


def plan(config: EvaluateConfig, train_length: int) -> list[tuple[int, int]]:
    """Returns the (length, stride) pairs in the order they are scored: the training length's first, for gains need them."""
    lengths = config.lengths or tuple(train_length * times for times in (1, 2, 4, 8, 16))
    pairs = [(length, parse_stride(stride, length)) for length in lengths for stride in config.strides]
    if train_length in lengths and any(
        length == stride for length, stride in pairs
    ):  # else there is no gain to speak of
        pairs = [(train_length, train_length), (train_length, parse_stride(config.far_stride, train_length)), *pairs]
    return list(dict.fromkeys(pairs))


def batch_rows(batch_tokens: int, length: int, stride: int, num_tokens: int) -> int:
    """Returns the windows of one batch of `batch_tokens` tokens: one or more, a multiple of the devices they are split over.

    Only batches past ORDINARY_TOKENS are cut, to the windows there are: other shapes may round sums differently.
    """
    windows = -(-num_tokens // stride)
    return windows_per_batch(min(batch_tokens, max(windows * length, ORDINARY_TOKENS), 2**31 - 1), length)


def _memory(model: nn.Module, params: Any, batch_size: int, length: int, limits: Limits) -> tuple[int, str]:
    """(bytes a device needs, why that is too much or ""), counted before anything is allocated."""
    size = f"for {batch_size} x {length} tokens"
    host = HOST_BYTES * batch_size * length
    if host > limits.host:
        return host, f"{host / GIB:.2f} GiB needed on the host {size}, {limits.host / GIB:.2f} GiB available"
    least = least_memory(model.config, batch_size, length)
    if least > limits.device:
        return least, f"{least / GIB:.2f} GiB needed at least {size}, {limits.device / GIB:.2f} GiB available"
    needed = memory_needed(model, params, batch_size, length)
    if jax.default_backend() == "cpu":  # where the device's memory is the host's
        needed += host // jax.local_device_count()
    short = f"{needed / GIB:.2f} GiB needed {size}, {limits.device / GIB:.2f} GiB available"
    return needed, short if needed > limits.device else ""


class _Scored(NamedTuple):
    status: str
    detail: str
    nats: np.ndarray | None = None
    seconds: float = 0.0


def _score(model: nn.Module, params: Any, stream: np.ndarray, limits: Limits, **options: Any) -> _Scored:
    """A length that cannot be scored, or at which a loss is not finite, is a result and no error."""
    length, batch_size = options["length"], options["batch_size"]
    reason = too_short(length, options["stride"], len(stream))
    if reason:
        return _Scored("refused", reason)
    try:
        needed, reason = _memory(model, params, batch_size, length, limits)
        if reason:
            return _Scored("out of memory", reason)
        start = time.perf_counter()
        scores = token_nats(model, params, stream, **options)
        seconds = time.perf_counter() - start
    except LengthError as error:
        return _Scored("refused", str(error))
    except MemoryError as error:
        return _Scored("out of memory", str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _Scored("out of memory", str(error).splitlines()[0])
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        return _Scored("not finite", f"{bad.size:,} of {len(scores):,} losses, the first that of token {bad[0]:,}")
    return _Scored("ok", f"{needed / GIB:.2f} GiB", scores, seconds)


def sweep(
    model: nn.Module,
    params: Any,
    stream: np.ndarray,
    *,
    config: EvaluateConfig,
    first_input: int,
    num_bytes: int,
    folder: Location,
    facts: dict[str, Any],
) -> list[Record]:
    """Scores `stream` [n] at every (length, stride) of `config` and writes folder/sweep.jsonl and folder/nats/.

    num_bytes: UTF-8 bytes of the text scored. facts: what every record holds besides; needs run, position, train_length, split,
    checkpoint_step, corpus_fingerprint. Pairs already in sweep.jsonl with their arrays are not run again; what cannot be
    read there is. A length that needs more memory than config.memory_limit_gib (0: than is free) is recorded as "out of
    memory" and tried again next time; one that the method refuses, or of which the text has no full window, as "refused";
    one at which a loss is NaN or infinite as "not finite".
    Returns the records; their files of losses are named from `folder` on. ResultsError for a folder that holds another
    evaluation, and for a text of one token; HeldError where another evaluation is at work in the folder; OSError, with what
    to do, where the disk fails.
    """
    if len(stream) < 2:
        raise ResultsError(
            f"evaluate: got {len(stream)} tokens to score, expected 2 or more. Raise max_tokens, or take a longer text."
        )
    facts = {**facts, "num_tokens": len(stream), "num_bytes": num_bytes}
    pairs = plan(config, facts["train_length"])
    with contextlib.ExitStack() as held:
        with first_host_first():
            held.enter_context(only_run(folder, "out", "evaluation"))
            results = Results(folder, facts, pairs)
        missing = json.loads(from_first_host(json.dumps(results.missing(pairs))))
        limits = Limits(*json.loads(from_first_host(json.dumps(memory_limits(config.memory_limit_gib)))))
        bar = held.enter_context(Bar(f"evaluate {facts['run']}", len(pairs) * len(stream)))
        for length, stride in missing:
            options = {
                "length": length,
                "stride": stride,
                "first_input": first_input,
                "batch_size": batch_rows(config.batch_tokens, length, stride, len(stream)),
                "progress": _progress(bar, pairs.index((length, stride)) * len(stream), length, stride),
            }
            scored = _score(model, params, stream, limits, **options)
            results.add(record_of({**facts, **_facts(length, stride, scored), **provenance()}), scored.nats)
        return results.finish()


def _facts(length: int, stride: int, scored: _Scored) -> dict[str, Any]:
    """What a record says of one (length, stride) alone."""
    facts = {"length": length, "stride": stride, "status": scored.status, "detail": scored.detail}
    facts["seconds"] = scored.seconds
    if scored.nats is None:
        logger.info("length %d, stride %d: %s: %s", length, stride, scored.status, scored.detail)
        return facts
    return facts | {"nats_file": nats_file(length, stride), "nats_crc32": checksum(scored.nats)}


def _progress(bar: Bar, before: int, length: int, stride: int) -> Callable[[int], None]:
    return lambda scored: bar.update(before + scored, f"length {length} stride {stride}")
