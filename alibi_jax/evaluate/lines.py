"""A record as a line of sweep.jsonl, checked when it is read.

The JSON is strict: numbers that are not finite are written as text, "inf" for a perplexity past the largest float, and the
reader makes that a number again. The statistics on a line serve where the file of losses is not at hand.
"""

import dataclasses
import json
import math
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from alibi_jax.config import PositionName
from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.records import FACTS, STATUSES, Record, fields_of, nats_file, record_of, too_short
from alibi_jax.evaluate.statistics import Gain
from alibi_jax.run.display import exponential

GAIN = tuple(field.name for field in dataclasses.fields(Gain))


class _Kind(NamedTuple):
    """What a field of a line can hold."""

    fits: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_gain(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(_is_number(value.get(name)) for name in GAIN))


def _is_config(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(isinstance(section, dict) for section in value.values()))


def _whole(least: int, most: int) -> _Kind:
    return _Kind(lambda value: type(value) is int and least <= value <= most, f"a whole number, {least} or more")


TEXT = _Kind(lambda value: isinstance(value, str), "text")
TOKENS = _whole(1, 2**31 - 1)
COUNT = _whole(0, 2**63 - 1)
NUMBER = _Kind(_is_number, "a finite number")
ALWAYS = {
    "run": TEXT,
    "position": _Kind(lambda value: value in typing.get_args(PositionName), "the name of a position method"),
    "train_length": TOKENS,
    "length": TOKENS,
    "stride": TOKENS,
    "num_tokens": _whole(1, 2**63 - 1),
    "status": _Kind(lambda value: value in STATUSES, f"one of {', '.join(STATUSES)}"),
    "detail": TEXT,
    "split": TEXT,
    "checkpoint_step": COUNT,
    "corpus_fingerprint": TEXT,
}
WHERE_SCORED = {
    "mean_nats": NUMBER,
    "perplexity": _Kind(lambda value: _is_number(value) or value == math.inf, "a number"),
    "bits_per_byte": NUMBER,
    "standard_error": NUMBER,
    "nats_file": TEXT,
}
WHERE_KNOWN = {
    "seconds": NUMBER,
    "num_bytes": COUNT,
    "unknown_words": COUNT,
    "parameters": COUNT,
    "nats_crc32": COUNT,
    "gain": _Kind(_is_gain, f"an object of {', '.join(GAIN)}"),
    "config": _Kind(_is_config, "an object of sections"),
}


def _check_fields(fields: Mapping[str, Any]) -> None:
    kinds = ALWAYS | {name: kind for name, kind in WHERE_KNOWN.items() if name in fields}
    if fields.get("status") == "ok":
        kinds |= WHERE_SCORED
    missing = sorted(kinds.keys() - fields.keys())
    if missing:
        raise ResultsError(f"got a record without {', '.join(missing)}, expected a whole one")
    for name, kind in kinds.items():
        if not kind.fits(fields[name]):
            raise ResultsError(f"got {name} {str(fields[name])[:80]!r}, expected {kind.expected}")


def _check_values(record: Record) -> None:
    if record.stride > record.length:
        raise ResultsError(f"got stride {record.stride} at length {record.length}, expected 1 to the length")
    if record.status == "ok":
        if record.nats_file != nats_file(*record.pair):
            raise ResultsError(f"got nats_file {record.nats_file[:80]!r}, expected {nats_file(*record.pair)!r}")
        perplexity = record.statistics["perplexity"]
        expected = exponential(record.statistics["mean_nats"])
        if not math.isclose(perplexity, expected, rel_tol=1e-6):
            raise ResultsError(f"got perplexity {perplexity:.6g}, expected exp(mean_nats), {expected:.6g}")


def parse_record(line: bytes) -> Record:
    """Returns the record of a line of sweep.jsonl; ResultsError, without the place, for anything else.

    A length recorded as scored of which the text has no full window, as older versions did, counts as refused.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"got what is not JSON ({error}), expected a record") from error
    if not isinstance(fields, dict):
        raise ResultsError(f"got {type(fields).__name__}, expected a record, an object")
    fields = {name: math.inf if value == "inf" and name not in FACTS else value for name, value in fields.items()}
    _check_fields(fields)
    record = record_of(fields)
    _check_values(record)
    reason = too_short(*record.pair, record.num_tokens)
    if reason and record.status == "ok":
        unscored = {"status": "refused", "detail": reason, "nats_file": None, "nats_crc32": None}
        return dataclasses.replace(record, **unscored, statistics={})
    return record


def _strict(value: Any) -> Any:
    """The value without numbers that JSON has no name for, and those of numpy as Python's."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(fields: Mapping[str, Any]) -> str:
    """Returns the fields as one line of strict JSON."""
    return json.dumps(_strict(dict(fields)), allow_nan=False)


def line_of(record: Record) -> str:
    """Returns the record as a line of sweep.jsonl: the opposite of `parse_record`."""
    return strict_json(fields_of(record)) + "\n"
