"""A folder of results while an evaluation adds to it: what is there and whole, and how more is kept."""

import json
import logging
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.lines import line_of, strict_json
from alibi_jax.evaluate.reader import Losses, explained, load_nats, read_lines, with_statistics
from alibi_jax.evaluate.records import Record, fields_of
from alibi_jax.evaluate.statistics import Nats
from alibi_jax.run.hosts import is_first
from alibi_jax.storage import Location, remove_partial, save_array, write_atomically

# Facts that all records of a folder have in common.
SAME = ("run", "checkpoint_step", "corpus_fingerprint", "split", "num_tokens", "train_length", "num_bytes")
FAULTS_SHOWN = 5

logger = logging.getLogger("alibi_jax")


def write_records(path: Location, records: Sequence[Record]) -> None:
    """Writes sweep.jsonl, all of it or none."""
    write_atomically(path, "".join(map(line_of, records)))


def _differing_config(record: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """Fields of the model and of how it is computed in which a record's config differs from now's."""
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


def _check_same(path: Location, record: Record, facts: Mapping[str, Any]) -> None:
    """ResultsError for a record of another evaluation."""
    before = fields_of(record)
    same = [name for name in SAME if name in before]
    differing = [f"{name} {before[name]}, now {facts[name]}" for name in same if before[name] != facts[name]]
    differing += _differing_config(record.config, facts.get("config"))
    if differing:
        raise ResultsError(
            f"{path}: got results of another evaluation ({'; '.join(differing)}), expected none or the same one's. "
            "Write into another --out folder, or remove that one."
        )


def _read(path: Location, facts: Mapping[str, Any]) -> list[Record]:
    """The records there are, all of this very evaluation. Lines of no use are logged, copied aside and taken out."""
    if not path.exists():
        return []
    records, faults = {}, []
    for number, line in read_lines(path):
        if isinstance(line, ResultsError):
            faults.append(f"line {number}: {line}")
        else:
            _check_same(path, line, facts)
            if line.pair in records:
                faults.append(f"line {number}: length {line.length}, stride {line.stride} again; the last is kept")
            records[line.pair] = line
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
    """What is wrong with the losses of a record; "" where they are whole."""
    try:
        load_nats(folder / record.nats_file, record)
    except ResultsError as error:
        return str(error)
    return ""


class Results:
    """The records of a folder, read at construction: `records` are those that need no other scoring.

    For the process that holds the folder (`run.lock.only_run`): what a killed one left half-written there is removed.
    """

    def __init__(self, folder: Location, facts: Mapping[str, Any], pairs: list[tuple[int, int]]) -> None:
        """facts: what every record has to hold. pairs: (length, stride) that are asked for; their losses are looked at."""
        self.folder = folder
        self.records, self.whole = [], []
        with explained(folder):
            for record in _read(folder / "sweep.jsonl", facts):
                self._take(record, asked_for=record.pair in pairs)
            (folder / "nats").mkdir(parents=True, exist_ok=True)
            if is_first():
                remove_partial(folder)
                remove_partial(folder / "nats")

    def _take(self, record: Record, asked_for: bool) -> None:
        """Keeps a record, unless it is asked for and scored again: its losses are damaged, or it ran out of memory."""
        damage = _damage(self.folder, record) if record.status == "ok" else ""
        if damage and asked_for and is_first():
            logger.warning("%s. Length %d, stride %d is scored again.", damage, *record.pair)
        if record.status == "ok" and not damage and is_first():  # other hosts read no losses while they score
            self.whole.append(record)
        again = damage or record.status == "out of memory"  # there may be more memory now
        if not (again and asked_for):
            self.records.append(record)

    def missing(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Returns those of the pairs that have no record."""
        finished = {record.pair for record in self.records}
        return [pair for pair in pairs if pair not in finished]

    def add(self, record: Record, nats: Nats | None) -> None:
        """Keeps one more record and its losses; its line has the statistics too, for those who have no file of losses.

        Only the first host writes.
        """
        with explained(self.folder):
            if nats is not None:
                record = with_statistics(record, ChainMap({record.pair: nats}, Losses(self.folder, self.whole)))
            self.records.append(record)
            if not is_first():
                return
            if nats is not None:
                save_array(self.folder / record.nats_file, nats)
                self.whole.append(record)
            write_records(self.folder / "sweep.jsonl", self.records)

    def finish(self) -> list[Record]:
        """Returns all records; the first host writes them with the statistics that losses added later have brought."""
        with explained(self.folder):
            losses = Losses(self.folder, self.whole)
            records = [with_statistics(record, losses) for record in self.records]
            if records != self.records and is_first():
                write_records(self.folder / "sweep.jsonl", records)
            self.records = records
        return records
