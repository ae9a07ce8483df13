"""A plan as text for a terminal and as JSON to keep."""

import dataclasses
import importlib.metadata
import json
from collections import defaultdict
from collections.abc import Sequence

from alibi_jax.config import Config
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.plan.collectives import Collective
from alibi_jax.plan.plan import Cost, Evaluation, Plan

GIB, MIB = 2**30, 2**20
LISTED = 16 * MIB  # collectives of this many bytes are listed one by one
EXPLAINED = {
    "compute": "operations over the peak in bfloat16: the model's, attention to all keys among them, and what is done twice",
    "memory": "bytes moved over the peak of the chip's memory: an estimate from the compiled program",
    "interconnect": "bytes sent over all of a chip's links at once, one way",
    "network": "bytes sent between slices over a chip's share of the data-centre network",
}
KEPT = {
    "all": "all activations kept",
    "products": "layers computed again backward but for attention and products with weights",
    "attention": "layers computed again backward but for attention",
    "inputs": "layers computed again backward",
}
QUICK = (
    "The memory time is this quick compile's, and too long: all of XLA's optimization (--full) keeps more in the chip's own "
    "memory, and moved 123 GB instead of 187 where both were tried."
)


def gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def mib(size: float) -> str:
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds >= 1e-3 else f"{1000 * seconds:.3g}"


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """A table in columns, to the right but for those in `left`."""
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
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _heading(plan: Plan) -> str:
    slices = f", {plan.slices} slices" if plan.slices > 1 else ""
    tokens = plan.batch_size * plan.train_length
    parts = f" in {plan.gradient_accumulation} parts" if plan.gradient_accumulation > 1 else ""
    effort = "all of XLA's optimization" if plan.full_effort else "XLA's first level of optimization"
    return "\n".join(
        [
            f"{plan.parameters:,} parameters on {plan.topology} ({plan.device_kind}): {plan.chips:,} chips{slices}, "
            f"mesh {mesh_text(plan.mesh)}",
            f"{plan.batch_size:,} sequences of {plan.train_length:,} tokens a step ({tokens:,} tokens){parts}, "
            f"{plan.compute_dtype}, {KEPT[plan.remat]}",
            f"compiled with {effort} in {plan.compile_seconds:.0f} s",
        ]
    )


def _verdict(plan: Plan) -> str:
    if not plan.fits:
        changes = "\n".join(f"  - {change}" for change in plan.advice)
        return (
            f"It does not fit: {gib(plan.memory.peak)} GiB a device, {gib(plan.excess)} GiB more than the "
            f"{gib(plan.memory.limit)} there are. What would lower it:\n{changes}"
        )
    limit = f" of the {gib(plan.memory.limit)} GiB a program may have" if plan.memory.limit else ""
    return f"It fits: {gib(plan.memory.peak)} GiB a device at the peak{limit}."


def _memory(plan: Plan) -> str:
    memory = plan.memory
    kinds = [
        ("parameters", memory.parameters),
        ("moments", memory.moments),
        ("batch", memory.batch),
        ("these arrays' padding", memory.padding),
        ("activations kept for the backward pass", memory.activations),
        ("gradients, gathered weights, logits, copies", memory.other),
        ("the program", memory.code),
        ("peak, of what is there at once", memory.peak),
    ]
    return aligned(["memory of a device", "MiB"], [[kind, f"{size / MIB:,.1f}"] for kind, size in kinds])


def _bounds(plan: Plan, cost: Cost) -> str:
    bounds, flops, tokens = cost.bounds, cost.flops, plan.batch_size * plan.train_length
    if bounds is None:
        return f"No published peaks for these devices. {mib(cost.hbm_bytes)} MiB moved by each, estimated."
    rows = [[name, milliseconds(seconds), EXPLAINED[name]] for name, seconds in bounds.times.items()]
    attention = flops.attention / flops.model
    return "\n".join(
        [
            aligned(["time at best", "ms", "from"], rows, left=(0, 2)),
            f"Bound by {bounds.binds}: {milliseconds(bounds.seconds)} ms, {tokens / bounds.seconds:,.0f} tokens a second, "
            f"{100 * bounds.best_utilisation:.1f} % of the chips' peak (MFU) at most.",
            f"{flops.model / 1e12:,.1f} TFLOP of the model ({flops.per_token / 1e9:,.3f} GFLOP a token, "
            f"{100 * attention:.1f} % attention to all keys, also those ALiBi skips), {flops.recomputed / 1e12:,.1f} TFLOP "
            "computed twice.",
            f"Roofline: {bounds.intensity:,.0f} FLOP for each byte of memory traffic ({cost.hbm_bytes / 1e9:,.1f} GB a "
            f"device); the chip balances at {bounds.ridge:,.0f}.",
            *([] if plan.full_effort else [QUICK]),
        ]
    )


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
    heading = ["sent, by kind", "over", "place", "number", "MiB each time", "MiB a device sends a step"]
    total = sum(map(_sent, cost.collectives))
    return aligned(heading, rows, left=(0, 1, 2)) + f"\n{mib(total)} MiB a device sends in all, on the best ring."


def _listed(cost: Cost) -> str:
    large = sorted((each for each in cost.collectives if each.bytes >= LISTED), key=lambda each: -_sent(each))
    rows = [
        [each.kind, mib(each.bytes), _times(each), mib(_sent(each)), ", ".join(each.axes), each.arrays, each.purpose]
        for each in large
    ]
    heading = [f"over {LISTED // MIB} MiB", "MiB", "times", "MiB sent", "over", "array", "what it is"]
    table = aligned(heading, rows, left=(0, 4, 5, 6)) if rows else f"None of {LISTED // MIB} MiB or more."
    unknown = [each for each in cost.collectives if each.times is None]
    if unknown:
        size = mib(sum(each.bytes for each in unknown))
        table += f"\n{len(unknown)} more, {size} MiB, in loops as long as the data ask: counted in no sum and no bound."
    return table


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    rows = []
    for each in evaluations:
        bounds = each.cost.bounds if each.cost else None
        said = [f"{each.length:,}", f"{each.rows:,}", gib(each.peak), "yes" if each.fits else "no"]
        rows.append([*said, milliseconds(bounds.seconds) if bounds else "-", bounds.binds if bounds else "-"])
    return aligned(["evaluation at", "windows", "peak GiB", "fits", "ms at best", "bound by"], rows)


def text(plan: Plan) -> str:
    """All of a plan, for a terminal."""
    parts = [_heading(plan), _verdict(plan), _memory(plan)]
    if plan.cost:
        parts += [_bounds(plan, plan.cost), _by_kind(plan.cost), _listed(plan.cost)]
    if plan.evaluations:
        parts.append(_evaluations(plan.evaluations))
    return "\n\n".join(parts)


def search_text(plans: Sequence[Plan]) -> str:
    """Candidates in order, one a line."""
    rows = []
    for plan in plans:
        bounds = plan.cost.bounds if plan.cost else None
        fits = "yes" if plan.fits else f"{gib(plan.excess)} GiB too much"
        best = (
            [milliseconds(bounds.seconds), bounds.binds, f"{100 * bounds.best_utilisation:.1f}"]
            if bounds
            else ["-"] * 3
        )
        settings = [f"{plan.batch_size:,}", f"{plan.gradient_accumulation}", plan.remat]
        rows.append([mesh_text(plan.mesh), *settings, gib(plan.memory.peak), fits, *best])
    heading = ["mesh", "batch", "parts", "kept", "peak GiB", "fits", "ms at best", "bound by", "MFU at most, %"]
    return aligned(heading, rows)


def record(plan: Plan) -> dict:
    """A plan as JSON has it."""
    return dataclasses.asdict(plan) | {"excess": plan.excess}


def json_text(plans: Sequence[Plan], config: Config, command: str) -> str:
    """Plans with the command, the config, the versions and the date that made them."""
    said = provenance()
    try:
        said["versions"]["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        said["versions"]["libtpu"] = None
    made = {"command": command, **said, "config": dataclasses.asdict(config), "plans": [record(plan) for plan in plans]}
    return json.dumps(made, indent=1) + "\n"
