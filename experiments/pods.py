"""What would the paper's largest model cost to train on pods, and what would bound it there?

  python -m experiments.pods                          # every row that is not yet in the results
  python -m experiments.pods --only v5e-256 --again   # one row anew

Each row compiles the whole train step of configs/cc100_1b3.py with the TPU's own compiler, on any machine and without a TPU,
and reads the program (alibi_jax/plan). Peak memory is the compiler's. Times are lower bounds from published peaks: they say
what cannot be, and nothing here was run.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tyro

from alibi_jax.config import Config, load_config, replace
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.evaluate.tables import markdown
from alibi_jax.plan.plan import plan
from alibi_jax.plan.reach import every_block, share_of
from alibi_jax.plan.report import gib, mesh_text, mib, milliseconds, record
from alibi_jax.plan.topology import find_topology
from alibi_jax.run.command import exit_with
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from experiments.grid import read_kept

RECIPE = Path(__file__).parents[1] / "configs" / "cc100_1b3.py"
REACH = Path(__file__).parent / "results" / "reach" / "reach.csv"
LISTED = 16 * 2**20  # bytes of the collectives listed
ROWS_A_CHIP = 2  # sequences, in weak scaling


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan: the recipe at a length and a batch, on a topology."""

    topology: str
    mesh: tuple[int, ...]  # sizes of the mesh's axes
    batch: int  # sequences
    length: int = 2048  # tokens
    slices: int = 1
    with_reach: bool = False  # attention visits the share of blocks that REACH says, not all

    def config(self, recipe: Config) -> Config:
        """Returns the recipe's config with this row's length, batch and mesh."""
        axes = [field.name for field in dataclasses.fields(recipe.mesh)]
        config = replace(recipe, "train", train_length=self.length, batch_size=self.batch)
        return replace(config, "mesh", **dict(zip(axes, self.mesh, strict=True)))


PODS = {
    "v5e-256 as the recipe has it": Row("v5e:16x16", (1, 256, 1, 1), 512),
    "v5e-256": Row("v5e:16x16", (1, 64, 4, 1), 512),
    "v5p-128": Row("v5p:4x4x4", (1, 64, 1, 1), 512),
    "v6e-256": Row("v6e:16x16", (1, 128, 2, 1), 512),
    "v5p-4096": Row("v5p:8x16x16", (8, 64, 4, 1), 512),
    "v5e-256 x 8 slices": Row("v5e:16x16", (8, 64, 4, 1), 512, slices=8),
    "v5e-256, 65,536 tokens": Row("v5e:16x16", (1, 16, 1, 16), 16, length=65_536),
    "v5e-256, 65,536 tokens, reach": Row("v5e:16x16", (1, 16, 1, 16), 16, length=65_536, with_reach=True),
}
SHAPES = ("2x2x2", "2x4x4", "4x4x4", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
LARGEST_SPLIT = 64  # devices parameters are split over in weak scaling; beyond, they are kept several times


def weak_scaling() -> dict[str, Row]:
    """Returns plans with the batch in proportion to the chips: what a chip does stays, what it sends may grow."""
    rows = {}
    for shape in SHAPES:
        chips = find_topology(f"v5p:{shape}").chips
        split = min(chips, LARGEST_SPLIT)
        rows[f"weak, {chips:,}"] = Row(f"v5p:{shape}", (chips // split, split, 1, 1), ROWS_A_CHIP * chips)
    return rows


def cells(name: str, planned: dict) -> list[str]:
    """Returns a row of the table, from a plan's record."""
    memory = planned["memory"]
    cost = planned["cost"]
    tokens = f"{planned['batch_size']:,} x {planned['train_length']:,}"
    facts = [
        name,
        planned["topology"],
        f"{planned['chips']:,}",
        mesh_text(planned["mesh"]),
        tokens,
        planned["remat"],
        gib(memory["peak"]),
    ]
    if cost is None:
        return [*facts, *["-"] * 5, f"does not fit: {gib(planned['excess'])} GiB too much", "-", "-"]
    bounds = cost["bounds"]
    times = {
        kind: bounds[kind] for kind in ("compute", "memory", "interconnect", "network") if bounds[kind] is not None
    }
    columns = [milliseconds(times["compute"]), milliseconds(bounds["attention"]["seconds"])]
    columns += [milliseconds(times[kind]) if kind in times else "-" for kind in ("memory", "interconnect", "network")]
    effort = "full" if planned["full_effort"] else "quick"
    return [*facts, *columns, max(times, key=times.get), f"{100 * bounds['best_utilisation']:.0f}", effort]


HEADING = [
    *("plan", "topology", "chips", "mesh", "sequences x tokens", "layers keep", "peak, GiB"),
    *(
        "compute, ms",
        "of it attention",
        "memory, ms",
        "interconnect, ms",
        "network, ms",
        "bound by",
        "MFU at most, %",
        "compiled",
    ),
]


def shortened(planned: dict) -> dict:
    """Returns a plan's record with its large collectives alone."""
    if planned["cost"] is None:
        return planned
    large = [each for each in planned["cost"]["collectives"] if each["bytes"] >= LISTED]
    return planned | {"cost": planned["cost"] | {"collectives": large}}


def large_collectives(planned: dict) -> str:
    """Returns the table of a plan's collectives over 16 MiB."""
    rows = [
        [each["purpose"], each["kind"], each["arrays"], mib(each["bytes"]), each["place"], ", ".join(each["axes"])]
        for each in sorted(planned["cost"]["collectives"], key=lambda each: -each["bytes"] * (each["times"] or 1))
    ]
    return markdown(["what it is", "kind", "array", "MiB", "how often", "over"], rows) if rows else "None."


@dataclasses.dataclass(frozen=True)
class Pods:
    """Plans of the 1.3-billion recipe on pods."""

    out: Path = Path(__file__).parent / "results" / "pods"  # folder of results.md and plans.json
    only: tuple[str, ...] = ()  # names of rows; empty: all
    again: bool = False  # also those already there
    quick: bool = False  # XLA's first level of optimization: peaks are nearly right, what is moved to memory is not

    def missing(self, rows: dict[str, Row], kept: dict) -> Iterator[tuple[str, Row]]:
        """Yields the rows that are asked for and not in the results yet."""
        for name, row in rows.items():
            wanted = not self.only or name in self.only
            is_kept = name in kept and kept[name]["row"] == json.loads(json.dumps(dataclasses.asdict(row)))
            is_kept = is_kept and (self.quick or kept[name]["plan"]["full_effort"])
            if wanted and (self.again or not is_kept):
                yield name, row

    def __call__(self) -> str:
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / "plans.json"
        recipe = load_config(RECIPE)
        rows = PODS | weak_scaling()
        kept = read_kept(file, {})
        for name, row in self.missing(rows, kept):
            share = share_of(REACH) if row.with_reach else every_block
            topology = find_topology(row.topology, row.slices)
            planned = plan(row.config(recipe), topology, full=not self.quick, share=share)
            command = recorded_command()
            kept[name] = {
                "row": dataclasses.asdict(row),
                "plan": shortened(record(planned)),
                "command": command,
                **provenance(),
            }
            write_atomically(file, json.dumps(kept, indent=1) + "\n")
            print(" | ".join(cells(name, kept[name]["plan"])), flush=True)
        page = results([name for name in rows if name in kept], kept)
        write_atomically(self.out / "results.md", page)
        return page


def results(names: Sequence[str], kept: dict) -> str:
    """Returns the text of results.md: the tables, and where they come from."""
    heading = [*HEADING, "on"]
    table = {name: [*cells(name, kept[name]["plan"]), kept[name]["date"][:10]] for name in names}
    weak = [name for name in names if name.startswith("weak")]
    sections = {
        "A million tokens a step": markdown(heading, [table[name] for name in names if name not in weak]),
        f"Weak scaling, {ROWS_A_CHIP} sequences a chip": markdown(heading, [table[name] for name in weak]),
    }
    for name in names:
        if name not in weak and kept[name]["plan"]["cost"]:
            sections[f"What is sent, over 16 MiB: {name}"] = large_collectives(kept[name]["plan"])
    last = kept[names[-1]]
    versions = ", ".join(f"{package} {version}" for package, version in last["versions"].items())
    compiled = sum(kept[name]["plan"]["compile_seconds"] for name in names)
    sections["Where the numbers come from"] = "\n\n".join(
        [
            f"`{last['command']}`; configs/cc100_1b3.py at the lengths and batches shown; {versions}; "
            f"{compiled / 60:.0f} minutes of compiling on CPU cores.",
            "Peak memory is what the TPU's compiler checks against the memory of a device. Compute counts attention, and the "
            "other operations, those done twice too (remat, logits in chunks), over the published bfloat16 peak. Attention "
            "takes the bundles of its kernels over the chip's clock, without waits for copies, or its operations over the "
            "peak where a chip has no such figures. Memory counts the bytes the compiled program moves, estimated from its "
            "text; interconnect and network the bytes a chip sends over all its links one way, and over its fraction of the "
            "data-centre network. They are lower bounds of these programs: nothing was run.",
            "Attention visits all blocks up to the diagonal, except in the row named reach: there as many as the small model "
            "that visits most (experiments/results/reach). How many this model's heads would visit is not known. MFU then "
            "counts what is visited.",
            "Attention's time is by the bundles of 2026-11-28 in every row; all else is of the program compiled on the day "
            "shown.",
            "8 and 32 chips are bound by memory because there the compiler passes weights from chip to chip while it "
            "multiplies and writes a product's output anew with each: 4 or 16 times. v5p-128 has 64 chips, v5p-4096 2,048: "
            "v5p is named by its cores.",
        ]
    )
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items())
    return f"# The 1.3-billion recipe on pods, planned\n\n{body}\n"


if __name__ == "__main__":
    exit_with(lambda: tyro.cli(Pods))
