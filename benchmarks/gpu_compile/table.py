"""The compilers' figures of all cards as one page, in which the tiles that pallas_gpu chooses are bold.

python -m benchmarks.gpu_compile.table FOLDER    # anew, where other tiles are chosen
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from alibi_jax.attention.tiles import Tiles, choose_tiles
from alibi_jax.storage import write_atomically
from benchmarks.gpu_compile.cards import CARDS, Card

COLUMNS = {
    "pass": "pass",
    "dtype": "dtype",
    "width": "D",
    "tiles": "queries x keys, warps, stages",
    "registers": "registers",
    "spills": "spilled, bytes",
    "shared_memory": "shared memory, bytes",
    "blocks_at_once": "blocks at once",
    "matrix_unit": "products by",
    "instructions_per_score": "instructions a score",
}
LEGEND = """Registers and spilled bytes (stores + loads) are those of one thread, from `ptxas -v`. Blocks at once: how many
a multiprocessor holds by registers, shared memory and warps. Instructions a score: what all threads issue for one visit of a
block that needs no mask, over its scores. Products by: the instructions for tensor cores in the PTX, fma where there are
none; \\* ptxas notes that they wait for each other. **Bold**: the tiles that `pallas_gpu` chooses.
Nothing here was timed."""


def line(row: dict[str, Any]) -> str:
    """Returns a row's tiles and figures in words."""
    tiles = _tiles(row)
    if "refused" in row:
        return f"{tiles}: {row['refused']}"
    spilled = f"{row['registers']} registers, {row['spill_stores'] + row['spill_loads']} bytes spilled"
    memory = f"{row['shared_memory']} bytes of shared memory, {row['blocks_at_once']} blocks at once"
    return (
        f"{tiles}: {spilled}, {memory}, {row['matrix_unit']}, {row['instructions_per_score']:.1f} instructions a score"
    )


def tiles_in(row: dict[str, Any]) -> Tiles:
    """Returns the tiles of a row."""
    return Tiles(*(row[name] for name in Tiles._fields))


def chosen_tiles(card: Card, pass_name: str, dtype: str, width: int) -> Tiles:
    """Returns the tiles that pallas_gpu chooses for a pass on a card."""
    return choose_tiles(jnp.dtype(dtype).itemsize, width, card.capability)._asdict()[pass_name]


def markdown(records: list[dict[str, Any]]) -> str:
    """Returns the page: the legend, and of each record what made it and its table."""
    parts = ["# The attention kernels for GPUs, compiled without one", LEGEND]
    cards = {card.name: card for card in CARDS.values()}
    for record in sorted(records, key=lambda record: (record["kernels"], list(cards).index(record["card"]))):
        card = cards[record["card"]]
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        parts.append(f"## {record['kernels']} on {card.name}, compute capability {'{}.{}'.format(*card.capability)}")
        parts.append(f"`{record['command']}`, {record['date'][:10]}, {record['seconds']} s; {versions}.")
        head = [" | ".join(COLUMNS.values()), " | ".join("---" for _ in COLUMNS)]
        rows = [_cells(row, record["kernels"] == "pallas_gpu" and _is_chosen(card, row)) for row in record["rows"]]
        parts.append("\n".join(f"| {text} |" for text in [*head, *rows]))
    return "\n\n".join(parts) + "\n"


def write_page(folder: Path) -> None:
    """Writes FOLDER/results.md from FOLDER/*.json."""
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    write_atomically(folder / "results.md", markdown(records))


def _tiles(row: dict[str, Any]) -> str:
    return f"{row['block_q']} x {row['block_k']}, {row['num_warps']}, {row['num_stages']}"


def _is_chosen(card: Card, row: dict[str, Any]) -> bool:
    return tiles_in(row) == chosen_tiles(card, row["pass"], row["dtype"], row["width"])


def _cells(row: dict[str, Any], bold: bool) -> str:
    tiles = f"**{_tiles(row)}**" if bold else _tiles(row)
    texts = row | {"tiles": tiles}
    if "refused" in row:
        texts |= dict.fromkeys(list(COLUMNS)[4:], "") | {"registers": "too much shared memory"}
    else:
        texts |= {"spills": row["spill_stores"] + row["spill_loads"], "shared_memory": f"{row['shared_memory']:,}"}
        texts["matrix_unit"] += " \\*" if row["serialized"] else ""
        texts["instructions_per_score"] = f"{row['instructions_per_score']:.1f}"
    return " | ".join(str(texts[name]) for name in COLUMNS)


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
