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
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from alibi_jax.config import EvaluateConfig, parse_stride
from alibi_jax.evaluate.memory import free_memory
from alibi_jax.evaluate.nats import memory_needed, token_nats
from alibi_jax.evaluate.statistics import (
    ResultsError,
    bits_per_byte,
    mean_nats,
    perplexity,
    split_gain,
    standard_error,
)
from alibi_jax.hosts import from_first_host, is_first
from alibi_jax.positions import LengthError
from alibi_jax.progress import Bar
from alibi_jax.sharding import batch_ways
from alibi_jax.storage import Location, load_array, save_array, write_atomically

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


def plan(config: EvaluateConfig, train_length: int) -> list[tuple[int, int]]:
    """(length, stride) pairs in the order they are run: the training length and its fine stride first, as gains need them."""
    lengths = config.lengths or tuple(train_length * times for times in (1, 2, 4, 8, 16))
    pairs = [(train_length, train_length), (train_length, parse_stride(config.far_stride, train_length))]
    if train_length not in lengths:
        pairs = []  # without it there is no gain to speak of
    for length in lengths:
        pairs += [(length, parse_stride(stride, length)) for stride in config.strides]
    return list(dict.fromkeys(pairs))


def _differing_config(record: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """What a record's config says of the model and of how it was computed, where it says something else than now's."""
    same = {"model": None, "train": ("seed",), "evaluate": ("attention",)}  # None: every field both know
    now = json.loads(json.dumps(now))  # tuples become lists, as in the file
    return [
        f"{section}.{name} {record[section][name]}, now {now[section][name]}"
        for section, names in same.items()
        if record and now
        for name in names or record[section]
        if name in record[section].keys() & now[section].keys() and record[section][name] != now[section][name]
    ]


def _read(path: Location, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The records there are, all of this very evaluation; ResultsError if they are of another."""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for record in records:
        differing = [f"{name} {record[name]}, now {facts[name]}" for name in SAME if record[name] != facts[name]]
        differing += _differing_config(record.get("config"), facts.get("config"))
        if differing:
            raise ResultsError(
                f"{path}: got results of another evaluation ({'; '.join(differing)}), expected none or the same one's. "
                "Write into another --out folder, or remove that one."
            )
    return records


def _statistics(scores: np.ndarray, num_bytes: int) -> dict[str, float]:
    return {
        "mean_nats": mean_nats(scores),
        "perplexity": perplexity(scores),
        "bits_per_byte": bits_per_byte(scores, num_bytes),
        "standard_error": standard_error(scores),
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


def _add_gains(folder: Location, records: list[dict[str, Any]], far_stride: str) -> None:
    """To every longer non-overlapping record its gain over the training length, told apart, once the arrays are there."""
    files = {(r["length"], r["stride"]): folder / r["nats_file"] for r in records if r["status"] == "ok"}
    for (length, stride), file in files.items():
        record = next(r for r in records if (r["length"], r["stride"]) == (length, stride))
        train_length = record["train_length"]
        fine = parse_stride(far_stride, train_length)
        wanted = [(train_length, train_length), (train_length, fine)]
        if stride == length > train_length and all(pair in files for pair in wanted):
            at_train, full_context = (load_array(files[pair]) for pair in wanted)
            gain = split_gain(at_train, load_array(file), full_context, train_length, length)
            record["gain"] = dataclasses.asdict(gain) | {"far_stride": fine}


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
) -> list[dict[str, Any]]:
    """Scores `stream` [n] at every (length, stride) of `config` and writes folder/sweep.jsonl and folder/nats/.

    num_bytes: UTF-8 bytes of the text scored. facts: what every record also says; needs run, position, train_length, split,
    checkpoint_step, corpus_fingerprint. Pairs already in sweep.jsonl are not run again. A length that needs more memory
    than config.memory_limit_gib (0: than is free) is recorded as "out of memory" and tried again next time, one
    a method refuses as "refused".
    Returns the records. ResultsError for a folder that holds another evaluation.
    """
    facts = {**facts, "num_tokens": len(stream), "num_bytes": num_bytes}
    path = folder / "sweep.jsonl"
    done = [record for record in _read(path, facts) if record["status"] != "out of memory"]  # there may be more now
    (folder / "nats").mkdir(parents=True, exist_ok=True)
    limit = int(from_first_host(str(int(config.memory_limit_gib * GIB) or free_memory())))  # all hosts go on, or none
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
            if scores is not None:
                record["nats_file"] = f"nats/{length}-{stride}.npy"
                record |= _statistics(scores, num_bytes)
            done.append(record | provenance())
            if is_first():
                _keep(folder, done, scores, config.far_stride)
    return done


def _keep(folder: Location, done: list[dict[str, Any]], scores: np.ndarray | None, far_stride: str) -> None:
    """Writes the last record's array, and all records with what the arrays now say of gains."""
    if scores is not None:
        save_array(folder / done[-1]["nats_file"], scores)
    _add_gains(folder, done, far_stride)
    write_atomically(folder / "sweep.jsonl", "".join(json.dumps(record) + "\n" for record in done))


def _progress(bar: Bar, before: int, text: str) -> Any:
    return lambda scored: bar.update(before + scored, text)
