"""The reach: what is skipped holds no more of a row's softmax than the tolerance says, whatever the inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alibi_jax.attention import attend
from alibi_jax.attention.reach import first_key_blocks, last_query_blocks, nearest_mass
from alibi_jax.positions import LinearBias, alibi_slopes
from alibi_jax.sharding import Device
from benchmarks.inputs import INPUTS, normal
from benchmarks.shapes import Shape
from conftest import assert_close
from kernels import KERNELS, mosaic_gpu_of_float32, parameters  # noqa: F401

pytestmark = pytest.mark.usefixtures("mosaic_gpu_of_float32")

LENGTH, WIDTH = 320, 8


def made(make, seed, heads, size=1.0, dtype=jnp.float32):
    """(q, k, v) [1, LENGTH, heads, WIDTH]."""
    return [jnp.asarray(x, dtype) for x in make(seed, Shape(1, LENGTH, LENGTH, heads, heads, WIDTH), size)]


def masses(q, k, slopes, q_offset=0):
    """Softmax weights in float64, [H, T, S]."""
    q, k = (np.asarray(x, np.float64)[0].transpose(1, 0, 2) for x in (q, k))
    distances = q_offset + np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])[None, :]
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) - np.asarray(slopes, np.float64)[:, None, None] * distances
    scores = np.where(distances >= 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("tolerance", "block_q", "block_k"))
def first_blocks(q, k, slopes, q_offset, tolerance, block_q, block_k):
    return first_key_blocks(q, k, slopes, q_offset, tolerance, block_q, block_k)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    make=st.sampled_from(INPUTS),
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.01, 1.0, 3.0, 10.0]),
    heads=st.sampled_from([1, 3, 8]),
    group=st.sampled_from([1, 2]),
    q_offset=st.sampled_from([0, 64]),
    tolerance=st.sampled_from([2.0**-25, 1e-3, 0.1]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    blocks=st.sampled_from([(64, 32), (32, 64)]),
)
def test_skipped_mass_is_below_the_tolerance(make, seed, size, heads, group, q_offset, tolerance, dtype, blocks):
    """Key head h // group serves head h; of several, the last has keys a hundred times shorter."""
    q, k, _ = made(make, seed, heads, size, dtype)
    k = k.at[:, :, -1].divide(100 if heads > 1 else 1)
    q = jnp.repeat(q, group, axis=2)[:, q_offset:]
    slopes, (block_q, block_k) = alibi_slopes(heads * group), blocks
    first = np.asarray(first_blocks(q, k, slopes, q_offset, tolerance, block_q, block_k))[0]
    weights = masses(q, jnp.repeat(k, group, axis=2), slopes, q_offset)
    for h in range(heads * group):
        for i, block in enumerate(first[h]):
            assert block * block_k <= q_offset + i * block_q, "a query's own key is skipped"
            skipped = weights[h, i * block_q : (i + 1) * block_q, : block * block_k].sum(-1)
            assert skipped.max() <= tolerance


@pytest.mark.parametrize("implementation", [parameters(name, quick=False) for name in ("blockwise", *KERNELS)])
def test_a_coarse_tolerance_moves_the_output_no_more_than_it_allows(implementation, monkeypatch):
    """Leaving out a share e of a row's mass moves its mean of the values by at most 2 e max |v|."""
    monkeypatch.setattr("alibi_jax.attention.blocks.BLOCK", 64)  # several blocks in a short sequence
    slopes = alibi_slopes(3)
    for tolerance in (1e-2, 0.3):
        run = jax.jit(
            functools.partial(attend, implementation=implementation, reach_tolerance=tolerance, interpret=True)
        )
        for make in INPUTS:
            q, k, v = made(make, 1, 3, 2.0)
            exact = np.einsum("hts,shd->thd", masses(q, k, slopes), np.asarray(v[0], np.float64))
            error = np.abs(np.asarray(run(q, k, v, bias=LinearBias(slopes))[0]) - exact).max()
            assert error <= 2 * tolerance * float(jnp.abs(v).max()) + 1e-5, f"{make}, tolerance {tolerance}"


@pytest.mark.parametrize("implementation", [parameters(name, quick=False) for name in ("blockwise", *KERNELS)])
def test_skipped_blocks_are_not_read_forward_or_backward(implementation, monkeypatch):
    """NaN in values far before a query, or in gradients of outputs far after a key, is not seen; without skipping it is."""
    monkeypatch.setattr("alibi_jax.attention.blocks.BLOCK", 64)
    q, k, v = (jnp.tile(x, (1, 2, 1, 1)) for x in made(normal, 0, 2))
    slopes, ones = jnp.array([0.5, 0.25]), jnp.ones_like(q)

    def loss(q, k, v, weights, tolerance):
        options = {"implementation": implementation, "reach_tolerance": tolerance, "interpret": True}
        out = attend(q, k, v, bias=LinearBias(slopes), **options)
        return (out * weights).sum(), out

    step = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True), static_argnums=4)
    for tolerance, seen in ((2.0**-25, False), (None, True)):
        (dq, *_), out = step(q, k, v.at[:, :128].set(jnp.nan), ones, tolerance)
        (_, dk, dv), _ = step(q, k, v, ones.at[:, 512:].set(jnp.nan), tolerance)
        assert not bool(jnp.isfinite(out[:, :100]).any())
        far = out[:, 512:], dq[:, 512:], dk[:, :128], dv[:, :128]
        assert [bool(jnp.isfinite(x).all()) for x in far] == [not seen] * 4


@pytest.mark.parametrize("implementation", [parameters(name, quick=False) for name in ("blockwise", *KERNELS)])
def test_the_default_equals_the_unskipped_to_rounding(implementation, monkeypatch):
    monkeypatch.setattr("alibi_jax.attention.blocks.BLOCK", 64)
    q, k, v = made(normal, 2, 3, 2.0)
    bias = LinearBias(alibi_slopes(3))
    run = functools.partial(attend, q, k, v, bias=bias, implementation=implementation, interpret=True)
    assert_close(jax.jit(run)(), jax.jit(functools.partial(run, reach_tolerance=None))(), "skipping")


@pytest.mark.parametrize("slope", [0.0, -0.1, np.nan])
def test_no_bound_skips_nothing(slope):
    q, k, _ = made(normal, 0, 2)
    first = first_blocks(q, k, jnp.array([slope, 0.5]), 0, 2.0**-25, 32, 32)
    assert int(first[0, 0].max()) == 0 < int(first[0, 1].max())
    first = first_blocks(q.at[0, 200, 1, 0].set(jnp.nan), k, jnp.array([0.5, 0.5]), 0, 2.0**-25, 32, 32)
    assert int(first[0, 1, 200 // 32]) == 0 < int(first[0, 0, 200 // 32])


def test_reach_of_a_cache_and_of_queries_past_the_keys():
    """Positions count from q_offset; where no key is near, nothing is known of the sum, and nothing is skipped."""
    q, k, _ = made(normal, 0, 2)
    slopes = jnp.array([0.5, 0.25])
    whole = first_blocks(q, k, slopes, 0, 2.0**-25, 32, 32)
    end = first_blocks(q[:, 256:], k, slopes, 256, 2.0**-25, 32, 32)
    np.testing.assert_array_equal(end, whole[:, :, 8:])
    assert int(first_blocks(q[:, :32], k, slopes, 5000, 2.0**-25, 32, 32).max()) == 0


@pytest.mark.parametrize("q_offset", [3, 5000])
def test_the_mass_of_the_nearest_keys_is_the_same_in_steps_unrolled_for_gpus_and_tpus(q_offset, monkeypatch):
    q, k, _ = made(normal, 0, 2)
    arguments, texts, results = (q, k, jnp.array([0.5, 0.25]), jnp.int32(q_offset)), [], []
    for card in (Device("cpu", "cpu"), Device("gpu", "NVIDIA H200"), Device("tpu", "TPU v6 lite")):
        monkeypatch.setattr("alibi_jax.attention.reach.device", lambda card=card: card)
        mass = jax.jit(lambda *arrays: nearest_mass(*arrays))  # another function: a trace of the same one would be kept
        texts.append(mass.lower(*arguments).as_text())
        results.append(jnp.maximum(mass(*arguments), -1e3))  # -inf where no key is near
    assert ["stablehlo.while" in text for text in texts] == [True, False, False]
    assert ["stablehlo.gather" in text for text in texts] == [True, True, False]
    for other in results[1:]:
        assert_close(other, results[0], "attention")


def test_last_query_blocks_turns_the_visits_around():
    first = np.random.default_rng(0).integers(0, 8, (2, 3, 5)).astype(np.int32)
    last = np.asarray(last_query_blocks(jnp.asarray(first), 6))
    for b, h, j in np.ndindex(2, 3, 6):
        visitors = [i for i in range(5) if first[b, h, i] <= j]
        assert last[b, h, j] == (max(visitors) if visitors else -1)
