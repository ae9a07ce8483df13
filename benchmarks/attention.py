"""Speed, error and memory of ALiBi attention, causal, float32, beside PyTorch's two ways of computing it on the same cores.

All take turns in one run; a time is the median of several turns, after one that is not timed. Forward is one call;
forward+backward is the gradient of sum(out * a fixed random array) with respect to q, k and v. Every contender's first
outputs are compared with a dense float64 computation: of all rows up to CHECKED tokens, of random rows above.

The peers as they are here, in their favour: q, k, v already contiguous as [B, H, L, D]; the [1, H, L, L] mask of SDPA
(bias, and -inf above the diagonal) and the block mask of FlexAttention made outside the timing; one compilation for each
shape, outside it too; no autograd graph in the forward. FlexAttention has no backward pass on a CPU.

Peak memory is measured in a process of its own, as the highest resident size during the first call above that just
before it, the program compiled and q, k, v in place; it holds the outputs too. (Not by ru_maxrss, which a process
inherits from the one that started it, and which compiling raises: VmHWM, set back before the call. Linux only.)
"""

import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from alibi_jax import LinearBias, alibi_slopes, attend
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from benchmarks.shapes import LENGTHS

Direction = Literal["forward", "forward+backward"]
Call = Callable[[], tuple]  # (out,) or (dq, dk, dv): JAX arrays [1, L, H, D] or tensors [1, H, L, D]
Arrays = tuple[np.ndarray, ...]  # q, k, v and what the gradient weighs out by, each float32 [1, L, H, D]

OURS = "blockwise"
CHECKED, SAMPLED = 4096, 256  # compared with float64: every row up to this length, so many random ones above
# Of out, for outputs up to 1 (for larger ones so many times more); of gradients, over the largest. About 1e-6 is seen.
LARGEST_ERROR = 1e-4
PAUSE = 0.1  # seconds between turns, so that the threads of the one before are asleep
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Options:
    """ALiBi attention of alibi_jax and of PyTorch, in turns."""

    lengths: tuple[int, ...] = LENGTHS  # tokens
    backward_up_to: int = 32768  # the longest length of forward+backward, tokens
    dense_up_to: int = 8192  # the longest for SDPA, whose mask takes 4 H L^2 bytes
    flex_up_to: int = 32768  # the longest for FlexAttention, tokens
    unskipped_up_to: int = 16384  # the longest for ours with nothing skipped
    memory_lengths: tuple[int, ...] = (16384, 32768, 65536)  # tokens at which our peak memory is measured
    repeats: int = 7  # timed turns of each up to 4,096 tokens
    long_repeats: int = 3  # timed turns of each above
    num_heads: int = 8  # where the inputs are random
    head_width: int = 64  # the same
    inputs: Path | None = None  # .npz with q, k, v [1, L, H, D], of a trained model; normal random ones without
    memory_of: Direction | None = None  # only measure our peak memory, at the first of `lengths`, in this process
    out: Path | None = None  # also write the results there, as JSON


def read_inputs(options: Options) -> Arrays:
    """q, k, v of the file, or normal random ones of the longest length; and the fixed random array."""
    rng = np.random.default_rng(0)
    shape = 1, max(options.lengths + options.memory_lengths), options.num_heads, options.head_width
    if options.inputs is None:
        arrays = [rng.standard_normal(shape, np.float32) for _ in range(3)]
    else:
        with np.load(options.inputs) as file:
            arrays = [file[name].astype(np.float32) for name in "qkv" if name in file]
        got = [x.shape for x in arrays]
        shape = got[0] if got else ()
        if got != [shape] * 3 or len(shape) != 4 or shape[0] != 1 or shape[1] < min(options.lengths):
            raise ValueError(
                f"{options.inputs}: got arrays {got}, expected q, k, v of one shape [1, L, H, D], L at least "
                f"{min(options.lengths)}. Save all three, of one long sequence, or give shorter --lengths."
            )
    return *arrays, rng.standard_normal(shape, np.float32)


def make_ours(direction: Direction, arrays: Arrays, reach_tolerance: Any = "auto") -> Callable[[Callable], Call]:
    """attend, compiled for these arrays but not yet called."""
    *inputs, weight = map(jnp.asarray, arrays)
    bias = LinearBias(jnp.asarray(alibi_slopes(weight.shape[2])))
    forward = functools.partial(attend, bias=bias, implementation=OURS, reach_tolerance=reach_tolerance)
    gradient = jax.grad(lambda weight, *inputs: (forward(*inputs) * weight).sum(), argnums=(1, 2, 3))
    function = {"forward": lambda weight, *inputs: (forward(*inputs),), "forward+backward": gradient}[direction]
    compiled = jax.jit(function).lower(weight, *inputs).compile()
    return lambda: jax.block_until_ready(compiled(weight, *inputs))


def make_peer(direction: Direction, arrays: Arrays, forward: Callable) -> Call:
    """The same of a function (q, k, v) -> out of tensors [1, H, L, D]."""
    *inputs, weight = (torch.tensor(x).transpose(1, 2).contiguous() for x in arrays)

    def take_forward() -> tuple:
        with torch.no_grad():
            return (forward(*inputs),)

    def take_gradient() -> tuple:
        return torch.autograd.grad((forward(*inputs) * weight).sum(), inputs)

    for x in inputs:
        x.requires_grad_(direction == "forward+backward")
    return {"forward": take_forward, "forward+backward": take_gradient}[direction]


def make_sdpa(slopes: torch.Tensor, length: int) -> Callable:
    """SDPA with a dense mask, written in place: at 8,192 tokens and 8 heads it takes 2 GiB."""
    distances = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    mask = torch.empty(1, len(slopes), length, length)
    for head, slope in enumerate(slopes):
        torch.mul(distances, -slope, out=mask[0, head]).masked_fill_(distances < 0, -torch.inf)
    return functools.partial(scaled_dot_product_attention, attn_mask=mask)


def make_flex(slopes: torch.Tensor, length: int) -> Callable:
    """FlexAttention, compiled for this shape alone; so is its block mask, which takes 10 L^2 bytes to make otherwise."""
    torch._dynamo.reset()  # it runs uncompiled after eight shapes of one function
    make_mask = torch.compile(create_block_mask, dynamic=False)
    mask = make_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return functools.partial(compiled, score_mod=lambda s, b, h, q, k: s - slopes[h] * (q - k), block_mask=mask)


def make_contenders(options: Options, direction: Direction, arrays: Arrays) -> dict[str, Call]:
    """Those that can serve this length, by name."""
    length, slopes = arrays[0].shape[1], torch.tensor(alibi_slopes(arrays[0].shape[2]))
    contenders = {OURS: make_ours(direction, arrays)}
    if length <= options.unskipped_up_to:
        contenders[f"{OURS}, nothing skipped"] = make_ours(direction, arrays, reach_tolerance=None)
    if length <= options.dense_up_to:
        contenders["SDPA + bias"] = make_peer(direction, arrays, make_sdpa(slopes, length))
    if length <= options.flex_up_to and direction == "forward":
        contenders["FlexAttention"] = make_peer(direction, arrays, make_flex(slopes, length))
    return contenders


def exact(arrays: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    """[out of these rows, and dq, dk, dv of their sum], float64 [L or number of rows, H, D], dense, a head at a time."""
    heads = []
    for head, slope in enumerate(alibi_slopes(arrays[0].shape[2]).tolist()):
        q, k, v, weight = (torch.tensor(x[0, :, head], dtype=torch.float64, requires_grad=True) for x in arrays)
        distances = torch.tensor(rows)[:, None] - torch.arange(len(k))[None, :]
        scores = (q[rows] @ k.T / q.shape[1] ** 0.5 - slope * distances).masked_fill(distances < 0, -torch.inf)
        out = scores.softmax(-1) @ v
        heads.append([out, *torch.autograd.grad((out * weight[rows]).sum(), (q, k, v))])
    return [torch.stack(parts, 1).detach().numpy() for parts in zip(*heads, strict=True)]


def errors_of(direction: Direction, arrays: Arrays, outputs: dict[str, tuple]) -> dict[str, float]:
    """Returns the largest error of each against float64: of out, absolute; or of dq (dk and dv too where all rows are
    compared), relative to the largest gradient. ValueError where one is too large."""
    length, errors = arrays[0].shape[1], {}
    sample = np.random.default_rng(length).permutation(length)[: length if length <= CHECKED else SAMPLED]
    rows = np.sort(sample)
    out, dq, dk, dv = exact(arrays, rows)
    wanted = [out] if direction == "forward" else [dq[rows], dk, dv][: 3 if len(rows) == length else 1]
    for name, got in outputs.items():
        got = [np.asarray(x.transpose(1, 2) if isinstance(x, torch.Tensor) else x)[0] for x in got]
        got = [got[0][rows], *got[1:]]
        scales = [1.0 if direction == "forward" else abs(x).max() for x in wanted]
        parts = [abs(x - y).max() / scale for x, y, scale in zip(got, wanted, scales, strict=False)]
        errors[name] = float(np.max(parts))  # unlike max, it keeps NaN
    limit = LARGEST_ERROR * (max(1.0, abs(out).max()) if direction == "forward" else 1.0)
    if not all(error <= limit for error in errors.values()):
        raise ValueError(
            f"{direction} at {length} tokens: got errors {errors}, expected at most {limit:.1e}. "
            "They do not compute the same attention: correct the one that is off before timing it."
        )
    return errors


def measure(options: Options, direction: Direction, arrays: Arrays) -> dict[str, Any]:
    """All at one length, in turns: each one's median milliseconds, their range, its time over ours, and its error."""
    length = arrays[0].shape[1]
    contenders = make_contenders(options, direction, arrays)
    errors = errors_of(direction, arrays, {name: take() for name, take in contenders.items()})
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repeats if length <= 4096 else options.long_repeats):
        for name, take in contenders.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            take()
            times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(part) for name, part in times.items()}
    return {
        "direction": direction,
        "length": length,
        "milliseconds": medians,
        "fastest_and_slowest": {name: (min(part), max(part)) for name, part in times.items()},
        "times_ours": {name: median / medians[OURS] for name, median in medians.items()},
        "largest_error": errors,
    }


def table(result: dict[str, Any]) -> str:
    """The lines of one length: each contender's time, its range, its time over ours, and its error."""
    columns = [result[name] for name in ("milliseconds", "fastest_and_slowest", "times_ours", "largest_error")]
    where, lines = f"{result['direction']:<17}{result['length']:>7,}", []
    for name, ms, (fastest, slowest), ratio, error in zip(columns[0], *(x.values() for x in columns), strict=True):
        lines.append(f"{where} {name:<27}{ms:>11,.1f}{fastest:>11,.1f}{slowest:>11,.1f}{ratio:>8.2f}{error:>10.1e}")
    return "\n".join(lines)


def growth(results: list[dict[str, Any]], direction: Direction) -> dict[int, float]:
    """time(2L) / time(L) of ours, by L: 2 where time is linear in length, 4 where it is quadratic."""
    times = {row["length"]: row["milliseconds"][OURS] for row in results if row["direction"] == direction}
    return {length: times[2 * length] / times[length] for length in sorted(times) if 2 * length in times}


def resident(name: Literal["VmRSS", "VmHWM"]) -> float:
    """This process's resident size in MiB: now (VmRSS) or at its highest (VmHWM)."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def memory_here(direction: Direction, arrays: Arrays) -> dict[str, Any]:
    """Our peak memory in this process, in MiB, and the size of q, k and v."""
    take = make_ours(direction, arrays)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    take()
    sizes = {"peak_above_mib": resident("VmHWM") - before, "qkv_mib": sum(x.nbytes for x in arrays[:3]) / MIB}
    return {"direction": direction, "length": arrays[0].shape[1], **sizes, "before_mib": before}


def memory_apart(options: Options, direction: Direction, length: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", direction, "--lengths", str(length), "--memory-lengths"]
    command += [str(length), "--num-heads", str(options.num_heads), "--head-width", str(options.head_width)]
    command += [] if options.inputs is None else ["--inputs", str(options.inputs)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def memory_line(row: dict[str, Any]) -> str:
    """One line of the table of memory."""
    sizes = f"peak {row['peak_above_mib']:,.0f} MiB above the {row['before_mib']:,.0f} MiB before; q, k, v"
    return f"{row['direction']:<17}{row['length']:>7,} {OURS}: {sizes} {row['qkv_mib']:,.0f} MiB"


def main(options: Options) -> None:
    """Prints the tables, and writes them where asked to, anew after each length: a long run cut short leaves what it has."""
    torch.set_num_threads(os.cpu_count())
    whole = read_inputs(options)
    if options.memory_of is not None:
        print(json.dumps(memory_here(options.memory_of, tuple(x[:, : options.lengths[0]] for x in whole))))
        return
    facts = provenance()
    facts["versions"]["torch"] = version("torch")
    _, longest, *sizes = whole[0].shape
    record = {
        "command": recorded_command(),
        "options": dataclasses.asdict(options),
        **facts,
        "cpu_count": os.cpu_count(),
    }
    record |= {"heads_and_width": sizes, "results": [], "growth": {}, "memory": []}

    def save() -> None:
        if options.out is not None:
            write_atomically(options.out, json.dumps(record, default=str) + "\n")

    print(f"{'':<17}{'length':>7} {'':<27}{'ms':>11}{'fastest':>11}{'slowest':>11}{'x ours':>8}{'error':>10}")
    for direction in get_args(Direction):
        up_to = longest if direction == "forward" else min(longest, options.backward_up_to)
        for length in [length for length in options.lengths if length <= up_to]:
            record["results"].append(measure(options, direction, tuple(x[:, :length] for x in whole)))
            print(table(record["results"][-1]), flush=True)
            save()
        record["growth"][direction] = growth(record["results"], direction)
        print(f"ours, time(2L) / time(L), {direction}: {record['growth'][direction]}", flush=True)
    for direction, length in itertools.product(get_args(Direction), options.memory_lengths):
        if length <= longest:
            record["memory"].append(memory_apart(options, direction, length))
            print(memory_line(record["memory"][-1]), flush=True)
            save()
    save()


if __name__ == "__main__":
    main(tyro.cli(Options))
