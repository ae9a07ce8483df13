"""A folder of results while an evaluation adds to it: what is there and whole, and how more is kept."""

import dataclasses
import json
import logging

import numpy as np

from alibi_jax.config import parse_stride
from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.records import Record, explained, load_nats, nats_file, read_lines, strict_json, write_records
from alibi_jax.evaluate.statistics import split_gain
from alibi_jax.run.hosts import is_first
from alibi_jax.storage import Location, load_array, remove_partial, save_array, write_atomically

SAME = ("run", "checkpoint_step", "corpus_fingerprint", "split", "num_tokens", "train_length")  # in a folder
FAULTS_SHOWN = 5

logger = logging.getLogger("alibi_jax")


def _pair(record: Record) -> tuple[int, int]:
    return record["length"], record["stride"]


def _differing_config(record: Record | None, now: Record | None) -> list[str]:
    """What a record's config says of the model and of how it was computed, where it says something else than now's."""
    same = {"model": None, "train": ("seed",), "evaluate": ("attention",)}  # None: every field both know
    now = json.loads(strict_json(now or {}))  # as in the file
    record = record or {}
    return [
        f"{section}.{name} {record[section][name]}, now {now[section][name]}"
        for section, names in same.items()
        if section in record.keys() & now.keys()
        for name in names or record[section]
        if name in record[section].keys() & now[section].keys() and record[section][name] != now[section][name]
    ]


def _check_same(path: Location, record: Record, facts: Record) -> None:
    """ResultsError for a record of another evaluation."""
    same = SAME + (("num_bytes",) if "num_bytes" in record else ())
    differing = [f"{name} {record[name]}, now {facts[name]}" for name in same if record[name] != facts[name]]
    differing += _differing_config(record.get("config"), facts.get("config"))
    if differing:
        raise ResultsError(
            f"{path}: got results of another evaluation ({'; '.join(differing)}), expected none or the same one's. "
            "Write into another --out folder, or remove that one."
        )


def _read(path: Location, facts: Record) -> list[Record]:
    """The records there are, all of this very evaluation. Lines of no use are said, copied aside and taken out."""
    if not path.exists():
        return []
    records, faults = {}, []
    for number, line in read_lines(path):
        if isinstance(line, ResultsError):
            faults.append(f"line {number}: {line}")
        else:
            _check_same(path, line, facts)
            if _pair(line) in records:
                faults.append(
                    f"line {number}: length {line['length']}, stride {line['stride']} again; the last is kept"
                )
            records[_pair(line)] = line
    if faults and is_first():
        copy = path.with_name(f"{path.name}.damaged")
        write_atomically(copy, path.read_bytes())
        write_records(path, list(records.values()))
        shown = "; ".join(faults[:FAULTS_SHOWN]) + (" ..." if len(faults) > FAULTS_SHOWN else "")
        text = (
            "%s: lines that cannot be used: %d (%s); what has no record is scored again where it is asked for; the file as it "
            "was is kept in %s"
        )
        logger.warning(text, path, len(faults), shown, copy.name)
    return list(records.values())


def _damage(folder: Location, record: Record) -> str:
    """What is wrong with the array of a record; "" where it is whole."""
    try:
        load_nats(folder / record["nats_file"], record)
    except ResultsError as error:
        return str(error)
    return ""


def _add_gains(folder: Location, records: list[Record], far_stride: str, whole: set[tuple[int, int]]) -> None:
    """To every longer non-overlapping record its gain over the training length, told apart, once the arrays are there.

    whole: the pairs whose arrays are.
    """
    for record in records:
        length, train_length = record["length"], record["train_length"]
        fine = parse_stride(far_stride, train_length)
        wanted = [(train_length, train_length), (length, length), (train_length, fine)]
        if record["stride"] == length > train_length and whole.issuperset(wanted):
            arrays = (load_array(folder / nats_file(*pair)) for pair in wanted)
            gain = split_gain(*arrays, train_length, length)
            record["gain"] = dataclasses.asdict(gain) | {"far_stride": fine}


class Results:
    """The records of a folder, read when made: `records` are those that need no other scoring.

    For the process that holds the folder (`workdir.only_run`): what a killed one left half-written there is removed.
    """

    def __init__(self, folder: Location, facts: Record, pairs: list[tuple[int, int]], far_stride: str) -> None:
        """facts: what every record has to say. pairs: (length, stride) that are asked for; their arrays are looked at."""
        self.folder, self.far_stride = folder, far_stride
        self.records, self.whole = [], set()
        with explained(folder):
            for record in _read(folder / "sweep.jsonl", facts):
                self._take(record, asked_for=_pair(record) in pairs)
            (folder / "nats").mkdir(parents=True, exist_ok=True)
            if is_first():
                remove_partial(folder)
                remove_partial(folder / "nats")

    def _take(self, record: Record, asked_for: bool) -> None:
        """A record whose array is gone or damaged is scored again where it is asked for; so is one that ran out of memory."""
        damage = _damage(self.folder, record) if record["status"] == "ok" else ""
        if damage and asked_for and is_first():
            logger.warning("%s. Length %d, stride %d is scored again.", damage, *_pair(record))
        if record["status"] == "ok" and not damage:
            self.whole.add(_pair(record))
        again = damage or record["status"] == "out of memory"  # there may be more memory now
        if not (again and asked_for):
            self.records.append(record)

    def missing(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of the pairs that have no record."""
        finished = set(map(_pair, self.records))
        return [pair for pair in pairs if pair not in finished]

    def add(self, record: Record, scores: np.ndarray | None) -> None:
        """Keeps one more record and its array, and all records with what the arrays now say of gains: first host only."""
        self.records.append(record)
        if not is_first():
            return
        with explained(self.folder):
            if scores is not None:
                save_array(self.folder / record["nats_file"], scores)
                self.whole.add(_pair(record))
            _add_gains(self.folder, self.records, self.far_stride, self.whole)
            write_records(self.folder / "sweep.jsonl", self.records)
