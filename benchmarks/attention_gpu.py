"""ALiBi attention on a Hopper GPU beside PyTorch's FlexAttention with the same bias and cuDNN's attention without any bias.

  python -m benchmarks.attention_gpu --out runs/attention_gpu.json          # on the GPU
  python -m benchmarks.attention_gpu --interpret --lengths 256              # anywhere: the same code, small, step by step

Correctness first: at the first length our outputs and gradients are compared with `reference` in float32, which the tests
compare with float64. Then all take turns
in one run; a time is the median of several turns, each of several calls. TFLOP/s count what dense causal attention would do
(2 products of L^2 / 2 forward, 7 forward and backward), for cuDNN truly, for the others as if nothing were skipped.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from alibi_jax import LinearBias, alibi_slopes, attend
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically
from benchmarks.shapes import GPU_SHAPES

PEAK_TFLOPS = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}  # bfloat16, dense, SXM: NVIDIA's data sheets
LARGEST_ERROR = 3e-2  # bfloat16, of outputs near 1; of gradients, relative to the largest


@dataclasses.dataclass(frozen=True)
class Options:
    """Ours, FlexAttention and cuDNN, in turns."""

    lengths: tuple[int, ...] = tuple(sorted({shape.queries for shape in GPU_SHAPES}))  # tokens
    widths: tuple[int, ...] = tuple(sorted({shape.width for shape in GPU_SHAPES}))  # channels of a head
    num_heads: int = 16
    repeats: int = 5  # timed turns of each, after one that is not
    calls: int = 10  # calls of a turn
    interpret: bool = False  # our kernel alone, step by step, on any device: shows that this script works
    out: Path | None = None  # also write the results there, as JSON


def arrays(options: Options, length: int, width: int) -> list[np.ndarray]:
    """q, k, v and what the gradient weighs the output by, float32 [1, L, H, D], each a bfloat16 number."""
    shape, rng = (1, length, options.num_heads, width), np.random.default_rng(0)
    return [np.asarray(jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16), np.float32) for _ in range(4)]


def make_jax(forward: Callable, inputs: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """{"forward": ..., "forward+backward": ...} of a JAX function (q, k, v) -> out; each call waits for nothing."""
    *qkv, weight = (jnp.asarray(x, jnp.bfloat16) for x in inputs)
    gradient = jax.jit(jax.grad(lambda q, k, v: (forward(q, k, v) * weight).astype(jnp.float32).sum(), (0, 1, 2)))
    compiled = jax.jit(forward)
    return {"forward": lambda: compiled(*qkv), "forward+backward": lambda: gradient(*qkv)}


def make_flex(options: Options, inputs: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """FlexAttention with an ALiBi score_mod and a causal block mask, compiled."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = inputs[0].shape[1]
    *qkv, weight = (torch.tensor(x).to("cuda", torch.bfloat16).transpose(1, 2).contiguous() for x in inputs)
    slopes = torch.tensor(alibi_slopes(options.num_heads), device="cuda")
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cuda", _compile=True)
    compiled = torch.compile(flex_attention, dynamic=False)

    def forward() -> torch.Tensor:
        return compiled(*qkv, score_mod=lambda s, b, h, q, k: s - slopes[h] * (q - k), block_mask=mask)

    def take_forward() -> Any:
        with torch.no_grad():
            return forward()

    for x in qkv:
        x.requires_grad_(True)
    return {"forward": take_forward, "forward+backward": lambda: torch.autograd.grad(forward(), qkv, weight)}


def make_contenders(options: Options, inputs: list[np.ndarray]) -> dict[str, dict[str, Callable[[], Any]]]:
    """Returns name -> direction -> a call, of our kernel and, on a GPU, of its peers."""
    bias = LinearBias(jnp.asarray(alibi_slopes(options.num_heads)))

    def ours(q, k, v):
        return attend(q, k, v, bias=bias, implementation="pallas_gpu", interpret=options.interpret)

    def cudnn(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

    if options.interpret:
        return {"ours": make_jax(ours, inputs)}
    contenders = {"FlexAttention": make_flex(options, inputs), "cuDNN, no bias": make_jax(cudnn, inputs)}
    return {"ours": make_jax(ours, inputs), **contenders}


def wait(result: Any) -> None:
    """Until the device has finished."""
    leaves = jax.tree.leaves(result)
    if isinstance(leaves[0], jax.Array):
        jax.block_until_ready(leaves)
        return
    import torch

    torch.cuda.synchronize()


def check(options: Options, width: int) -> dict[str, float]:
    """Largest errors of ours at the first length against `reference` in float32 on the same bfloat16 numbers."""
    inputs = arrays(options, options.lengths[0], width)
    bias, weight = LinearBias(jnp.asarray(alibi_slopes(options.num_heads))), jnp.asarray(inputs[3])

    def forward(q, k, v):
        return attend(q, k, v, bias=bias, implementation="reference")

    takes, qkv = make_contenders(options, inputs)["ours"], [jnp.asarray(x) for x in inputs[:3]]
    wanted = forward(*qkv), *jax.grad(lambda q, k, v: (forward(q, k, v) * weight).sum(), (0, 1, 2))(*qkv)
    got = takes["forward"](), *takes["forward+backward"]()
    errors = {}
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        errors[name] = float(jnp.abs(x.astype(jnp.float32) - y).max() / max(1.0, float(jnp.abs(y).max())))
    if not all(error <= LARGEST_ERROR for error in errors.values()):
        raise ValueError(
            f"width {width}: got errors {errors}, expected at most {LARGEST_ERROR}. Correct the kernel first."
        )
    return errors


def measure(options: Options, length: int, width: int) -> list[dict[str, Any]]:
    """Rows of milliseconds a call and TFLOP/s, all in turns."""
    contenders = make_contenders(options, arrays(options, length, width))
    rows = []
    for direction, products in (("forward", 2), ("forward+backward", 7)):
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(1 + options.repeats):
            for name, takes in contenders.items():
                start = time.perf_counter()
                for _ in range(options.calls):
                    result = takes[direction]()
                wait(result)
                if turn > 0:
                    times[name].append(1000 * (time.perf_counter() - start) / options.calls)
        flops = products * options.num_heads * width * length**2  # a product of L^2 / 2 pairs is 2 D flops each
        for name, part in times.items():
            median = statistics.median(part)
            tflops = flops / median / 1e9
            rows.append(
                {"direction": direction, "length": length, "width": width, "name": name, "milliseconds": median}
            )
            rows[-1] |= {"dense_tflops": tflops, "fastest_and_slowest": (min(part), max(part))}
            print(
                f"{direction:<17}{length:>8,}{width:>5} {name:<16}{median:>10.3f} ms{tflops:>9.1f} TFLOP/s", flush=True
            )
    return rows


def main(options: Options) -> None:
    """Checks the kernel's errors, times all contenders, and prints and writes the results."""
    kind = jax.devices()[0].device_kind
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if kind.startswith(name)), None)
    if not options.interpret and peak is None:
        raise SystemExit(
            f"device: got {kind}, expected one of {', '.join(PEAK_TFLOPS)}. Run with --interpret to try it here."
        )
    print(f"{kind}, peak {peak} TFLOP/s in bfloat16")
    record: dict[str, Any] = {"command": recorded_command(), "options": dataclasses.asdict(options), **provenance()}
    record |= {"device": kind, "peak": peak, "errors": {}, "results": []}
    for width in options.widths:
        record["errors"][width] = check(options, width)
        print(f"width {width}, errors at {options.lengths[0]}: {record['errors'][width]}", flush=True)
    for width in options.widths:
        for length in options.lengths:
            record["results"] += measure(options, length, width)
            if options.out is not None:
                write_atomically(options.out, json.dumps(record, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
