"""What an evaluation keeps, and its one reader.

A folder of results holds sweep.jsonl, one record (a JSON object) for each (length, stride) with its statistics, config,
versions and corpus fingerprint, and nats/, the array each was computed from. The JSON is strict: numbers that are not finite
are written as text, "inf" for a perplexity past the largest float, and the reader makes that a number again.
"""

import contextlib
import io
import json
import math
import re
import sys
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from alibi_jax.config import PositionName
from alibi_jax.errors import ResultsError
from alibi_jax.run.display import exponential
from alibi_jax.storage import Location, write_atomically

Record = dict[str, Any]
STATUSES = ("ok", "out of memory", "refused", "not finite")
STATISTICS = ("mean_nats", "perplexity", "bits_per_byte", "standard_error")
MANY_UNKNOWN = 0.05  # of the tokens: with more unknown words than that a warning stands beside the numbers
GAIN = ("total", "far_context", "early_tokens", "far_context_error")
NAMES = {"alibi": "ALiBi", "t5": "T5 bias", "none": "no positions"}  # the others are called as they are written


class _Kind(NamedTuple):
    """What a field of a record can hold."""

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
WHERE_SCORED = dict.fromkeys(STATISTICS, NUMBER) | {
    "perplexity": _Kind(lambda value: _is_number(value) or value == math.inf, "a number"),
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


def line_name(record: Record) -> str:
    """How the record's run is labelled in figures: without its seed, and by the method's name where that is all."""
    name = re.sub(r"(?<=.)-s\d+$", "", record["run"])
    return NAMES.get(name, name)


def non_overlapping(records: Iterable[Record]) -> list[Record]:
    """The records whose stride is their length."""
    return [record for record in records if record["stride"] == record["length"]]


def sliding(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """The one sliding protocol, "L/4" or a fixed "64", that was evaluated most (the finest of equals), as (name, records).

    ("", []) when no protocol spans more than one length though the non-overlapping one does: a single stride at the
    training length is there to measure far context, not to be drawn.
    """
    candidates = [record for record in records if record["stride"] < record["length"]]
    families = {}
    for divisor in sorted({round(record["length"] / record["stride"]) for record in candidates}, reverse=True):
        same_share = [record for record in candidates if record["stride"] == max(1, record["length"] // divisor)]
        families[f"L/{divisor}"] = same_share
    for stride in sorted({record["stride"] for record in candidates}):
        families[str(stride)] = [record for record in candidates if record["stride"] == stride]
    name, chosen = max(families.items(), key=lambda family: len(family[1]), default=("", []))
    span, whole = ({record["length"] for record in some} for some in (chosen, non_overlapping(records)))
    return (name, chosen) if len(span) > 1 or len(whole) <= 1 else ("", [])


def unknown_share(record: Record) -> float:
    """Unknown words per token scored; 0 where the record does not count them."""
    return record.get("unknown_words", 0) / record["num_tokens"]


def full_window(length: int, stride: int) -> int:
    """Tokens a text needs for one full window: the first that ends at a multiple of the stride and has `length` before it."""
    return -(-length // stride) * stride


def too_short(length: int, stride: int, num_tokens: int) -> str:
    """Why a text of so many tokens says nothing of a length; "" where at least one window is full."""
    needed = full_window(length, stride)
    if num_tokens >= needed:
        return ""
    return (
        f"{num_tokens:,} tokens of text, where one full window of {length:,} at stride {stride:,} needs {needed:,}: no token "
        "would be read with so many before it"
    )


def nats_file(length: int, stride: int) -> str:
    """Where a folder of results has the array of a (length, stride)."""
    return f"nats/{length}-{stride}.npy"


def _check_fields(record: Record) -> None:
    kinds = ALWAYS | {name: kind for name, kind in WHERE_KNOWN.items() if name in record}
    if record.get("status") == "ok":
        kinds |= WHERE_SCORED
    missing = sorted(kinds.keys() - record.keys())
    if missing:
        raise ResultsError(f"got a record without {', '.join(missing)}, expected a whole one")
    for name, kind in kinds.items():
        if not kind.fits(record[name]):
            raise ResultsError(f"got {name} {str(record[name])[:80]!r}, expected {kind.expected}")


def _check_values(record: Record) -> None:
    length, stride = record["length"], record["stride"]
    if stride > length:
        raise ResultsError(f"got stride {stride} at length {length}, expected 1 to the length")
    if record["status"] == "ok":
        if record["nats_file"] != nats_file(length, stride):
            raise ResultsError(f"got nats_file {record['nats_file'][:80]!r}, expected {nats_file(length, stride)!r}")
        expected = exponential(record["mean_nats"])
        if not math.isclose(record["perplexity"], expected, rel_tol=1e-6):
            raise ResultsError(f"got perplexity {record['perplexity']:.6g}, expected exp(mean_nats), {expected:.6g}")


def parse_record(line: bytes) -> Record:
    """The record of a line of sweep.jsonl; ResultsError, without the place, for anything else.

    A length recorded as scored of which the text has no full window, as older versions did, counts as refused.
    """
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"got what is not JSON ({error}), expected a record") from error
    if not isinstance(record, dict):
        raise ResultsError(f"got {type(record).__name__}, expected a record, an object")
    if record.get("perplexity") == "inf":
        record["perplexity"] = math.inf
    _check_fields(record)
    _check_values(record)
    reason = too_short(record["length"], record["stride"], record["num_tokens"])
    if reason and record["status"] == "ok":
        record = {
            name: value
            for name, value in record.items()
            if name not in (*STATISTICS, "nats_file", "nats_crc32", "gain")
        }
        record |= {"status": "refused", "detail": reason}
    return record


def _strict(value: Any) -> Any:
    """The value without numbers that JSON has no name for."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def strict_json(record: Record) -> str:
    """The record as one line of strict JSON."""
    return json.dumps(_strict(record), allow_nan=False)


def write_records(path: Location, records: list[Record]) -> None:
    """Writes sweep.jsonl, all of it or none."""
    write_atomically(path, "".join(f"{strict_json(record)}\n" for record in records))


def read_lines(path: Location) -> Iterator[tuple[int, Record | ResultsError]]:
    """(number, record, or what is wrong with the line) of every line of a sweep.jsonl that is not empty."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, parse_record(line)
            except ResultsError as error:
                yield number, error


def checksum(nats: Float32[np.ndarray, " n"]) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(nats, "<f4"))


def load_nats(path: Location, record: Record) -> Float32[np.ndarray, " n"]:
    """The array a record was computed from; ResultsError where it is not there, or is not that array."""
    tokens = record["num_tokens"]
    try:
        array = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except OSError as error:
        raise ResultsError(
            f"{path}: could not be read ({error.strerror or error}), expected {tokens} losses"
        ) from error
    except (ValueError, EOFError, MemoryError, RecursionError) as error:
        raise ResultsError(f"{path}: got no array ({error}), expected {tokens} losses") from error
    if array.dtype != np.float32 or array.shape != (tokens,):
        raise ResultsError(f"{path}: got {array.dtype} of shape {array.shape}, expected float32 of shape ({tokens},)")
    if record.get("nats_crc32") not in (None, checksum(array)):
        raise ResultsError(f"{path}: got losses of another checksum than recorded, expected those that were saved")
    mean = float(array.mean(dtype=np.float64))
    if not math.isclose(mean, record["mean_nats"], rel_tol=1e-6, abs_tol=1e-9):
        raise ResultsError(f"{path}: got losses of mean {mean:.6g}, expected {record['mean_nats']:.6g} as recorded")
    return array


@contextlib.contextmanager
def explained(folder: Location) -> Iterator[None]:
    """An error of the disk inside becomes an OSError that names the folder and the way on."""
    try:
        yield
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        raise OSError(
            f"results: could not read or write in {folder}: {error.strerror or error}{name}, expected a writable folder and "
            "room on the disk. Free the disk or choose another --out, then run the same command again; what was finished "
            "before is kept."
        ) from error
