"""The backward pass on TPUs: one kernel for the gradients of queries, keys and values, five matrix products a visit.

A program serves a block of keys and a query head that reads them, and visits the blocks of queries that see these keys, the
last one first. The gradients of keys and values are summed in VMEM over all query heads of the group. That of the queries is
summed over the blocks of keys: in VMEM too where it fits, else in HBM, where each visit reads it, adds, and writes it back.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from alibi_jax.attention.tpu_blocks import Kernel
from alibi_jax.attention.tpu_scores import (
    LOG2E,
    Block,
    Head,
    Visits,
    block_of,
    copy_to,
    dot,
    exponents,
    first_query_block,
    keep,
    last_key_block,
    needs_mask,
    row_shift,
    visit_all,
)

VISIT_BYTES = 32 * 2**20  # of VMEM for all but the sums: the blocks, and a block of scores several times over


class Outgoing(NamedTuple):
    """Two buffers in VMEM whose blocks are copied to HBM."""

    blocks: Any  # VMEM [2 bq D]
    sent: Any  # semaphores [2]
    names: Any  # SMEM [2]: which block is on its way, counted from 1; 0: none, and the buffer may be written


class Refs(NamedTuple):
    """The memory that a program reads and writes."""

    q_offset: Any  # SMEM [1]
    slopes: Any  # SMEM [H]
    seeds: Any  # SMEM [1 1 1 2], of this query head
    first: Any  # SMEM [1 1 1 Nq]: the first key block that a block of queries visits
    last_query: Any  # SMEM [1 1 1 Nk]: the last block of queries that visits a key block
    next_last_query: Any  # the same of the next program's query head
    k: Any  # VMEM [1 1 bk D]
    v: Any
    q: Any  # HBM [B H T D]
    d_out: Any
    rows: Any  # HBM [B H 2 T]: log-sum-exp and delta
    dk: Any  # VMEM [1 1 bk D]
    dv: Any
    dq: Any  # HBM [B H T D]
    unfinished: Any  # HBM [B H T D] float32: the sums of dq between visits; None where they stay in VMEM
    sum_dk: Any  # VMEM [bk D]
    sum_dv: Any
    sum_dq: Any  # VMEM [G T D]; where that does not fit [2 bq D], of this visit and the one before
    q_blocks: Any  # VMEM [2 bq D], of this visit and the next
    d_out_blocks: Any
    row_blocks: Any  # VMEM [2 2 bq]
    dq_blocks: Any  # VMEM [2 bq D], finished
    arrived: Any  # semaphores [4 2]
    sent: Any  # semaphores [2 2]
    names: Any  # SMEM [2]
    unfinished_names: Any  # SMEM [2]
    buffer: Any  # SMEM [1]
    begun: Any  # SMEM [1]: 1 where the program before began the copies of the first visit


class Program(NamedTuple):
    """The block of keys and the query head that a program serves."""

    b: Array
    h: Array
    g: Array  # the query head within its group
    j: Array  # the block of keys
    query_blocks: int
    key_blocks: int
    head: Head


class Visit(NamedTuple):
    """A block of queries that sees the program's keys."""

    i: Array
    number: Array  # of its buffer
    block: Block
    is_first: Array  # whether these queries visit no keys before these
    is_last: Array


def _program(kernel: Kernel, refs: Refs) -> Program:
    b, key_head, j, g = (pl.program_id(axis) for axis in range(4))
    h = key_head * kernel.group + g
    seed = refs.seeds[0, 0, 0, 0].astype(jnp.uint32), refs.seeds[0, 0, 0, 1].astype(jnp.uint32)
    head = Head(refs.slopes[h], refs.q_offset[0], seed)
    return Program(b, h, g, j, refs.first.shape[3], refs.last_query.shape[3], head)


def _queries(kernel: Kernel, i: Array) -> Any:
    """Returns where block i of queries lies."""
    return pl.ds(pl.multiple_of(i * kernel.block_q, kernel.block_q), kernel.block_q)


def _arriving(kernel: Kernel, refs: Refs, b: Array, cursor: tuple[Array, Array], number: Array) -> list:
    """Returns the copies of what a visit reads; cursor: the query head and its block of queries."""
    h, i = cursor
    queries = _queries(kernel, i)
    sources = refs.q.at[b, h, queries], refs.d_out.at[b, h, queries], refs.rows.at[b, h, :, queries]
    targets = (x.at[number] for x in (refs.q_blocks, refs.d_out_blocks, refs.row_blocks))
    return [copy_to(x, y, refs.arrived.at[n, number]) for n, (x, y) in enumerate(zip(sources, targets, strict=True))]


def _visits(kernel: Kernel, refs: Refs, program: Program) -> tuple[Visits, Array]:
    """Returns the visits of a program, and whether the next one has any."""
    offset = program.head.q_offset
    lowest, top = first_query_block(kernel, offset, program.j), refs.last_query[0, 0, 0, program.j]
    ends = program.g == kernel.group - 1
    next_head = jnp.where(ends, program.h - program.g, program.h + 1)
    next_keys = jnp.where(ends, program.j + 1, program.j)
    next_top = refs.next_last_query[0, 0, 0, jnp.minimum(next_keys, program.key_blocks - 1)]
    follows = (next_keys < program.key_blocks) & (next_top >= first_query_block(kernel, offset, next_keys))

    def skipped(i: Array) -> Array:
        return (i >= lowest) & (refs.first[0, 0, 0, jnp.maximum(i, 0)] > program.j)

    def after(cursor: tuple) -> tuple:
        i = jax.lax.while_loop(skipped, lambda i: i - 1, cursor[1] - 1)
        here = i >= lowest
        return (jnp.where(here, program.h, next_head), jnp.where(here, i, next_top)), here, here | follows

    def copies(cursor: tuple, number: Array) -> list:
        return _arriving(kernel, refs, program.b, cursor, number)

    return Visits((program.h, top), top >= lowest, refs.begun[0] == 1, after, copies), follows


def _finished(refs: Refs) -> Outgoing:
    return Outgoing(refs.dq_blocks, refs.sent.at[0], refs.names)


def _unfinished(refs: Refs) -> Outgoing:
    return Outgoing(refs.sum_dq, refs.sent.at[1], refs.unfinished_names)


def _send(outgoing: Outgoing, number: Any, target: Any, name: Array) -> None:
    copy_to(outgoing.blocks.at[number], target, outgoing.sent.at[number]).start()
    outgoing.names[number] = name


def _reclaim(outgoing: Outgoing, number: Any, target: Any) -> None:
    """Waits until a buffer may be written; target: HBM of that size."""

    @pl.when(outgoing.names[number] != 0)
    def _wait():
        copy_to(outgoing.blocks.at[number], target, outgoing.sent.at[number]).wait()
        outgoing.names[number] = 0


def _reclaim_all(outgoing: Outgoing, target: Any) -> None:
    for number in (0, 1):
        _reclaim(outgoing, number, target)


def _begin_sum(refs: Refs, visit: Visit, place: Any, name: Array) -> Any:
    """Returns the copy, begun, of the sum of dq from HBM, once this buffer's and this block's own last copy have arrived there.

    A block of queries may have been the visit before, so its sum can still be on its way; all earlier ones have arrived.
    """
    outgoing = _unfinished(refs)
    for number in (0, 1):

        @pl.when((visit.number == number) | (outgoing.names[number] == name))
        def _wait(number=number):
            _reclaim(outgoing, number, place)

    copy = copy_to(place, refs.sum_dq.at[visit.number], refs.arrived.at[3, visit.number])
    pl.when(~visit.is_first)(copy.start)
    return copy


def _gradients(kernel: Kernel, refs: Refs, visit: Visit, masked: bool) -> Float32[Array, "bq D"]:
    """Adds a visit's gradients to the sums of dk and dv and returns that of the queries, without the factor D^-0.5."""
    q, d_out = refs.q_blocks[visit.number], refs.d_out_blocks[visit.number]
    k, v = refs.k[0, 0], refs.v[0, 0]
    logsumexp, delta = (refs.row_blocks[visit.number, n : n + 1] for n in (0, 1))
    rows = logsumexp * LOG2E + row_shift(kernel, visit.block)
    weights = jnp.exp2(exponents(kernel, visit.block, q, k, masked) - rows)
    d_weights = dot(v, d_out, (1, 1))
    dropped = weights
    if kernel.options.dropout_rate > 0:
        kept = keep(kernel, visit.block)
        d_weights, dropped = d_weights * kept, weights * kept
    d_scores = (weights * (d_weights - delta)).astype(k.dtype)
    refs.sum_dv[...] += dot(dropped.astype(d_out.dtype), d_out, (1, 0))
    refs.sum_dk[...] += dot(d_scores, q, (1, 0))
    return dot(d_scores, k, (0, 0))


def _serve(kernel: Kernel, refs: Refs, program: Program, visit: Visit) -> None:
    """Adds the gradients of a visit to all sums, and sends that of the queries away where it is whole."""
    queries = _queries(kernel, visit.i)
    name = program.h * program.query_blocks + visit.i + 1
    if refs.unfinished is None:
        sums = refs.sum_dq.at[program.g, queries]
    else:
        place = refs.unfinished.at[program.b, program.h, queries]
        copy = _begin_sum(refs, visit, place, name)
        sums = refs.sum_dq.at[visit.number]

    def add(masked: bool) -> None:
        more = _gradients(kernel, refs, visit, masked)
        if refs.unfinished is not None:
            pl.when(~visit.is_first)(copy.wait)
        sums[...] = jnp.where(visit.is_first, 0.0, sums[...]) + more

    masked = needs_mask(kernel, visit.block)
    pl.when(masked)(lambda: add(True))
    pl.when(~masked)(lambda: add(False))

    @pl.when(visit.is_last)
    def _finish():
        whole = refs.dq.at[program.b, program.h, queries]
        _reclaim(_finished(refs), visit.number, whole)
        refs.dq_blocks[visit.number] = (sums[...] * refs.q.shape[3] ** -0.5).astype(refs.dq.dtype)
        _send(_finished(refs), visit.number, whole, name)

    if refs.unfinished is not None:
        pl.when(~visit.is_last)(lambda: _send(_unfinished(refs), visit.number, place, name))


def _clear(kernel: Kernel, refs: Refs, program: Program) -> None:
    """Writes a gradient of 0 for the blocks of queries that visit no keys."""

    def clear(i: Any, carry: Any) -> Any:
        @pl.when(refs.first[0, 0, 0, i] > last_key_block(kernel, program.head.q_offset, i, program.key_blocks))
        def _write():
            target = refs.dq.at[program.b, program.h, _queries(kernel, i)]
            _reclaim(_finished(refs), 0, target)
            refs.dq_blocks[0] = jnp.zeros(refs.dq_blocks.shape[1:], refs.dq.dtype)
            _send(_finished(refs), 0, target, i + 1)

        return carry

    jax.lax.fori_loop(0, program.query_blocks, clear, 0)


def _start(kernel: Kernel, refs: Refs, program: Program) -> None:
    @pl.when((program.j == 0) & (program.g == 0))
    def _start_heads():
        refs.buffer[0] = refs.begun[0] = 0
        for names in (refs.names, refs.unfinished_names):
            names[0] = names[1] = 0

    @pl.when(program.g == 0)
    def _start_keys():
        refs.sum_dk[...] = jnp.zeros_like(refs.sum_dk)
        refs.sum_dv[...] = jnp.zeros_like(refs.sum_dv)

    if kernel.options.causal:
        pl.when(program.j == 0)(lambda: _clear(kernel, refs, program))


def _finish(kernel: Kernel, refs: Refs, program: Program) -> None:
    ends = program.g == kernel.group - 1

    @pl.when(ends)
    def _finish_keys():
        refs.dk[0, 0] = (refs.sum_dk[...] * refs.q.shape[3] ** -0.5).astype(refs.dk.dtype)
        refs.dv[0, 0] = refs.sum_dv[...].astype(refs.dv.dtype)

    @pl.when(ends & (program.j == program.key_blocks - 1))
    def _finish_heads():
        anywhere = program.b, program.h, pl.ds(0, kernel.block_q)
        _reclaim_all(_finished(refs), refs.dq.at[anywhere])
        if refs.unfinished is not None:
            _reclaim_all(_unfinished(refs), refs.unfinished.at[anywhere])


def _backward_kernel(kernel: Kernel, refs: Refs) -> None:
    """Serves one block of keys and one query head."""
    program = _program(kernel, refs)
    _start(kernel, refs, program)
    visits, follows = _visits(kernel, refs, program)

    def serve(cursor: tuple, number: Array) -> None:
        i = cursor[1]
        is_first = program.j == refs.first[0, 0, 0, i]
        is_last = program.j == last_key_block(kernel, program.head.q_offset, i, program.key_blocks)
        _serve(kernel, refs, program, Visit(i, number, block_of(kernel, program.head, i, program.j), is_first, is_last))

    visit_all(visits, refs.buffer, serve)
    refs.begun[0] = (visits.any & follows).astype(jnp.int32)
    _finish(kernel, refs, program)


def _scratch(kernel: Kernel, q: Array, k: Array) -> list:
    """Returns what `Refs` names from sum_dk on."""
    length, width = q.shape[2:]
    whole = (kernel.group, length, width) if kernel.dq_in_vmem else (2, kernel.block_q, width)
    keys = pltpu.VMEM((kernel.block_k, width), jnp.float32)
    queries = pltpu.VMEM((2, kernel.block_q, width), q.dtype)
    return [
        *(keys, keys, pltpu.VMEM(whole, jnp.float32)),
        *(queries, queries, pltpu.VMEM((2, 2, kernel.block_q), jnp.float32), queries),
        *(pltpu.SemaphoreType.DMA((4, 2)), pltpu.SemaphoreType.DMA((2, 2))),
        *(pltpu.SMEM((n,), jnp.int32) for n in (2, 2, 1, 1)),
    ]


class Arrays(NamedTuple):
    """What the kernel is called with, in the order of `Refs`."""

    q_offset: Int32[Array, " 1"]
    slopes: Float32[Array, " H"]
    seeds: Int32[Array, "B H 1 2"]
    first: Int32[Array, "B H 1 Nq"]
    last_query: Int32[Array, "B H 1 Nk"]
    k: Float[Array, "B K S D"]
    v: Float[Array, "B K S D"]
    q: Float[Array, "B H T D"]
    d_out: Float[Array, "B H T D"]
    rows: Float32[Array, "B H 2 T"]


def run_backward(kernel: Kernel, arrays: Arrays) -> tuple[Array, Array, Array]:
    """Returns (dq, dk, dv) like q, k and v."""
    q, k = arrays.q, arrays.k
    group = kernel.group

    def scalars(x: Array, ahead: int) -> pl.BlockSpec:
        def index(b, key_head, j, g, *_):
            return b, key_head * group + (g + ahead) % group, 0, 0

        return pl.BlockSpec((1, 1, *x.shape[2:]), index, memory_space=pltpu.SMEM)

    keys = pl.BlockSpec((1, 1, kernel.block_k, k.shape[3]), lambda b, key_head, j, g, *_: (b, key_head, j, 0))
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    of_head = [scalars(x, 0) for x in (arrays.seeds, arrays.first, arrays.last_query)]
    unfinished = [] if kernel.dq_in_vmem else [jax.ShapeDtypeStruct(q.shape, jnp.float32)]
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(q.shape[0], k.shape[1], k.shape[2] // kernel.block_k, group),
        in_specs=[*of_head, scalars(arrays.last_query, 1), keys, keys, hbm, hbm, hbm],
        out_specs=[keys, keys, hbm, *[hbm] * len(unfinished)],
        scratch_shapes=_scratch(kernel, q, k),
    )

    def run(*refs):
        outputs = 14 + len(unfinished)
        _backward_kernel(kernel, Refs(*refs[:14], *(refs[14:outputs] or [None]), *refs[outputs:]))

    inputs = *arrays[:5], arrays.last_query, *arrays[5:]
    dk, dv, dq, *_ = pl.pallas_call(
        run,
        grid_spec=spec,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, k, q)] + unfinished,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VISIT_BYTES + kernel.dq_in_vmem * group * q.shape[2] * max(q.shape[3], 128) * 4,
        ),
        interpret=pltpu.InterpretParams() if kernel.options.interpret else False,
        name="alibi_backward",
    )(*inputs)
    return dq, dk, dv
