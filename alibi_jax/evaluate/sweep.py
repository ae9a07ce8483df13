"""A sweep over lengths and strides: one compilation a shape, every result kept, what is done never done again.

A folder of results holds sweep.jsonl, one record for each (length, stride) with its statistics, config, versions and
corpus fingerprint, and nats/, the array each record was computed from.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from flax import linen as nn

from alibi_jax.atomic import write_atomically
from alibi_jax.config import EvaluateConfig, parse_stride
from alibi_jax.evaluate import statistics
from alibi_jax.evaluate.nats import memory_needed, token_nats
from alibi_jax.evaluate.statistics import ResultsError
from alibi_jax.positions import LengthError
from alibi_jax.progress import Bar
from alibi_jax.sharding import batch_ways

GIB = 2**30
SAME = (
    "run",
    "checkpoint_step",
    "corpus_fingerprint",
    "split",
    "num_tokens",
    "train_length",
)  # of all records in a folder


def provenance() -> dict[str, Any]:
    """Versions, machine and date, for results that are kept."""
    packages = ("jax", "flax", "optax", "numpy")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    device = jax.devices()[0]
    machine = (
        f"{jax.device_count()} x {device.device_kind} ({device.platform}), {platform.machine()}, {platform.system()}"
    )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions, "machine": machine, "date": now}


def free_memory() -> int:
    """Bytes a device has left, or the machine where the device is its processor."""
    facts = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in facts:
        return facts["bytes_limit"] - facts["bytes_in_use"]
    return psutil.virtual_memory().available


def plan(config: EvaluateConfig, train_length: int) -> list[tuple[int, int]]:
    """(length, stride) pairs in the order they are run: the training length and its fine stride first, as gains need them."""
    lengths = config.lengths or tuple(train_length * times for times in (1, 2, 4, 8, 16))
    pairs = [(train_length, train_length), (train_length, parse_stride(config.far_stride, train_length))]
    if train_length not in lengths:
        pairs = []
    for length in lengths:
        pairs += [(length, parse_stride(stride, length)) for stride in config.strides]
    return list(dict.fromkeys(pairs))


def _read(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The records there are, all of this very evaluation; ResultsError if they are of another."""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for record in records:
        differing = [f"{name} {record[name]}, now {facts[name]}" for name in SAME if record[name] != facts[name]]
        if differing:
            raise ResultsError(
                f"{path}: got results of another evaluation ({'; '.join(differing)}), expected none or the same one's. "
                "Write into another --out folder, or remove that one."
            )
    return records


def _statistics(scores: np.ndarray, num_bytes: int) -> dict[str, float]:
    return {
        "mean_nats": statistics.mean_nats(scores),
        "perplexity": statistics.perplexity(scores),
        "bits_per_byte": statistics.bits_per_byte(scores, num_bytes),
        "standard_error": statistics.standard_error(scores),
    }


def _score(model: nn.Module, params: Any, stream: np.ndarray, length: int, stride: int, **options: Any) -> tuple:
    """(status, detail, nats or None, seconds): out of memory and refused lengths are results, not ends."""
    limit, batch_size = options.pop("limit"), options["batch_size"]
    try:
        needed = memory_needed(model, params, batch_size, length)
        if needed > limit:
            detail = (
                f"{needed / GIB:.2f} GiB needed for {batch_size} x {length} tokens, {limit / GIB:.2f} GiB to be had"
            )
            return "out of memory", detail, None, 0.0
        start = time.perf_counter()
        scores = token_nats(model, params, stream, length=length, stride=stride, **options)
        return "ok", f"{needed / GIB:.2f} GiB", scores, time.perf_counter() - start
    except LengthError as error:
        return "refused", str(error), None, 0.0
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "out of memory", str(error).splitlines()[0], None, 0.0


def _gain(folder: Path, record: dict[str, Any], scores: np.ndarray, done: list[dict], config: EvaluateConfig) -> dict:
    """The gain over the training length, told apart, for a longer non-overlapping record; {} where it is not defined."""
    train_length, length = record["train_length"], record["length"]
    fine = parse_stride(config.far_stride, train_length)
    files = {(r["length"], r["stride"]): r["nats_file"] for r in done if r["status"] == "ok"}
    wanted = [(train_length, train_length), (train_length, fine)]
    if record["stride"] != length or length <= train_length or not all(pair in files for pair in wanted):
        return {}
    at_train, full_context = (np.load(folder / files[pair]) for pair in wanted)
    gain = statistics.split_gain(at_train, scores, full_context, train_length, length)
    return {"gain": dataclasses.asdict(gain)}


def sweep(
    model: nn.Module,
    params: Any,
    stream: np.ndarray,
    *,
    config: EvaluateConfig,
    first_input: int,
    num_bytes: int,
    folder: Path,
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Scores `stream` [n] at every (length, stride) of `config` and writes folder/sweep.jsonl and folder/nats/.

    num_bytes: UTF-8 bytes of the text scored. facts: what every record also says; needs run, position, train_length, split,
    checkpoint_step, corpus_fingerprint. Pairs already in sweep.jsonl are not run again. A length that needs more memory
    than config.memory_limit_gib (0: than is free) is recorded as "out of memory", one a method refuses as "refused".
    Returns the records. ResultsError for a folder that holds another evaluation.
    """
    facts = {**facts, "num_tokens": len(stream), "num_bytes": num_bytes}
    path = folder / "sweep.jsonl"
    done = _read(path, facts)
    (folder / "nats").mkdir(parents=True, exist_ok=True)
    limit = int(config.memory_limit_gib * GIB) or free_memory()
    pairs = plan(config, facts["train_length"])
    finished = {(record["length"], record["stride"]) for record in done}
    with Bar(f"evaluate {facts['run']}", len(pairs) * len(stream)) as bar:
        for number, (length, stride) in enumerate(pairs):
            if (length, stride) in finished:
                continue
            ways = batch_ways(jax.sharding.get_mesh())
            batch_size = -(-max(1, config.batch_tokens // length) // ways) * ways
            status, detail, scores, seconds = _score(
                model,
                params,
                stream,
                length,
                stride,
                first_input=first_input,
                batch_size=batch_size,
                limit=limit,
                progress=_progress(bar, number * len(stream), f"length {length} stride {stride}"),
            )
            record = {
                **facts,
                "length": length,
                "stride": stride,
                "status": status,
                "detail": detail,
                "seconds": seconds,
            }
            record["nats_file"] = f"nats/{length}-{stride}.npy"
            if scores is not None:
                np.save(folder / record["nats_file"], scores)
                record |= _statistics(scores, num_bytes) | _gain(folder, record, scores, done, config)
            done.append(record | provenance())
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in done))
    return done


def _progress(bar: Bar, before: int, text: str) -> Any:
    return lambda scored: bar.update(before + scored, text)
