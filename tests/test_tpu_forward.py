"""The TPU's forward kernel, interpreted: every branch, at the limits of where it goes without a running maximum."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from alibi_jax.attention import blocks, pallas_tpu
from alibi_jax.attention.ceilings import KEEP_MAXIMUM, LARGEST_FALL, LARGEST_WEIGHT, ceilings
from alibi_jax.attention.implementation import Inputs, Options, RowBounds
from alibi_jax.attention.padded import with_row_bounds
from alibi_jax.attention.reach import SLACK
from alibi_jax.attention.tpu_blocks import kernel_of
from alibi_jax.config import MeshConfig
from alibi_jax.positions import LinearBias
from alibi_jax.sharding import make_mesh
from conftest import assert_close
from kernels import no_races  # noqa: F401

BLOCK = 128
LENGTH, WIDTH = 3 * BLOCK, 16
NATS = math.log(2)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", BLOCK)


def forward(inputs, causal=True, tolerance=None):
    run = functools.partial(pallas_tpu.IMPLEMENTATION.forward, Options(causal, 0.0, tolerance, interpret=True))
    return jax.jit(run)(inputs)


def no_maximum(inputs, causal=True, tolerance=None):
    """Whether each block of queries [B, H, N] goes without a running maximum."""
    options = Options(causal, 0.0, tolerance)
    kernel = kernel_of(options, inputs)
    return np.asarray(pallas_tpu._ceilings(kernel, with_row_bounds(options, inputs))) != KEEP_MAXIMUM


def exact(inputs, causal=True):
    """(output [B, T, H, D], log-sum-exp [B, H, T]) in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (inputs.q, inputs.k, inputs.v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    distances = int(inputs.q_offset) + np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None]
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    scores -= np.asarray(inputs.bias.slopes, np.float64)[None, :, None, None] * np.abs(distances)[None, None]
    scores = np.where(distances >= 0, scores, -np.inf) if causal else scores
    largest = scores.max(-1, keepdims=True)
    total = np.exp(scores - largest).sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", np.exp(scores - largest) / total, v), (largest + np.log(total))[..., 0]


def at_the_limit(dtype):
    """Queries of one direction, whose keys point along or against it: scores take the whole range that the bound allows, and
    the nearest keys are among the worst. Heads: bounds just below and above the limit, both with a steep slope, one that grows
    with the distance."""
    gentle = 2.0**-10
    fall = LARGEST_FALL - gentle * (BLOCK - 1) / NATS
    bounds = np.array([0.98, 1.02, 0.5, 1.02, 0.5]) * fall / 2 * NATS / SLACK
    slopes = jnp.array([gentle, gentle, 0.5, 0.5, -gentle], jnp.float32)
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(LENGTH) % 50 == 7, 1.0, -1.0)
    size = np.sqrt(bounds * np.sqrt(WIDTH) / WIDTH)
    q = np.broadcast_to(size[:, None], (1, LENGTH, len(size), WIDTH))
    k = q * signs[None, :, None, None]
    v = rng.standard_normal(q.shape)
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    return Inputs(q, k, v, LinearBias(slopes), jnp.int32(0), jnp.zeros((1, len(size), 2), jnp.uint32))


@pytest.mark.usefixtures("no_races")
def test_both_sides_of_the_limit_equal_float64():
    """Blocks that need a mask and that need none, with and without a running maximum, one visit and several."""
    inputs = at_the_limit(jnp.bfloat16)
    expected = np.array([True, False, False, False, False])
    np.testing.assert_array_equal(no_maximum(inputs), np.broadcast_to(expected[None, :, None], (1, 5, 3)))
    (out, logsumexp), (exact_out, exact_logsumexp) = forward(inputs), exact(inputs)
    assert_close(out, exact_out, "attention bfloat16")
    assert_close(logsumexp, exact_logsumexp, "attention of huge scores")


@pytest.mark.parametrize("bits", [-46, 61])
def test_tiny_and_huge_values_survive_without_a_maximum(bits):
    """Rows of the least and of the largest weights that the limit allows: no product with values under- or overflows."""
    inputs = at_the_limit(jnp.bfloat16)
    inputs = inputs._replace(v=inputs.v * jnp.bfloat16(2.0**bits))
    out = np.asarray(forward(inputs)[0], np.float64) * 2.0**-bits
    assert_close(out, exact(inputs)[0] * 2.0**-bits, "attention bfloat16")


@pytest.mark.parametrize(
    ("queries", "keys", "q_offset", "causal", "dtype"),
    [
        (70, 300, 263, True, jnp.dtype("bfloat16")),
        (300, 200, 0, True, jnp.dtype("float32")),
        (200, 150, 0, False, jnp.dtype("bfloat16")),
    ],
    ids=["end of a cache, past the keys", "queries past the keys", "encoder"],
)
@pytest.mark.usefixtures("no_races")
def test_padding_shared_keys_and_nan(queries, keys, q_offset, causal, dtype):
    """One query of the second head is NaN: its row alone is, and its block keeps the running maximum."""
    rng = np.random.default_rng(1)
    q = rng.standard_normal((1, queries, 2, WIDTH)).astype(np.float32)
    q[0, -1, 1] = np.nan
    k, v = (jnp.asarray(rng.standard_normal((1, keys, 1, WIDTH)), dtype) for _ in range(2))
    slopes = jnp.array([2.0**-6, 2.0**-5])
    seeds = jnp.zeros((1, 2, 2), jnp.uint32)
    inputs = Inputs(jnp.asarray(q, dtype), k, v, LinearBias(slopes), jnp.int32(q_offset), seeds)
    flags = no_maximum(inputs, causal)
    assert flags[0, 0].all() == (dtype == jnp.bfloat16) and not flags[0, 1, -1]
    out, logsumexp = forward(inputs, causal, 2.0**-25)
    exact_out, exact_logsumexp = exact(inputs, causal)
    kind = "attention" if dtype == jnp.float32 else "attention bfloat16"
    assert_close(out[:, :-1], exact_out[:, :-1], kind)
    assert_close(logsumexp[:, :, :-1], exact_logsumexp[:, :, :-1], kind)
    assert_close(out[:, :, 0], exact_out[:, :, 0], kind)
    assert np.isnan(out[0, -1, 1]).all()


@pytest.mark.usefixtures("no_races")
def test_blocks_of_queries_that_need_no_key_stand_between_others():
    """As on a ring, where a row's mass is known from elsewhere: the copies of the next block's keys begin anew."""
    rng = np.random.default_rng(3)
    q, k, v = (jnp.asarray(rng.standard_normal((1, LENGTH, 1, WIDTH)), jnp.bfloat16) for _ in range(3))
    inputs = Inputs(q, k, v, LinearBias(jnp.array([0.5])), jnp.int32(LENGTH), jnp.zeros((1, 1, 2), jnp.uint32))
    rows = np.arange(LENGTH) // BLOCK == 1
    bounds = RowBounds(
        jnp.full((1, 1, LENGTH), 30.0), jnp.asarray(np.where(rows, 500.0, -400.0), jnp.float32)[None, None]
    )
    out, logsumexp = forward(inputs._replace(row_bounds=bounds), tolerance=2.0**-13)
    exact_out, exact_logsumexp = exact(inputs)
    assert_close(out[:, ~rows], exact_out[:, ~rows], "attention bfloat16")
    assert_close(logsumexp[:, :, ~rows], exact_logsumexp[:, :, ~rows], "attention of huge scores")
    assert not out[:, rows].any() and (logsumexp[:, :, rows] < -1e38).all()


def test_ceilings_keep_exponents_within_their_range():
    """Against each row's own exponents of the worst scores that the bounds allow."""
    rng = np.random.default_rng(2)
    bounds = jnp.asarray(
        rng.uniform(0, 40, (1, 6, 300)) * np.array([0.1, 0.5, 0.8, 1, 1, 1])[None, :, None], jnp.float32
    )
    slopes = jnp.array([0.5, 0.05, 0.01, 0.0, 2.0**-8, 0.1])
    gaps = jnp.array([127, 127, 43])
    bits = np.asarray(ceilings(bounds, slopes, gaps, BLOCK))
    assert 0 < (bits == KEEP_MAXIMUM).sum() < bits.size
    for h, i in zip(*np.nonzero(bits[0] != KEEP_MAXIMUM), strict=True):
        rows = np.asarray(bounds[0, h, i * BLOCK : (i + 1) * BLOCK], np.float64) / NATS
        nearest = -rows - float(slopes[h]) / NATS * float(gaps[i]) - bits[0, h, i]
        assert (rows - bits[0, h, i]).max() <= LARGEST_WEIGHT + 1e-4
        assert nearest.min() >= LARGEST_WEIGHT - LARGEST_FALL - 1e-4


@pytest.mark.parametrize(
    ("bound", "slope"), [(math.nan, 0.1), (math.inf, 0.1), (1.0, math.nan), (1.0, -0.1), (1e30, 0.0)]
)
def test_nothing_is_proved_of_what_is_not_finite_or_grows(bound, slope):
    bounds = jnp.ones((1, 2, 2 * BLOCK)).at[0, 0, 5].set(bound)
    bits = ceilings(bounds, jnp.array([slope, 0.1]), jnp.array([BLOCK, BLOCK]), BLOCK)
    proved = 1 / NATS - LARGEST_WEIGHT
    expected = np.array([[KEEP_MAXIMUM, KEEP_MAXIMUM if not slope >= 0 else proved], [proved, proved]])
    np.testing.assert_allclose(bits[0], expected, rtol=1e-6)


@pytest.mark.parametrize("topology", ["v5e:2x2", pytest.param("v6e:2x2", marks=pytest.mark.versions)])
def test_a_million_tokens_compile(topology, monkeypatch):
    """No memory of scalars or vectors grows past what a chip has."""
    from alibi_jax.attention.tpu_forward import run_forward

    monkeypatch.undo()  # to the blocks that are no test's
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = make_mesh(MeshConfig(), list(devices)[:1])
    placed = NamedSharding(mesh, PartitionSpec())
    array = jax.ShapeDtypeStruct((1, 2**20, 1, 128), jnp.bfloat16, sharding=placed)

    def run(q, k, v):
        inputs = Inputs(q, k, v, None, jnp.int32(0), jnp.zeros((1, 1, 2), jnp.uint32))
        kernel = kernel_of(Options(True, 0.0, None), inputs)
        first = jnp.zeros((1, 1, 1, 2**20 // kernel.block_q), jnp.int32)
        seeds = inputs.seeds[:, :, None].astype(jnp.int32)
        scalars = inputs.q_offset[None], jnp.full(1, 2.0**-8), seeds, first, first.astype(jnp.float32)
        return run_forward(kernel, *(x.swapaxes(1, 2) for x in (q, k, v)), *scalars)

    with jax.set_mesh(mesh):
        compiled = jax.jit(run).lower(array, array, array).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1
