"""Compiles one implementation's passes for one chip, and prints the schedule of each kernel as a line of JSON.

python -m benchmarks.tpu_schedule.compiler IMPLEMENTATION CHIP CASE... with LIBTPU_INIT_ARGS as `dumping` has it: a process of
its own, as libtpu reads them once. A case is PASS/WIDTH/DTYPE/LENGTH/BLOCK_Q/BLOCK_K; blocks of 0: ours has its own.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from alibi_jax.attention.implementation import Inputs, Options, Residuals, RowBounds
from alibi_jax.attention.pallas_tpu import IMPLEMENTATION
from alibi_jax.attention.reach import DEFAULT_TOLERANCE
from alibi_jax.attention.tpu_blocks import kernel_of
from alibi_jax.config import MeshConfig
from alibi_jax.plan.topology import find_topology
from alibi_jax.positions import LinearBias
from alibi_jax.sharding import make_mesh
from benchmarks.tpu_schedule.dumps import read_program, read_schedule

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
HEADS = 8
FOLDER = "--xla_jf_dump_to="
PRODUCTS = {"forward": 2, "dq": 3, "dkv": 4, "backward": 5}  # of matrices, of a block of queries with one of keys
LONGEST_MESSAGE = 200  # characters of a compiler's refusal that are kept


class Case(NamedTuple):
    """What is compiled."""

    pass_name: str  # forward or backward; of splash attention, backward has both
    width: int
    dtype: str
    length: int  # queries and keys
    block_q: int = 0  # 0: the implementation's own choice
    block_k: int = 0

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Returns the case of a text such as forward/128/bfloat16/4096."""
        pass_name, width, dtype, *sizes = text.split("/")
        return cls(pass_name, int(width), dtype, *map(int, sizes))

    def __str__(self) -> str:
        """Returns the text that `parse` reads."""
        return "/".join(map(str, self))


def dumping(folder: Path) -> dict[str, str]:
    """Returns the environment in which libtpu writes its programs to a folder."""
    return {"LIBTPU_INIT_ARGS": f"{FOLDER}{folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=false"}


def our_inputs(arrays: list) -> Inputs:
    """Returns the inputs of attention from arrays [B H L D], bounds of rows, slopes and seeds."""
    q, k, v, scores, log_mass, slopes, seeds = arrays
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return Inputs(q, k, v, LinearBias(slopes), jnp.int32(0), seeds, RowBounds(scores, log_mass))


def ours(case: Case) -> tuple[Case, Callable, list[jax.ShapeDtypeStruct]]:
    """Returns the case with its blocks, a pass of pallas_tpu, and the pass's arguments.

    Arrays are [B H L D], as the kernels take them, and the bounds of rows are arguments: hardly anything is compiled beside the
    kernels.
    """
    options = Options(causal=True, dropout_rate=0.0, reach_tolerance=DEFAULT_TOLERANCE[case.dtype])
    array = jax.ShapeDtypeStruct((1, HEADS, case.length, case.width), case.dtype)
    row = jax.ShapeDtypeStruct((1, HEADS, case.length), jnp.float32)
    slopes, seeds = jax.ShapeDtypeStruct((HEADS,), jnp.float32), jax.ShapeDtypeStruct((1, HEADS, 2), jnp.uint32)
    arguments = [array] * 3 + [row] * 2 + [slopes, seeds]

    def forward(*arrays):
        out, logsumexp = IMPLEMENTATION.forward(options, our_inputs(arrays))
        return out.swapaxes(1, 2), logsumexp

    def backward(d_out, logsumexp, delta, *arrays):
        residuals = Residuals(d_out.swapaxes(1, 2), logsumexp, delta)
        gradients = IMPLEMENTATION.backward(options, our_inputs(arrays), residuals, False)
        return [x.swapaxes(1, 2) for x in gradients[:3]]

    sizes = []  # as the kernels take them, which look at shapes and the chip alone
    jax.eval_shape(lambda *arrays: sizes.append(kernel_of(options, our_inputs(arrays))), *arguments)
    case = case._replace(block_q=sizes[0].block_q, block_k=sizes[0].block_k)
    return (
        (case, forward, arguments) if case.pass_name == "forward" else (case, backward, [array, row, row, *arguments])
    )


def peers(case: Case, fused: bool) -> tuple[Case, Callable, list[jax.ShapeDtypeStruct]]:
    """Returns the case, both passes of jax's splash attention, and their arguments; fused: one kernel for dq, dk and dv."""
    names = ["q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute"] + ([] if fused else ["q_dq", "kv_dq"])
    blocks = {f"block_{name}": case.block_q if name.startswith("q") else case.block_k for name in names}
    mask = masks.MultiHeadMask([masks.CausalMask((case.length, case.length))] * HEADS)
    sizes = splash.BlockSizes(**blocks, use_fused_bwd_kernel=fused)
    attend = splash.make_splash_mha_single_device(mask, block_sizes=sizes)
    array = jax.ShapeDtypeStruct((HEADS, case.length, case.width), case.dtype)

    return case, lambda q, k, v, d_out: jax.vjp(attend, q, k, v)[1](d_out), [array] * 4


def kernels_of(text: str) -> list[str]:
    """Returns the names of the kernels in a compiled program's text."""
    return re.findall(r'%(\S+) = [^\n]*custom_call_target="tpu_custom_call"', text)


def schedules(function: Callable, arguments: list, placed: NamedSharding, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the schedule of each kernel of a function, by the kernel's name."""
    compiled = jax.jit(function, in_shardings=placed, out_shardings=placed).lower(*arguments).compile()
    every = {}
    for name in kernels_of(compiled.as_text()):
        (bundles,) = folder.glob(f"[0-9]*-{name}-[0-9]*-final_bundles.txt")
        (use,) = folder.glob(f"[0-9]*-{name}-[0-9]*-final_hlo-static-per-bundle-utilization.txt")
        schedule = read_schedule(read_program(bundles.read_text(), use.read_text()))
        every[name] = schedule._asdict() | {"visits": [visit._asdict() for visit in schedule.visits]}
    return every


def rows(implementation: str, chip: str, case: Case, folder: Path) -> list[dict[str, Any]]:
    """Returns a row of each kernel of a case; one with `refused` where the compiler does not take it."""
    fused = implementation == "splash_fused"
    # outside of the mesh, for it computes its masks here
    peer = None if implementation == "ours" else peers(case, fused)
    mesh = make_mesh(MeshConfig(), find_topology(TOPOLOGIES[chip]).devices[:1])
    with jax.set_mesh(mesh):
        case, function, arguments = peer or ours(case)
        about = {"implementation": implementation, "chip": chip, **case._asdict()}
        try:
            every = schedules(function, arguments, NamedSharding(mesh, PartitionSpec()), folder)
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            return [about | {"refused": str(error)[:LONGEST_MESSAGE]}]
        finally:
            for path in folder.iterdir():  # some hundred MB a program
                path.unlink()
    return [about | kernel_and_pass(name, fused) | schedule for name, schedule in every.items()]


def kernel_and_pass(name: str, fused: bool = False) -> dict[str, Any]:
    """Returns a kernel's short name, its pass, its matrix products a visit, and whether it goes over blocks of keys.

    dq, backward, 3, False of transpose_jvp_alibi_dq_kernel__.1; fused: splash attention's dkv computes dq as well.
    """
    short = re.search(r"(?:alibi|mha)_(.+?)(?:_kernel|_no_residuals|_residuals)?_*(?:\.\d+)?$", name)[1]
    short = {"fwd": "forward", "dkv": "backward" if fused else "dkv"}.get(short, short)
    return {
        "kernel": short,
        "pass_name": "forward" if short == "forward" else "backward",
        "products": PRODUCTS[short],
        "by_keys": short in ("dkv", "backward"),
    }


def main(implementation: str, chip: str, *cases: str) -> None:
    """Prints the rows of all cases, a line of JSON each."""
    folder = Path(re.search(rf"{FOLDER}(\S+)", os.environ["LIBTPU_INIT_ARGS"])[1])
    for case in cases:
        for row in rows(implementation, chip, Case.parse(case), folder):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
