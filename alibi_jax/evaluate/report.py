"""The report of the records of one or more sweeps: page, figure, tables, CSV."""

from collections.abc import Sequence

from alibi_jax.errors import ResultsError
from alibi_jax.evaluate.reader import explained
from alibi_jax.evaluate.records import Record, non_overlapping, sliding
from alibi_jax.evaluate.tables import csv_text, markdown_table
from alibi_jax.storage import Location, locate, write_atomically


def _check(records: Sequence[Record]) -> None:
    splits = sorted({record.split for record in records})
    if len(splits) != 1:
        raise ResultsError(
            f"records: got splits {splits}, expected one or more records of one split. Pass one split's."
        )
    if not any(record.status == "ok" for record in (*non_overlapping(records), *sliding(records)[1])):
        reasons = sorted({f"{record.status}: {record.detail}" for record in records})
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
    """Writes report.html, extrapolation.png, sweep.csv and table.md into `folder`; returns the path of report.html.

    records: of `read_records`, of one split. command: the one that led to them, shown on the page. The page needs no other
    file. Runs whose arrays of nats are not at hand are missing from its figure of loss by position, and only there; an
    array that is damaged is a ResultsError. OSError, with what to do, where the disk fails.
    """
    from alibi_jax.evaluate.axes import png_bytes  # these load matplotlib, which takes a second and only a report needs
    from alibi_jax.evaluate.page import page
    from alibi_jax.evaluate.plots import extrapolation_figure

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
