"""The parts' results joined to one file a card and day."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from alibi_jax.storage import write_atomically


def join(folder: Path) -> dict[str, Any]:
    """Returns part -> its record, of the files that are in a folder."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main() -> None:
    """Writes OUT/CARD-DATE.json from OUT/parts/*.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report", description="Joins the parts' results.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    out = parser.parse_args().out
    parts = join(out / "parts")
    last = max(parts.values(), key=lambda record: record["started"])
    card = re.sub(r"[^a-z0-9]+", "-", last["device"]["kind"].lower()).strip("-")
    path = out / f"{card}-{last['date'][:10]}.json"
    write_atomically(path, json.dumps(parts, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
