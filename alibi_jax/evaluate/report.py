"""Read the records of one or more sweeps, and write their report: page, figure, CSV.

A record is one (run, length, stride) of `sweep.jsonl`, a plain dict; its keys are those the sweep writes.
"""

from collections.abc import Sequence

from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.records import Record, explained, non_overlapping, read_lines, sliding
from alibi_jax.evaluate.tables import csv_text, markdown_table
from alibi_jax.storage import Location, locate, write_atomically


def _records(path: Location) -> list[tuple[str, Record]]:
    """(place, record) of every line of a sweep.jsonl; ResultsError with the place of one that cannot be read."""
    records = []
    with explained(path.parent):
        for number, line in read_lines(path):
            place = f"{path}, line {number}"
            if isinstance(line, ResultsError):
                raise ResultsError(f"{place}: {line}. Evaluate again: what cannot be read is scored anew.")
            records.append((place, line))
    return records


def read_records(folders: Sequence[str | Location]) -> list[Record]:
    """The records of every folder's sweep.jsonl, in order; `nats_file` is made relative to where the program runs.

    Raises FileNotFoundError for a folder without one, and ResultsError that names file and line for a corrupt line or
    for a second record of the same (run, split, length, stride): two runs under one label would be drawn as one.
    """
    records: list[Record] = []
    places: dict[tuple, str] = {}
    for path in (locate(folder) / "sweep.jsonl" for folder in folders):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: got no such file, expected the results of an evaluation. Run evaluate.")
        for place, record in _records(path):
            key = (record["run"], record.get("split"), record["length"], record["stride"])
            if key in places:
                raise ResultsError(
                    f"{place}: got run {key[0]!r} at length {key[2]}, stride {key[3]} again, expected it once (it is "
                    f"in {places[key]}). Give the runs different labels, or pass each folder once."
                )
            places[key] = place
            if record.get("nats_file"):
                record["nats_file"] = str(path.parent / record["nats_file"])
            records.append(record)
    return records


def _check(records: Sequence[Record]) -> None:
    splits = sorted({str(record.get("split")) for record in records})
    if len(splits) != 1:
        raise ResultsError(
            f"records: got splits {splits}, expected one or more records of one split. Pass one split's."
        )
    if not any(record["status"] == "ok" for record in (*non_overlapping(records), *sliding(records)[1])):
        reasons = sorted({f"{record['status']}: {record['detail']}" for record in records})
        raise ResultsError(
            f"records: got none scored ({'; '.join(reasons[:3])}), expected one or more. Evaluate at shorter lengths, or a "
            "longer text."
        )


def _make(folder: Location) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(
            f"out: got {folder}, which cannot be written ({error.strerror or error}), expected a writable folder. "
            "Choose another --out or free the disk."
        ) from error


def write_report(records: Sequence[Record], folder: str | Location, title: str, command: str) -> Location:
    """Write report.html, extrapolation.png, sweep.csv and table.md into `folder`; returns the path of report.html.

    records: of `read_records`, of one split. command: what made them, shown on the page. The page needs no other
    file. Runs whose arrays of nats are not at hand are missing from its figure of loss by position, and only there; an
    array that is damaged is a ResultsError. OSError, with what to do, where the disk fails.
    """
    from alibi_jax.evaluate.page import page  # both load matplotlib, which takes a second and only a report needs
    from alibi_jax.evaluate.plots import extrapolation_figure, png_bytes

    _check(records)
    folder = locate(folder)
    _make(folder)
    picture = png_bytes(extrapolation_figure(records))
    text = page(records, title, command, picture)
    with explained(folder):
        write_atomically(folder / "sweep.csv", csv_text(records))
        write_atomically(folder / "table.md", markdown_table(records) + "\n")
        write_atomically(folder / "extrapolation.png", picture)
        write_atomically(folder / "report.html", text)
    return folder / "report.html"
