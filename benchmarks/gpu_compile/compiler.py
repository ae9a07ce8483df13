"""One kernel compiled for a card that is not here, and what the compilers wrote about it."""

import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alibi_jax.attention import mosaic_gpu, pallas_gpu
from alibi_jax.attention.implementation import Inputs, Options, Residuals
from alibi_jax.attention.tiles import PassTiles, Tiles
from alibi_jax.positions.bias import LinearBias
from benchmarks.gpu_compile import assembly
from benchmarks.gpu_compile.cards import WARP, Card, blocks_at_once, target_config

LENGTH, HEADS = 4096, 16  # of the arrays; at other lengths a kernel's program is the same
PASSES = ("forward", "dq", "dkv")


class Case(NamedTuple):
    """What is compiled: one pass for one card, of pallas_gpu or mosaic_gpu."""

    card: Card
    pass_name: str
    dtype: str
    width: int  # channels of a head
    tiles: Tiles  # for pallas_gpu any; for mosaic_gpu those it has
    implementation: str = "pallas_gpu"


def tool(name: str) -> Path:
    """Returns the path of one of NVIDIA's programs; FileNotFoundError where its package is not installed."""
    import nvidia  # a folder of several packages, which only the extra gpu-compile brings

    paths = [path for root in nvidia.__path__ for path in Path(root).glob(f"*/bin/{name}")]
    if not paths:
        raise FileNotFoundError(
            f"{name}: got none in nvidia/*/bin of this Python, expected one. Install alibi_jax[gpu-compile]."
        )
    return paths[0]


@functools.cache
def _mesh(card: Card) -> Mesh:
    text = target_config(card)
    topology = topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x1x1", target_config=text)
    return Mesh(np.array(topology.devices), ("data",))


def _program(case: Case) -> tuple[Callable, tuple]:
    """Returns a function that runs one pass, and the shapes of its arguments. The other backward pass is dead code."""
    mosaic = case.implementation == "mosaic_gpu"
    kernels = mosaic_gpu.IMPLEMENTATION if mosaic else pallas_gpu.implementation(PassTiles(*[case.tiles] * 3))
    options = Options(causal=True, dropout_rate=0.0, reach_tolerance=None)
    array = jax.ShapeDtypeStruct((1, LENGTH, HEADS, case.width), case.dtype)
    rows = jax.ShapeDtypeStruct((1, HEADS, LENGTH), jnp.float32)
    bias = LinearBias(jax.ShapeDtypeStruct((HEADS,), jnp.float32))
    seeds = jax.ShapeDtypeStruct((1, HEADS, 2), jnp.uint32)
    inputs = Inputs(array, array, array, bias, jax.ShapeDtypeStruct((), jnp.int32), seeds)
    if case.pass_name == "forward":
        return functools.partial(kernels.forward, options), (inputs,)
    gradients = slice(0, 1) if case.pass_name == "dq" else slice(1, 3)

    def backward(inputs: Inputs, residuals: Residuals) -> Any:
        return kernels.backward(options, inputs, residuals, False)[gradients]

    return backward, (inputs, Residuals(array, rows, rows))


def _compile(case: Case, folder: str) -> None:
    """Compiles a case; XLA writes each kernel's PTX and its list of launches into the folder, Mosaic its kernel's files."""
    function, arguments = _program(case)
    mesh = _mesh(case.card)
    placed = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, in_shardings=placed, out_shardings=placed).lower(*arguments)
    lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"})


def _run(*command: str | Path) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def _shared_memory(case: Case, folder: Path, name: str) -> int:
    if case.implementation == "mosaic_gpu":
        (resources,) = folder.glob(f"alibi_{case.pass_name}_kernel_*.resources.txt")
        return assembly.mosaic_shared_memory(resources.read_text())
    (launches,) = folder.glob("*.thunk_sequence.txt")
    return assembly.shared_memory(launches.read_text())[name]


def _figures(case: Case, folder: Path) -> dict[str, Any]:
    name = f"alibi_{case.pass_name}_kernel" + ("_mosaic_gpu_kernel" if case.implementation == "mosaic_gpu" else "")
    (path,) = (path for path in folder.glob("*.ptx") if name in assembly.kernels(path.read_text()))
    ptx, cubin = path.read_text(), path.with_suffix(".cubin")
    report = _run(tool("ptxas"), "-v", "-arch", assembly.target(ptx), path, "-o", cubin)
    usage, memory = assembly.usage(report), _shared_memory(case, folder, name)
    loop = assembly.visit(assembly.loops(_run(tool("nvdisasm"), "-c", cubin)))
    scores = case.tiles.block_q * case.tiles.block_k
    return usage._asdict() | {
        "shared_memory": memory,
        "matrix_unit": assembly.matrix_unit(ptx),
        "serialized": assembly.serialized(report),
        "blocks_at_once": blocks_at_once(case.card.limits, case.tiles.num_warps, usage.registers, memory),
        "loop_instructions": loop.instructions,
        "loop_matrix_instructions": loop.matrix,
        "loop_local_accesses": loop.local,
        "instructions_per_score": loop.instructions * WARP * case.tiles.num_warps / scores,
        "target": assembly.target(ptx),
    }


def figures(case: Case) -> dict[str, Any]:
    """Returns what the compilers made of a case, as a flat dict; {"refused": why} where it does not fit the card.

    registers of a thread; stack, spill_stores, spill_loads: bytes of a thread. shared_memory: bytes of a block.
    blocks_at_once: of a multiprocessor. loop_...: instructions a warp issues for one visit of a block that needs no mask.
    instructions_per_score: those of all threads over the block's scores. serialized: ptxas found that wgmma cannot overlap.
    """
    with tempfile.TemporaryDirectory(prefix="gpu_compile-") as folder:
        if case.implementation == "mosaic_gpu":
            os.environ["MOSAIC_GPU_DUMP_TO"] = folder  # of the whole process: its cases are compiled one by one
        try:
            _compile(case, folder)
        except jax.errors.JaxRuntimeError as error:
            if "Shared memory size limit exceeded" not in str(error):
                raise
            return {"refused": str(error).splitlines()[0]}
        return _figures(case, Path(folder))
