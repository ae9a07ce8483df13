"""The TPU's backward kernel, interpreted, and compiled for a million tokens: sums of dq in VMEM and in HBM, blocks that are
skipped, rows that see no key, keys that are not all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from alibi_jax.attention import pallas_tpu, tpu_backward, tpu_blocks
from alibi_jax.attention.implementation import LOWEST_SCORE, Inputs, Options, Residuals, RowBounds
from alibi_jax.attention.reach import score_bounds
from alibi_jax.config import MeshConfig
from alibi_jax.positions import LinearBias
from alibi_jax.sharding import Device, make_mesh
from conftest import assert_close
from kernels import no_races  # noqa: F401

BLOCK, WIDTH = 128, 16


@pytest.fixture
def kernel_with(monkeypatch):
    """Sets sizes of the kernel."""

    def change(**sizes):
        chosen = tpu_blocks.kernel_of
        monkeypatch.setattr(pallas_tpu, "kernel_of", lambda *arguments: chosen(*arguments)._replace(**sizes))

    return change


def make_inputs(queries, keys, slopes, key_heads, q_offset=0, dtype=jnp.float32):
    slopes = jnp.array(slopes, jnp.float32)
    shapes = [(queries, len(slopes)), *[(keys, key_heads)] * 2]
    randoms = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(r, (1, *s, WIDTH), dtype) for r, s in zip(randoms, shapes, strict=True)]
    seeds = jnp.zeros((1, len(slopes), 2), jnp.uint32)
    return Inputs(*arrays, LinearBias(slopes), jnp.int32(q_offset), seeds)


def definition(inputs, causal):
    """(residuals of a random gradient of the output, (dq, dk, dv)), by the formulas in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (inputs.q, inputs.k, inputs.v))
    group = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    distances = int(inputs.q_offset) + np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None]
    scores = np.einsum("bthd,bshd->bhts", q, k) * WIDTH**-0.5
    scores -= np.asarray(inputs.bias.slopes, np.float64)[None, :, None, None] * np.abs(distances)[None, None]
    scores = np.where(distances >= 0, scores, -np.inf) if causal else scores
    sums = np.exp(scores).sum(-1)
    weights = np.exp(scores) / sums[..., None]
    d_out = jax.random.normal(jax.random.key(1), inputs.q.shape, inputs.q.dtype)
    gradient = np.asarray(d_out, np.float64)
    d_weights = np.einsum("bthd,bshd->bhts", gradient, v)
    delta = (weights * d_weights).sum(-1)
    d_scores = weights * (d_weights - delta[..., None]) * WIDTH**-0.5
    dk, dv = np.einsum("bhts,bthd->bshd", d_scores, q), np.einsum("bhts,bthd->bshd", weights, gradient)
    dk, dv = (x.reshape(*x.shape[:2], -1, group, WIDTH).sum(3) for x in (dk, dv))
    residuals = Residuals(d_out, jnp.float32(np.log(sums)), jnp.float32(delta))
    return residuals, (np.einsum("bhts,bshd->bthd", d_scores, k), dk, dv)


def backward(inputs, residuals, causal=True, tolerance=None):
    options = Options(causal, 0.0, tolerance, interpret=True)
    run = functools.partial(pallas_tpu.IMPLEMENTATION.backward, options, wants_bias_gradient=False)
    return jax.jit(run)(inputs, residuals)[:3]


def assert_gradients(actual, exact, dtype=jnp.float32):
    what = "attention gradient" if dtype == jnp.float32 else "attention bfloat16"
    for x, y in zip(actual, exact, strict=True):
        scale = max(1.0, np.abs(y).max())
        assert_close(np.asarray(x, np.float64) / scale, y / scale, what)


IN_VMEM = pytest.mark.parametrize("in_vmem", [True, False], ids=["vmem", "hbm"])


@pytest.mark.parametrize(("in_vmem", "dtype"), [(True, jnp.bfloat16), (False, jnp.float32)], ids=["vmem", "hbm"])
@pytest.mark.usefixtures("no_races")
def test_groups_of_heads_each_skip_their_own_blocks(in_vmem, dtype, kernel_with):
    """The third block of queries looks at all keys, the fourth at its own alone: no range of blocks is without a gap."""
    kernel_with(block_q=BLOCK, block_k=BLOCK, dq_in_vmem=in_vmem)
    inputs = make_inputs(4 * BLOCK, 4 * BLOCK - 5, [0.5, 0.02], 1, dtype=dtype)
    inputs = inputs._replace(q=inputs.q.at[:, 2 * BLOCK : 3 * BLOCK].multiply(16))
    kernel = tpu_blocks.kernel_of(Options(True, 0.0, 1e-7), inputs)._replace(block_q=BLOCK, block_k=BLOCK)
    first = np.asarray(pallas_tpu._first(kernel, inputs))
    assert first[0, 0, 2] == 0 < first[0, 0, 3], first
    residuals, exact = definition(inputs, True)
    assert_gradients(backward(inputs, residuals, tolerance=1e-7), exact, dtype)


@pytest.mark.parametrize(
    ("queries", "keys", "q_offset", "block_q"), [(2 * BLOCK, 2 * BLOCK, 0, 2 * BLOCK), (100, 300, 200, BLOCK)]
)
@pytest.mark.usefixtures("no_races")
def test_a_sum_in_hbm_is_whole_before_the_next_visit_adds_to_it(queries, keys, q_offset, block_q, kernel_with):
    """One block of queries sees all keys: each visit reads what the one before is still writing."""
    kernel_with(block_q=block_q, block_k=BLOCK, dq_in_vmem=False)
    inputs = make_inputs(queries, keys, [0.1], 1, q_offset)
    residuals, exact = definition(inputs, True)
    assert_gradients(backward(inputs, residuals), exact)


@IN_VMEM
@pytest.mark.usefixtures("no_races")
def test_queries_of_both_sides_of_a_key(in_vmem, kernel_with):
    kernel_with(block_q=BLOCK, block_k=BLOCK, dq_in_vmem=in_vmem)
    inputs = make_inputs(200, 300, [0.1, 0.0], 2, dtype=jnp.bfloat16)
    residuals, exact = definition(inputs, False)
    assert_gradients(backward(inputs, residuals, causal=False), exact, jnp.bfloat16)


@IN_VMEM
@pytest.mark.usefixtures("no_races")
def test_queries_beyond_the_reach_of_all_keys_have_gradients_of_zero(in_vmem, kernel_with):
    """Their blocks are visited by none: what is not written would be NaN here."""
    kernel_with(block_q=BLOCK, block_k=BLOCK, dq_in_vmem=in_vmem)
    inputs = make_inputs(3 * BLOCK, BLOCK, [2.0], 1)
    residuals, _ = definition(inputs, True)
    residuals = residuals._replace(logsumexp=jnp.maximum(residuals.logsumexp, 0.0))  # as if of more keys
    bounds = RowBounds(score_bounds(inputs.q, inputs.k, inputs.q_offset, True), residuals.logsumexp)
    dq, dk, dv = backward(inputs._replace(row_bounds=bounds), residuals, tolerance=1e-7)
    assert not np.asarray(dq[:, 2 * BLOCK :]).any() and np.asarray(dq[:, :BLOCK]).any()
    assert np.isfinite(np.asarray(dk)).all() and np.isfinite(np.asarray(dv)).all()


def test_rows_that_saw_no_key_have_weights_of_zero():
    """So low a log-sum-exp would overflow to the base 2, and their weights be infinite."""
    inputs = make_inputs(6, 6, [0.5], 1)
    residuals, exact = definition(inputs, True)
    logsumexp = residuals.logsumexp.at[:, :, 4].set(LOWEST_SCORE)
    dq, dk, dv = backward(inputs, residuals._replace(logsumexp=logsumexp))
    assert not np.asarray(dq[:, 4]).any()
    assert_gradients([dq[:, :4], dk[:, 5:], dv[:, 5:]], [exact[0][:, :4], exact[1][:, 5:], exact[2][:, 5:]])


def test_the_gradients_of_some_keys_are_those_of_residuals_over_all():
    """As a ring needs them: the halves' gradients of the queries add up to those of the whole."""
    inputs = make_inputs(2 * BLOCK, 2 * BLOCK, [0.1, 0.3], 2)
    residuals, exact = definition(inputs, True)
    sums = 0
    for half in (0, 1):
        keys = slice(half * BLOCK, (half + 1) * BLOCK)
        rows = slice(half * BLOCK, None)  # the first queries see no keys of the second half
        here = inputs._replace(q=inputs.q[:, rows], k=inputs.k[:, keys], v=inputs.v[:, keys])
        some = Residuals(residuals.d_out[:, rows], residuals.logsumexp[:, :, rows], residuals.delta[:, :, rows])
        dq, dk, dv = backward(here, some)
        assert_gradients([dk, dv], [x[:, keys] for x in exact[1:]])
        sums += np.pad(np.asarray(dq), ((0, 0), (half * BLOCK, 0), (0, 0), (0, 0)))
    assert_gradients([sums], exact[:1])


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_inputs_have_nan_gradients(name):
    inputs = make_inputs(200, 200, [0.1], 1, dtype=jnp.bfloat16)
    residuals, _ = definition(inputs, True)
    inputs = inputs._replace(**{name: getattr(inputs, name).at[:, 150].set(jnp.nan)})
    dq, dk, _ = backward(inputs, residuals)
    assert np.isnan(np.float32(dq[:, 150])).all() and np.isnan(np.float32(dk[:, 150])).all()


def test_the_sums_of_dq_stay_in_vmem_where_they_fit(monkeypatch):
    """Whatever the width: a row of fewer than 128 numbers takes as much."""
    for kind, most in [("TPU v5 lite", 65_536), ("TPU v4", 0)]:
        monkeypatch.setattr(tpu_blocks, "device", lambda kind=kind: Device("tpu", kind))
        assert [tpu_blocks.dq_fits(rows, 64) for rows in (8192, most, most + 1)] == [most > 0, most > 0, False]
    monkeypatch.setattr(tpu_blocks, "device", lambda: Device("tpu", "TPU v5 lite"))
    assert tpu_blocks.dq_fits(32_768, 256) and not tpu_blocks.dq_fits(32_769, 256)


@pytest.mark.parametrize("topology", ["v5e:2x2", pytest.param("v6e:2x2", marks=pytest.mark.versions)])
def test_the_kernel_compiles_for_a_million_tokens(topology):
    """With no more memory beside its arrays than the float32 sums of dq."""
    length = 2**20
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = make_mesh(MeshConfig(), list(devices)[:1])
    numbers = [(1,), (1,), (1, 1, 1, 2), *[(1, 1, 1, length // 512)] * 2, *[(1, 1, length, 128)] * 4, (1, 1, 2, length)]
    dtypes = [jnp.int32, jnp.float32, *[jnp.int32] * 3, *[jnp.bfloat16] * 4, jnp.float32]
    arrays = tpu_backward.Arrays(*map(jax.ShapeDtypeStruct, numbers, dtypes))
    kernel = tpu_blocks.Kernel(Options(True, 0.0, None), length, 512, 512, 1, True, dq_in_vmem=False)
    with jax.set_mesh(mesh):
        placed = NamedSharding(mesh, PartitionSpec())
        run = jax.jit(functools.partial(tpu_backward.run_backward, kernel), in_shardings=placed, out_shardings=placed)
        compiled = run.lower(arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.01 * 4 * 128 * length


def test_a_gap_between_visited_blocks_is_not_read(kernel_with):
    """The third block of queries sees the first keys and the fourth does not, whose gradients of NaN do not reach them."""
    kernel_with(block_q=BLOCK, block_k=BLOCK)
    inputs = make_inputs(5 * BLOCK, 5 * BLOCK, [0.5], 1)
    scales = jnp.repeat(jnp.array([1.0, 1.0, 16.0, 1.0, 32.0]), BLOCK)
    inputs = inputs._replace(q=inputs.q * scales[None, :, None, None])
    residuals, exact = definition(inputs, True)
    d_out = residuals.d_out.at[:, 3 * BLOCK : 4 * BLOCK].set(jnp.nan)
    gradients = backward(inputs, residuals._replace(d_out=d_out), tolerance=1e-7)
    assert np.isnan(np.asarray(gradients[0][:, 3 * BLOCK : 4 * BLOCK])).all()
    assert_gradients([x[:, :BLOCK] for x in gradients], [x[:, :BLOCK] for x in exact])
