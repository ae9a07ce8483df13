"""Biases against the papers' own numbers, and the properties that define them."""

import dataclasses
import functools
from typing import Any, ClassVar

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from alibi_jax.attention import attend
from alibi_jax.config import MeshConfig
from alibi_jax.positions.bias import Bias, BucketBias, LinearBias, RoundedBias, alibi_slopes, bucket_edges
from alibi_jax.sharding import make_mesh
from conftest import assert_close


def test_slopes_of_8_and_16_heads_are_the_papers():
    assert alibi_slopes(8).tolist() == [2.0**-k for k in range(1, 9)]
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-k / 2) for k in range(1, 17)], rtol=1e-7)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (12, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256, 0.70711, 0.35355, 0.17678, 0.08839]),
        (6, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]),
        (1, [2.0**-8]),
        (3, [0.0625, 0.00390625, 0.25]),
    ],
)
def test_slopes_of_other_head_counts_keep_the_references_order(heads, expected):
    np.testing.assert_allclose(alibi_slopes(heads), expected, rtol=1e-4)


@hypothesis.given(st.integers(1, 200), st.floats(1, 32))
def test_slopes_fall_by_one_ratio_within_a_power_of_two(heads, bias_max):
    slopes = alibi_slopes(heads, bias_max).astype(np.float64)
    power = 2 ** int(np.log2(heads))
    assert slopes.shape == (heads,)
    np.testing.assert_allclose(slopes[power - 1], 2.0**-bias_max, rtol=1e-5)
    np.testing.assert_allclose(slopes[1:power] / slopes[: power - 1], 2.0 ** (-bias_max / power), rtol=1e-5)
    assert len(np.unique(slopes)) == heads


def test_bias_max_16_squares_the_slopes():
    np.testing.assert_allclose(alibi_slopes(16, 16.0), alibi_slopes(16) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("heads", "bias_max"),
    [(0, 8.0), (-3, 8.0), (8.0, 8.0), (True, 8.0), ("8", 8.0), (8, 0.0), (8, np.nan), (8, np.inf), (8, 200.0)],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_slopes_refuse_bad_input(heads, bias_max):
    with pytest.raises(ValueError, match="got .* expected .*"):
        alibi_slopes(heads, bias_max)


def test_linear_bias_is_minus_slope_times_distance_at_any_position():
    slopes = jnp.asarray(alibi_slopes(4))
    far = 1_000_003
    block = LinearBias(slopes).block(jnp.arange(far, far + 3), jnp.arange(far - 2, far + 3))
    for h in range(4):
        for t in range(3):
            for s in range(5):
                assert block[h, t, s] == -slopes[h] * abs(t - (s - 2))
    assert block.dtype == jnp.float32


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_rounded_bias_is_that_of_bfloat16_products_at_absolute_positions(implementation):
    """Falcon-RW's rule with ml_dtypes: slope, position and product are rounded; queries begin at 3,000."""
    slopes, divisors = alibi_slopes(3, 7.0), np.float32([2.0, 4.0, 8.0])
    bias, first, length = RoundedBias(jnp.asarray(slopes), jnp.asarray(divisors)), 3000, 3040
    keys = np.arange(length)
    products = slopes.astype(ml_dtypes.bfloat16)[:, None] * keys.astype(ml_dtypes.bfloat16)
    absolute = products.astype(np.float32)
    expected = (absolute[:, None] - absolute[:, first:, None]) / divisors[:, None, None]
    seen = keys <= keys[first:, None]
    block = bias.block(jnp.asarray(keys[first:]), jnp.asarray(keys))
    assert (np.asarray(block) == expected)[:, seen].all()
    assert (
        np.abs(expected + (slopes / divisors)[:, None, None] * (keys[first:, None] - keys))[:, seen].max() > 0.5
    )  # rounding matters
    q, k, v = (jax.random.normal(jax.random.key(i), (1, n, 3, 8)) for i, n in enumerate((40, length, length)))
    out = jax.jit(functools.partial(attend, implementation=implementation))(q, k, v, bias=bias, q_offset=first)
    scores = np.einsum("bthd,bshd->bhts", *(np.asarray(x, np.float64) for x in (q, k))) / np.sqrt(8) + expected
    weights = np.exp(np.where(seen, scores - scores.max(-1, keepdims=True), -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    assert_close(out, np.einsum("bhts,bshd->bthd", weights, np.asarray(v, np.float64)), "attention")


def test_kernels_do_not_serve_a_rounded_bias():
    q = jnp.zeros((1, 16, 2, 8), jnp.bfloat16)
    for name in ("pallas_tpu", "pallas_gpu", "mosaic_gpu"):
        with pytest.raises(NotImplementedError, match="cannot serve a RoundedBias"):
            attend(q, q, q, bias=RoundedBias(jnp.ones(2), jnp.ones(2)), implementation=name, interpret=True)


def published_bucket(distance: int, buckets: int = 32, max_distance: int = 128) -> int:
    """The rule of T5 for causal attention, in exact arithmetic on Python floats."""
    exact = buckets // 2
    if distance < exact:
        return max(distance, 0)
    grown = np.log(distance / exact) / np.log(max_distance / exact) * (buckets - exact)
    return min(exact + int(grown + 1e-9), buckets - 1)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64), (64, 1000), (2, 3)])
def test_t5_buckets_follow_the_published_rule(buckets, max_distance):
    distances = np.arange(-5, 2 * max_distance)
    bias = BucketBias(jnp.zeros((buckets, 1)), max_distance)
    expected = [published_bucket(int(d), buckets, max_distance) for d in distances]
    assert bias.buckets(jnp.asarray(distances)).tolist() == expected


def test_t5_buckets_of_the_released_models():
    """Distances at which T5's 32 buckets (max distance 128) begin, as its public implementations give them."""
    edges = [*range(1, 16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert bucket_edges(32, 128).tolist() == edges


def test_t5_bias_reads_the_heads_column_of_its_table():
    table = jax.random.normal(jax.random.key(0), (32, 3))
    block = BucketBias(table).block(jnp.arange(200, 204), jnp.arange(100, 210))
    for h, t, s in [(0, 0, 0), (1, 3, 103), (2, 2, 50), (0, 1, 109)]:
        distance = 200 + t - (100 + s)
        assert block[h, t, s] == table[published_bucket(distance), h]


@pytest.mark.parametrize(("buckets", "max_distance"), [(1, 128), (0, 128), (32, 16), (32, 64.5)])
@pytest.mark.usefixtures("shapes_unchecked")
def test_t5_buckets_refuse_what_makes_no_edges(buckets, max_distance):
    with pytest.raises(ValueError, match=f"got {buckets} with max_distance {max_distance}, expected"):
        bucket_edges(buckets, max_distance)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WaveBias(Bias):
    """scales[h] times the sum over r of weights[r, h] cos(rates[r] d): arrays with the heads first, last, and not at all."""

    dimensions: ClassVar[dict[str, tuple[str, ...]]] = {
        "scales": ("heads",),
        "weights": ("rows", "heads"),
        "rates": ("rows",),
    }

    scales: Any
    weights: Any
    rates: Any

    def block(self, q_positions, k_positions):
        distances = (q_positions[:, None] - k_positions[None, :]).astype(jnp.float32)
        waves = jnp.cos(self.rates[:, None, None] * distances[None])
        return self.scales[:, None, None] * jnp.einsum("rh,rts->hts", self.weights, waves)

    def largest(self):
        return jnp.abs(self.scales) * jnp.abs(self.weights).sum(0)


def wave_bias(heads: int) -> WaveBias:
    keys = jax.random.split(jax.random.key(1), 3)
    return WaveBias(*map(jax.random.normal, keys, [(heads,), (3, heads), (3,)]))


def test_selected_heads_are_those_of_the_whole_bias():
    bias, positions = wave_bias(6), jnp.arange(5)
    selected = bias.select_heads(2, 3)
    np.testing.assert_array_equal(selected.scales, bias.scales[2:5])
    np.testing.assert_array_equal(selected.rates, bias.rates)
    assert_close(selected.block(positions, positions), bias.block(positions, positions)[2:5], "position")


@pytest.mark.parametrize(("tensor", "sequence"), [(1, 1), (2, 1), (2, 2)], ids=["alone", "heads", "ring"])
def test_a_bias_of_several_arrays_has_the_same_output_and_gradients_wherever_its_heads_lie(tensor, sequence):
    """Blockwise against the definition, with two query heads for each key head."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 160, heads, 8)) for i, heads in enumerate((4, 2, 2)))
    inputs = q, k, v, wave_bias(4)

    def run(implementation: str):
        def loss(*inputs):
            out = attend(*inputs[:3], bias=inputs[3], implementation=implementation)
            return jnp.square(out).sum() / 160, out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*inputs)

    expected, expected_out = run("reference")
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, tensor, sequence), jax.devices()[: tensor * sequence])):
        gradients, out = run("blockwise")
    assert_close(out, expected_out, "attention")
    assert all(np.abs(array).max() > 1e-3 for array in jax.tree.leaves(expected))
    jax.tree.map(lambda x, y: assert_close(x, y, "attention gradient"), gradients, expected)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnboundedBias(LinearBias):
    """A bias of which nothing is known but its values."""

    decay = Bias.decay
    largest = Bias.largest


def test_a_bias_with_values_alone_is_served_and_skips_nothing():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 1100, 2, 8)) for i in range(3))
    slopes = jnp.array([0.5, 0.01])
    outputs = [attend(q, k, v, bias=UnboundedBias(slopes), implementation=name) for name in ("reference", "blockwise")]
    assert_close(outputs[1], outputs[0], "attention")
