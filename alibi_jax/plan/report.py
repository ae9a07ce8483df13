"""A plan as text for a terminal and as JSON to keep."""

import dataclasses
import importlib.metadata
import json
from collections import defaultdict
from collections.abc import Sequence

from alibi_jax.config import Config
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.plan.bounds import Attention
from alibi_jax.plan.collectives import Collective
from alibi_jax.plan.plan import Cost, Evaluation, Plan

GIB, MIB = 2**30, 2**20
LISTED = 16 * MIB  # collectives of at least so many bytes are listed one by one
EXPLAINED = {
    "compute": "attention, and the other operations, those that are recomputed too, over the bfloat16 peak",
    "memory": "bytes moved over the peak of the chip's memory: an estimate from the compiled program",
    "interconnect": "bytes sent over all of a chip's links at once, one way",
    "network": "bytes sent between slices over the data-centre network, at its rate per chip",
}
KEPT = {
    "all": "all activations kept",
    "products": "layers recomputed in the backward pass except attention and products with weights",
    "attention": "layers recomputed in the backward pass except attention",
    "inputs": "layers recomputed in the backward pass",
}
QUICK = (
    "The memory time comes from this quick compilation and is too long. With --full, XLA optimizes more and keeps more in the "
    "chip's own memory: one program that was compiled both ways moved 123 GB in place of 187."
)


def gib(size: float) -> str:
    """Returns bytes as text in GiB, without the unit."""
    return f"{size / GIB:,.2f}"


def mib(size: float) -> str:
    """Returns bytes as text in MiB, without the unit."""
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"


def milliseconds(seconds: float) -> str:
    """Returns seconds as text in milliseconds, without the unit."""
    return f"{1000 * seconds:,.1f}" if seconds >= 1e-3 else f"{1000 * seconds:.3g}"


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Returns a table as text, its columns aligned to the right, those in `left` to the left."""
    lines = [list(heading), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def mesh_text(mesh: dict[str, int]) -> str:
    """Returns the sizes of a mesh as text, such as "data 1 x fsdp 8"."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _heading(plan: Plan) -> str:
    slices = f", {plan.slices} slices" if plan.slices > 1 else ""
    tokens = plan.batch_size * plan.train_length
    microbatches = f" in {plan.gradient_accumulation} micro-batches" if plan.gradient_accumulation > 1 else ""
    effort = "all of XLA's optimization" if plan.full_effort else "XLA's first level of optimization"
    return "\n".join(
        [
            f"{plan.parameters:,} parameters on {plan.topology} ({plan.device_kind}): {plan.chips:,} chips{slices}, "
            f"mesh {mesh_text(plan.mesh)}",
            f"{plan.batch_size:,} sequences of {plan.train_length:,} tokens per step ({tokens:,} tokens){microbatches}, "
            f"{plan.compute_dtype}, {KEPT[plan.remat]}",
            f"compiled with {effort} in {plan.compile_seconds:.0f} s",
        ]
    )


def _verdict(plan: Plan) -> str:
    if not plan.fits:
        changes = "\n".join(f"  - {change}" for change in plan.advice)
        return (
            f"It does not fit: {gib(plan.memory.peak)} GiB per device, {gib(plan.excess)} GiB more than the "
            f"{gib(plan.memory.limit)} GiB available. To lower it:\n{changes}"
        )
    limit = f", of the {gib(plan.memory.limit)} GiB available" if plan.memory.limit else ""
    return "\n".join([f"It fits: {gib(plan.memory.peak)} GiB per device at the peak{limit}.", *plan.advice])


def _memory(plan: Plan) -> str:
    memory = plan.memory
    kinds = [
        ("parameters", memory.parameters),
        ("moments", memory.moments),
        ("batch", memory.batch),
        ("padding of these arrays", memory.padding),
        ("activations kept for the backward pass", memory.activations),
        ("gradients, gathered weights, logits, copies", memory.other),
        ("peak, the most at once", memory.peak),
        ("beside it: the program itself", memory.code),
    ]
    table = aligned(["memory of a device", "MiB"], [[kind, f"{size / MIB:,.1f}"] for kind, size in kinds])
    if memory.side_by_side <= memory.peak:
        return table
    return (
        f"{table}\nArguments, results and all temporary memory add up to {mib(memory.side_by_side)} MiB. That is more than the "
        "peak, because some share their memory."
    )


def _bounds(plan: Plan, cost: Cost) -> str:
    bounds, flops = cost.bounds, cost.flops
    tokens = plan.batch_size * plan.train_length
    if bounds is None:
        return f"No published peaks for these devices. {mib(cost.hbm_bytes)} MiB moved by each, estimated."
    rows = [[name, milliseconds(seconds), EXPLAINED[name]] for name, seconds in bounds.times.items()]
    rows.insert(1, ["  of it attention", milliseconds(bounds.attention.seconds), _attention(bounds.attention)])
    attention = flops.attention / flops.model
    return "\n".join(
        [
            aligned(["time at best", "ms", "from"], rows, left=(0, 2)),
            f"Bound by {bounds.binds}: {milliseconds(bounds.seconds)} ms, {tokens / bounds.seconds:,.0f} tokens/s, "
            f"{100 * bounds.best_utilisation:.1f} % of the chips' peak (MFU) at most"
            f"{'' if bounds.attention.share == 1 else ', counting the blocks that are visited'}.",
            f"{flops.model / 1e12:,.1f} TFLOP of the model ({flops.per_token / 1e9:,.3f} GFLOP per token, "
            f"{100 * attention:.1f} % attention to every key, even those that ALiBi skips), {flops.recomputed / 1e12:,.1f} "
            "TFLOP recomputed.",
            f"Roofline: {bounds.intensity:,.0f} FLOP per byte of memory traffic ({cost.hbm_bytes / 1e9:,.1f} GB per device); "
            f"the chip's ridge point is {bounds.ridge:,.0f}.",
            *([] if plan.full_effort else [QUICK]),
        ]
    )


def _attention(attention: Attention) -> str:
    blocks = "all blocks of keys" if attention.share == 1 else f"{100 * attention.share:.0f} % of the blocks of keys"
    if attention.by_bundles:
        return f"{blocks}: bundles of the kernels over the chip's clock, without waits for copies"
    return f"{blocks}: operations over the bfloat16 peak"


def _times(collective: Collective) -> str:
    return "?" if collective.times is None else f"{collective.times:,}"


def _sent(collective: Collective) -> float:
    return (collective.times or 0) * collective.sent


def _by_kind(cost: Cost) -> str:
    kinds: dict[tuple, list[Collective]] = defaultdict(list)
    for each in cost.collectives:
        kinds[each.kind, each.axes, each.place].append(each)
    rows = [
        [kind, ", ".join(axes), place, f"{len(group)}", mib(sum(c.bytes for c in group)), mib(sum(map(_sent, group)))]
        for (kind, axes, place), group in sorted(kinds.items(), key=lambda pair: -sum(map(_sent, pair[1])))
    ]
    heading = ["sent, by kind", "over", "how often", "number", "MiB each time", "MiB sent per device and step"]
    total = sum(map(_sent, cost.collectives))
    return aligned(heading, rows, left=(0, 1, 2)) + f"\nEach device sends {mib(total)} MiB in all, on the best ring."


def _listed(cost: Cost) -> str:
    large = sorted((each for each in cost.collectives if each.bytes >= LISTED), key=lambda each: -_sent(each))
    rows = [
        [each.kind, mib(each.bytes), _times(each), mib(_sent(each)), ", ".join(each.axes), each.arrays, each.purpose]
        for each in large
    ]
    heading = [f"over {LISTED // MIB} MiB", "MiB", "times", "MiB sent", "over", "array", "purpose"]
    table = aligned(heading, rows, left=(0, 4, 5, 6)) if rows else f"No collective of {LISTED // MIB} MiB or more."
    unknown = [each for each in cost.collectives if each.times is None]
    if unknown:
        size = mib(sum(each.bytes for each in unknown))
        table += f"\n{len(unknown)} more, {size} MiB, in loops whose passes depend on the data: in no sum and no bound."
    return table


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    rows = []
    for each in evaluations:
        bounds = each.cost.bounds if each.cost else None
        cells = [f"{each.length:,}", f"{each.rows:,}", gib(each.peak), "yes" if each.fits else "no"]
        rows.append([*cells, milliseconds(bounds.seconds) if bounds else "-", bounds.binds if bounds else "-"])
    return aligned(["evaluation at", "windows", "peak GiB", "fits", "ms at best", "bound by"], rows)


def text(plan: Plan) -> str:
    """Returns the whole report of a plan, for a terminal."""
    sections = [_heading(plan), _verdict(plan), _memory(plan)]
    if plan.cost:
        sections += [_bounds(plan, plan.cost), _by_kind(plan.cost), _listed(plan.cost)]
    if plan.evaluations:
        sections.append(_evaluations(plan.evaluations))
    return "\n\n".join(sections)


def search_text(plans: Sequence[Plan]) -> str:
    """Returns a table of a search's plans, one per line, in their order."""
    rows = []
    for plan in plans:
        bounds = plan.cost.bounds if plan.cost else None
        fits = "yes" if plan.fits else f"{gib(plan.excess)} GiB too much"
        best = ["-"] * 3
        if bounds:
            best = [milliseconds(bounds.seconds), bounds.binds, f"{100 * bounds.best_utilisation:.1f}"]
        settings = [f"{plan.batch_size:,}", f"{plan.gradient_accumulation}", plan.remat]
        rows.append([mesh_text(plan.mesh), *settings, gib(plan.memory.peak), fits, *best])
    heading = ["mesh", "batch", "micro-batches", "kept", "peak GiB", "fits", "ms at best", "bound by", "MFU at most, %"]
    return aligned(heading, rows)


def record(plan: Plan) -> dict:
    """Returns a plan as a dict for JSON."""
    return dataclasses.asdict(plan) | {"excess": plan.excess}


def json_text(plans: Sequence[Plan], config: Config, command: str) -> str:
    """Returns plans as JSON, with the command, the config, the versions and the date."""
    origin = provenance()
    try:
        origin["versions"]["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        origin["versions"]["libtpu"] = None
    document = {"command": command, **origin, "config": dataclasses.asdict(config)}
    return json.dumps(document | {"plans": [record(plan) for plan in plans]}, indent=1) + "\n"
