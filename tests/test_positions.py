"""Position methods against the papers' own numbers and the properties that define them."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import strategies as st

from alibi_jax.config import ModelConfig
from alibi_jax.errors import LengthError
from alibi_jax.positions.alibi import Alibi
from alibi_jax.positions.bias import BucketBias, LinearBias, alibi_slopes, bucket_edges
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.positions.rotary import rotate_pairs
from alibi_jax.positions.sinusoidal import sinusoids
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


def test_rotary_scores_depend_on_relative_position_alone():
    q, k = (jax.random.normal(jax.random.key(i), (1, 5, 2, 16)) for i in range(2))

    def scores(shift):
        turned = (rotate_pairs(x, jnp.arange(5) + shift, 10_000.0) for x in (q, k))
        return jnp.einsum("bthd,bshd->bhts", *turned)

    np.testing.assert_allclose(scores(0), scores(1000), atol=2e-4)  # angles of 1,000 radians are float32's limit
    assert float(jnp.abs(scores(0) - jnp.einsum("bthd,bshd->bhts", q, k)).max()) > 0.1


def test_rotary_against_complex_multiplication_in_float64():
    x = np.random.default_rng(0).normal(size=(1, 7, 1, 8)).astype(np.float32)
    turned = np.exp(1j * np.arange(7)[:, None] * 10_000.0 ** (-np.arange(4) / 4)[None, :])
    expected = (x[0, :, 0, :4] + 1j * x[0, :, 0, 4:]) * turned
    actual = rotate_pairs(jnp.asarray(x), jnp.arange(7), 10_000.0)[0, :, 0]
    assert_close(actual, np.concatenate([expected.real, expected.imag], -1), "position")


def test_sinusoids_against_the_formula_and_unit_length_pairs():
    width, positions = 16, np.arange(40)
    rates = 10_000.0 ** (-np.arange(8) / 7)
    expected = np.concatenate([np.sin(positions[:, None] * rates), np.cos(positions[:, None] * rates)], -1)
    actual = np.asarray(sinusoids(jnp.asarray(positions), width))
    np.testing.assert_allclose(actual, expected, atol=5e-6)
    np.testing.assert_allclose(actual[:, :8] ** 2 + actual[:, 8:] ** 2, 1.0, atol=1e-5)


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


def test_learned_refuses_lengths_past_its_table_naming_both():
    method = POSITIONS["learned"](ModelConfig(position="learned", width=8, num_heads=1, learned_length=16))
    variables = method.init(jax.random.key(0), jnp.zeros((1, 16, 8)), jnp.arange(16), method="embed")
    with pytest.raises(LengthError, match=r"17 tokens.*at most 16"):
        method.apply(variables, jnp.zeros((1, 17, 8)), jnp.arange(17), method="embed")


def test_learned_refuses_positions_outside_its_table_and_traced_ones_give_nan():
    method = POSITIONS["learned"](ModelConfig(position="learned", width=8, num_heads=1, learned_length=16))
    x = jnp.zeros((1, 4, 8))
    variables = method.init(jax.random.key(0), x, jnp.arange(4), method="embed")

    def embed(positions):
        return method.apply(variables, x, positions, method="embed")

    for positions, wrong in ((jnp.arange(13, 17), 16), (jnp.array([0, -1, 2, 3]), -1), (jnp.arange(20, 24), 20)):
        with pytest.raises(LengthError, match=f"got position {wrong}, expected 0 to 15"):
            embed(positions)
    traced = jax.jit(embed)(jnp.array([-1, 0, 15, 16]))
    assert np.isnan(traced).all(-1).tolist() == [[True, False, False, True]]
    np.testing.assert_array_equal(traced[:, 1:3], embed(jnp.array([0, 15, 0, 0]))[:, :2])


@pytest.mark.parametrize("name", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("positions", [np.arange(1), np.arange(6), np.arange(5.0)], ids=["one", "six", "float"])
@pytest.mark.usefixtures("shapes_unchecked")
def test_positions_that_are_not_one_whole_number_a_token_are_refused(name, positions):
    method = POSITIONS[name](ModelConfig(position=name, width=8, num_heads=1))
    x, hook = (jnp.zeros((1, 5, 1, 8)), "rotate") if name == "rotary" else (jnp.zeros((1, 5, 8)), "embed")
    with pytest.raises(ValueError, match="for 5 tokens, expected so many integers"):
        method.init(jax.random.key(0), x, jnp.asarray(positions), method=hook)


@pytest.mark.parametrize(("buckets", "max_distance"), [(1, 128), (0, 128), (32, 16), (32, 64.5)])
@pytest.mark.usefixtures("shapes_unchecked")
def test_t5_buckets_refuse_what_makes_no_edges(buckets, max_distance):
    with pytest.raises(ValueError, match=f"got {buckets} with max_distance {max_distance}, expected"):
        bucket_edges(buckets, max_distance)


@pytest.mark.parametrize("change", [{"slopes": "geometrical"}, {"divisor": 0.0}, {"divisor": np.nan}])
@pytest.mark.usefixtures("shapes_unchecked")
def test_alibi_refuses_slopes_it_does_not_know(change):
    with pytest.raises(ValueError, match="Alibi: got slopes"):
        nn.init_with_output(lambda method: method.bias(), Alibi(4, **change))(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("alibi", "bias"),
        ("t5", "bias"),
        ("rotary", "rotate"),
        ("sinusoidal", "embed"),
        ("learned", "embed"),
        ("none", ""),
    ],
)
def test_every_method_acts_through_one_hook(name, hook):
    method = POSITIONS[name](ModelConfig(position=name, width=16, num_heads=2))
    x, heads, positions = jnp.ones((1, 5, 16)), jnp.ones((1, 5, 2, 8)), jnp.arange(5)

    def hooks(method):
        return method.embed(x, positions), method.rotate(heads, positions), method.bias()

    embedded, rotated, bias = nn.init_with_output(hooks, method)(jax.random.key(0))[0]
    acts = {"embed": bool((embedded != x).any()), "rotate": bool((rotated != heads).any()), "bias": bias is not None}
    assert [name for name, does in acts.items() if does] == ([hook] if hook else [])
