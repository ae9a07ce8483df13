"""The one reader of results: sweep.jsonl, and the losses from which every statistic is computed when they are read."""

import contextlib
import dataclasses
import functools
import io
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.lines import parse_record
from alibi_jax.evaluate.records import Record
from alibi_jax.evaluate.statistics import STATISTICS, Nats, Scored
from alibi_jax.storage import Location, locate

HELD = 4  # arrays of losses held at once: a gain needs three, and a sliding window's come between those of two gains


@contextlib.contextmanager
def explained(folder: Location) -> Iterator[None]:
    """Raises an error of the disk inside as an OSError that names the folder and the way on."""
    try:
        yield
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        raise OSError(
            f"results: could not read or write in {folder}: {error.strerror or error}{name}, expected a writable folder and "
            "room on the disk. Free the disk or choose another --out, then run the same command again; what was finished "
            "before is kept."
        ) from error


def read_lines(path: Location) -> Iterator[tuple[int, Record | ResultsError]]:
    """Yields (number, record, or what is wrong with the line) of every line of a sweep.jsonl that is not empty."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, parse_record(line)
            except ResultsError as error:
                yield number, error


def checksum(nats: Nats) -> int:
    """Returns the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(nats, "<f4"))


def load_nats(path: Location, record: Record) -> Nats:
    """Returns the losses of a record; ResultsError where they are not there, or are not those that were saved."""
    tokens = record.num_tokens
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
    if record.nats_crc32 not in (None, checksum(array)):
        raise ResultsError(f"{path}: got losses of another checksum than recorded, expected those that were saved")
    mean, recorded = float(array.mean(dtype=np.float64)), record.statistics["mean_nats"]
    if not math.isclose(mean, recorded, rel_tol=1e-6, abs_tol=1e-9):
        raise ResultsError(f"{path}: got losses of mean {mean:.6g}, expected {recorded:.6g} as recorded")
    return array


def losses_of(path: Location, record: Record) -> Nats:
    """Returns what `load_nats` returns; its error ends with what to do."""
    try:
        return load_nats(path, record)
    except ResultsError as error:
        raise ResultsError(
            f"{error}. Evaluate again with length {record.length} and stride {record.stride} among those asked for, or remove "
            "the file: then the statistics in sweep.jsonl are used."
        ) from error


class Losses(Mapping[tuple[int, int], Nats]):
    """The losses of one run by (length, stride), those that are at hand; each is loaded when asked for, a few are held."""

    def __init__(self, folder: Location, records: Sequence[Record]) -> None:
        """records: of one run. folder: the one that their files' names begin in."""
        scored = [record for record in records if record.status == "ok"]
        files = {record.pair: (folder / record.nats_file, record) for record in scored}
        self._files = {pair: (path, record) for pair, (path, record) in files.items() if path.is_file()}
        self._load = functools.lru_cache(HELD)(lambda pair: losses_of(*self._files[pair]))

    def __getitem__(self, pair: tuple[int, int]) -> Nats:
        """Returns an array; KeyError where it is not at hand, ResultsError where it is damaged."""
        return self._load(pair)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def with_statistics(record: Record, losses: Mapping[tuple[int, int], Nats]) -> Record:
    """Returns the record with every statistic that its run's losses give; others keep the value on its line, if any."""
    if record.pair not in losses:
        return record
    scored = Scored(record, losses[record.pair], losses)
    values = {name: statistic(scored) for name, statistic in STATISTICS.items()}
    known = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(record, statistics={**record.statistics, **known})


def _lines(path: Location) -> list[tuple[str, Record]]:
    """(place, record) of every line of a sweep.jsonl; ResultsError with the place of one that cannot be read."""
    records = []
    with explained(path.parent):
        for number, line in read_lines(path):
            place = f"{path}, line {number}"
            if isinstance(line, ResultsError):
                raise ResultsError(f"{place}: {line}. Evaluate again: what cannot be read is scored anew.")
            records.append((place, line))
    return records


def _measured(folder: Location, records: Sequence[Record]) -> Iterator[Record]:
    """The records of one folder with their statistics, and with their files named from where the program runs."""
    for _, run in itertools.groupby(records, key=lambda record: (record.run, record.split)):
        run = list(run)
        losses = Losses(folder, run)
        for record in run:
            file = str(folder / record.nats_file) if record.status == "ok" else None
            yield dataclasses.replace(with_statistics(record, losses), nats_file=file)


def read_records(folders: Sequence[str | Location]) -> list[Record]:
    """Returns the records of every folder's sweep.jsonl, in order, with their statistics.

    A statistic is computed from the losses; where their file is not at hand, it is the one on the line, if that has it.
    `nats_file` becomes a path from where the program runs. FileNotFoundError for a folder without a sweep.jsonl; ResultsError
    for a damaged file of losses, a line that is no record, or a second record of the same (run, split, length, stride): two
    runs under one label would be drawn as one.
    """
    records: list[Record] = []
    places: dict[tuple, str] = {}
    for path in (locate(folder) / "sweep.jsonl" for folder in folders):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: got no such file, expected the results of an evaluation. Name a folder that evaluate wrote, such "
                "as WORKDIR/evaluation/valid."
            )
        lines = _lines(path)
        for place, record in lines:
            key = (record.run, record.split, *record.pair)
            if key in places:
                raise ResultsError(
                    f"{place}: got run {key[0]!r} at length {key[2]}, stride {key[3]} again, expected it once (it is "
                    f"in {places[key]}). Give the runs different labels, or pass each folder once."
                )
            places[key] = place
        records += _measured(path.parent, [record for _, record in lines])
    return records
