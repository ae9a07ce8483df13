"""Position methods against the papers' own numbers and the properties that define them."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from alibi_jax.config import ModelConfig, PositionName
from alibi_jax.config.sizes import parameter_count
from alibi_jax.errors import LengthError
from alibi_jax.model import TransformerLM, placement
from alibi_jax.optimizer import decayed
from alibi_jax.positions.alibi import Alibi
from alibi_jax.positions.bias import alibi_slopes
from alibi_jax.positions.learned import Learned
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.positions.rotary import rotate_pairs
from alibi_jax.positions.sinusoidal import sinusoids
from alibi_jax.sharding import RULES
from conftest import assert_close


def method_of(name: str):
    return POSITIONS[name].from_config(ModelConfig(position=name, width=16, num_heads=2))


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


def test_learned_refuses_lengths_past_its_table_naming_both():
    method = Learned(max_length=16, width=8)
    variables = method.init(jax.random.key(0), jnp.zeros((1, 16, 8)), jnp.arange(16), method="embed")
    with pytest.raises(LengthError, match=r"17 tokens.*at most 16"):
        method.apply(variables, jnp.zeros((1, 17, 8)), jnp.arange(17), method="embed")


def test_learned_refuses_positions_outside_its_table_and_traced_ones_give_nan():
    method = Learned(max_length=16, width=8)
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
    method = method_of(name)
    x, hook = (jnp.zeros((1, 5, 2, 8)), "rotate") if name == "rotary" else (jnp.zeros((1, 5, 16)), "embed")
    with pytest.raises(ValueError, match="for 5 tokens, expected one integer for each"):
        method.init(jax.random.key(0), x, jnp.asarray(positions), method=hook)


def bias_of(method, length):
    return nn.init_with_output(lambda method: method.bias(length), method)(jax.random.key(0))[0]


def test_ntk_divides_the_smallest_slope_by_all_and_the_largest_by_nothing():
    """Golden: m_h a^(-(h - 1) / (H - 1)) of 8 heads with a = 4, the rule of keezen/ntk_alibi's readme, in float64."""
    golden = [0.5, 0.2050838390, 0.0841187620, 0.0345027973, 0.0141519323, 0.0058046652, 0.0023808860, 0.0009765625]
    for method in (Alibi(8, divisor=4.0, scaling="ntk"), Alibi(8, divided_from=16, scaling="ntk")):
        np.testing.assert_allclose(bias_of(method, 64).slopes, golden, rtol=1e-6)
    assert (bias_of(Alibi(8, divided_from=16, scaling="ntk"), 12).slopes == alibi_slopes(8)).all()


def test_slopes_are_divided_by_the_length_over_slope_length_from_there_on():
    method = Alibi(4, divisor=2.0, divided_from=16)
    for length, divisor in ((8, 2), (16, 2), (24, 3), (64, 8)):
        np.testing.assert_allclose(bias_of(method, length).slopes, alibi_slopes(4) / divisor, rtol=1e-7)
    rounded = bias_of(dataclasses.replace(method, rounding="bfloat16"), 24)
    assert (rounded.slopes == alibi_slopes(4)).all() and rounded.divisors.tolist() == [3.0] * 4


@pytest.mark.parametrize("change", [{"slopes": "geometrical"}, {"divisor": 0.0}, {"divisor": np.nan}])
@pytest.mark.usefixtures("shapes_unchecked")
def test_alibi_refuses_slopes_it_does_not_know(change):
    with pytest.raises(ValueError, match="Alibi: got slopes"):
        nn.init_with_output(lambda method: method.bias(4), Alibi(4, **change))(jax.random.key(0))


def test_the_configs_choice_is_the_dictionary():
    assert typing.get_args(PositionName) == tuple(POSITIONS)


@pytest.mark.parametrize("name", POSITIONS)
def test_every_method_acts_through_one_hook(name):
    x, heads, positions = jnp.ones((1, 5, 16)), jnp.ones((1, 5, 2, 8)), jnp.arange(5)

    def hooks(method):
        return method.embed(x, positions), method.rotate(heads, positions), method.bias(4)

    embedded, rotated, bias = nn.init_with_output(hooks, method_of(name))(jax.random.key(0))[0]
    acts = [bool((embedded != x).any()), bool((rotated != heads).any()), bias is not None]
    assert sum(acts) == (name != "none")


@pytest.mark.parametrize("changes", [*({"position": name} for name in POSITIONS), {"slopes": "learned"}], ids=str)
def test_a_method_makes_exactly_the_parameters_that_it_lists(changes):
    """The model's tree under "position", and the count of parameters, follow from the method; dimensions are those of RULES."""
    config = ModelConfig(num_layers=1, width=16, num_heads=2, mlp_width=8, vocab_size=9, **changes)
    listed = POSITIONS[config.position].from_config(config).parameters()
    shapes = jax.eval_shape(TransformerLM(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    built = {name: (array.shape, array.dtype) for name, array in shapes.get("position", {}).items()}
    assert built == {name: (parameter.shape, jnp.float32) for name, parameter in listed.items()}
    assert all(len(parameter.dimensions) == len(parameter.shape) for parameter in listed.values())
    assert {name for parameter in listed.values() for name in parameter.dimensions} <= set(RULES)
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("changes", [*({"position": name} for name in POSITIONS), {"slopes": "learned"}], ids=str)
def test_nothing_of_a_method_is_decayed(changes):
    parameters = POSITIONS[changes.get("position", "alibi")].from_config(ModelConfig(**changes)).parameters()
    tree = {"position": dict.fromkeys(parameters, 0), "layers": {"mlp": {"up": 0}}}
    assert decayed(tree) == {"position": dict.fromkeys(parameters, False), "layers": {"mlp": {"up": True}}}


def test_labels_are_all_different():
    assert len({method.label for method in POSITIONS.values()}) == len(POSITIONS)


def test_a_parameter_whose_name_ends_in_a_number_is_placed():
    path = tuple(map(jax.tree_util.DictKey, ("position", "rate_1")))
    rows = {"position/rate_1": ("heads",), "embedding/table": ("vocab", "width")}
    assert placement._row(path, rows) == ("heads",)
    path = tuple(map(jax.tree_util.DictKey, ("embedding", "table_1")))
    assert placement._row(path, rows) == ("vocab", "width")
