"""Read the records of one or more sweeps, and write their report: page, figure, CSV.

A record is one (run, length, stride) of `sweep.jsonl`, a plain dict; its keys are those the sweep writes.
"""

import json
from collections.abc import Sequence

from alibi_jax.evaluate.page import page
from alibi_jax.evaluate.plots import Record, extrapolation_figure, non_overlapping, png_bytes
from alibi_jax.evaluate.statistics import ResultsError
from alibi_jax.evaluate.tables import csv_text, markdown_table
from alibi_jax.storage import Location, locate, write_atomically


def _read_line(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ResultsError(
            f"{place}: got text that is not JSON ({error}), expected a record. Evaluate again."
        ) from error
    missing = {"run", "position", "train_length", "length", "stride", "status"} - set(record)
    if missing:
        raise ResultsError(f"{place}: got a record without {sorted(missing)}, expected them. Evaluate again.")
    return record


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
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            place = f"{path}, line {number}"
            record = _read_line(line, place)
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
    if not any(record["status"] == "ok" for record in non_overlapping(records)):
        raise ResultsError(
            "records: got none scored with non-overlapping windows, expected one or more. Evaluate with stride L."
        )


def write_report(records: Sequence[Record], folder: str | Location, title: str, command: str) -> Location:
    """Write report.html, extrapolation.png, sweep.csv and table.md into `folder`; returns the path of report.html.

    records: of `read_records`, of one split. command: what made them, shown on the page. The page needs no other
    file. Runs whose arrays of nats are not at hand are missing from its figure of loss by position, and only there.
    """
    _check(records)
    folder = locate(folder)
    picture = png_bytes(extrapolation_figure(records))
    text = page(records, title, command, picture)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "sweep.csv", csv_text(records))
    write_atomically(folder / "table.md", markdown_table(records) + "\n")
    write_atomically(folder / "extrapolation.png", picture)
    write_atomically(folder / "report.html", text)
    return folder / "report.html"
