"""The parts' results joined to one record of a card and day, with its tables, its figure, and a section for the README.

python -m benchmarks.gpu.report --out experiments/results/gpu     # what `make gpu` does at its end
"""

import argparse
import importlib.util
import json
import re
from pathlib import Path

from alibi_jax.storage import write_atomically
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.readme import section
from benchmarks.gpu.tables import Record, contenders_of, latest, page, rows_of


def join(folder: Path) -> Record:
    """Returns part -> its record, of the files in a folder that the card of the latest one wrote; an empty one has none."""
    records = {part: json.loads(path.read_text()) for part in PARTS if (path := folder / f"{part}.json").exists()}
    if not records:
        return {}
    card = card_of(records)
    return {part: record for part, record in records.items() if record["device"]["kind"] == card}


def card_of(record: Record) -> str:
    """Returns jax's name for the device."""
    return latest(record)["device"]["kind"]


def name_of(record: Record) -> str:
    """Returns CARD-DATE, as files are named."""
    card = re.sub(r"[^a-z0-9]+", "-", card_of(record).lower()).strip("-")
    return f"{card}-{latest(record)['date'][:10]}"


def write_figure(record: Record, path: Path) -> bool:
    """Writes the figure, and returns whether it could: it needs timed rows and matplotlib."""
    rows = rows_of(record, "speed")
    if not contenders_of(rows) or importlib.util.find_spec("matplotlib") is None:
        return False
    from alibi_jax.evaluate.axes import png_bytes
    from benchmarks.gpu.plot import speed_figure

    write_atomically(path, png_bytes(speed_figure(rows, card_of(record))))
    return True


def main() -> None:
    """Writes OUT/CARD-DATE.json, .md and .png from OUT/parts/*.json, and prints the README's section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report", description="Joins the parts' results.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    folder = parser.parse_args().out.resolve()
    record = join(folder / "parts")
    if not record:
        raise SystemExit(f"{folder}/parts: got no results, expected those of a part. Run `make gpu`, then this.")
    path = folder / f"{name_of(record)}.json"
    figure = path.with_suffix(".png")
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    drawn = write_figure(record, figure)
    title = f"{card_of(record)}, {latest(record)['date'][:10]}"
    write_atomically(path.with_suffix(".md"), page(title, record, figure.name if drawn else None))
    print(f"{path}, with .md{' and .png' if drawn else '; no figure'}\n\n{section(record, path.with_suffix(''))}")


if __name__ == "__main__":
    main()
