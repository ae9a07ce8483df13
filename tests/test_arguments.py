"""Arguments of attend that cannot be served are refused before work, and those that can are served alike in every type."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.attention import attend
from alibi_jax.positions import Bias, BucketBias, LinearBias, alibi_slopes
from conftest import assert_close


@dataclasses.dataclass(frozen=True)
class UnregisteredBias(Bias):
    dimensions: ClassVar[dict[str, tuple[str, ...]]] = {"slopes": ("heads",)}

    slopes: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlatBias(UnregisteredBias):
    def block(self, q_positions, k_positions):
        return -self.slopes[:, None] * k_positions[None]


Q = jnp.ones((1, 8, 2, 4))
KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("shapes_unchecked")

REFUSED = {
    "negative offset": ({"q_offset": -5}, "q_offset -5 for 8 queries, expected positions from 0"),
    "offset of numpy": ({"q_offset": np.int32(-1)}, "q_offset -1"),
    "offset of jax": ({"q_offset": jnp.int32(-1)}, "q_offset -1"),
    "offset past int32": ({"q_offset": 2**40}, "q_offset 1099511627776"),
    "last position past the limit": ({"q_offset": 2**30 - 7}, "from 0 to 2"),
    "offset that is no integer": ({"q_offset": 2.5}, "q_offset 2.5, expected one integer"),
    "offset that is true": ({"q_offset": True}, "q_offset True, expected one integer"),
    "offset for each row": ({"q_offset": np.zeros(1, np.int32)}, r"q_offset int32\[1\], expected one integer"),
    "slopes without a bias": ({"bias": alibi_slopes(2)}, r"bias of type ndarray.*Pass LinearBias\(slopes\)"),
    "list of slopes": ({"bias": LinearBias([0.5, 0.25])}, r"expected slopes \[heads\]"),
    "too many slopes": ({"bias": LinearBias(alibi_slopes(4))}, "LinearBias of 4 heads for q of 2"),
    "bias that is no pytree": (
        {"bias": UnregisteredBias(jnp.ones(2))},
        "is no pytree.*Decorate it with @jax.tree_util",
    ),
    "bias without queries": ({"bias": FlatBias(jnp.ones(2))}, r"has shape \[2, 3\], expected \[2, 2, 3\]"),
    "slope of NaN": ({"bias": LinearBias(jnp.array([0.5, jnp.nan]))}, "holds nan, expected finite"),
    "infinite slope": ({"bias": LinearBias(jnp.array([0.5, -jnp.inf]))}, "holds -inf, expected finite"),
    "complex slopes": ({"bias": LinearBias(np.ones(2, complex))}, "complex128, expected real"),
    "table of one dimension": ({"bias": BucketBias(jnp.zeros(2))}, r"expected table \[rows, heads\]"),
    "table of NaN": ({"bias": BucketBias(jnp.full((32, 2), jnp.nan))}, "holds nan"),
    "table of one row": ({"bias": BucketBias(jnp.zeros((1, 2)))}, "T5 buckets: got 1"),
    "table past its distance": (
        {"bias": BucketBias(jnp.zeros((32, 2)), 16)},
        "T5 buckets: got 32 with max_distance 16",
    ),
    "negative rate": ({"dropout_rate": -0.1}, "dropout_rate -0.1, expected a rate"),
    "rate of NaN": ({"dropout_rate": float("nan"), "dropout_key": KEY}, "dropout_rate nan, expected a rate"),
    "rate that rounds to 1": ({"dropout_rate": 1 - 1e-13, "dropout_key": KEY}, "expected a rate"),
    "rate of text": ({"dropout_rate": "0.1", "dropout_key": KEY}, "dropout_rate '0.1', expected a rate"),
    "several keys": ({"dropout_rate": 0.1, "dropout_key": jax.random.split(KEY)}, r"\[2\].*expected a key"),
    "seed for a key": ({"dropout_rate": 0.1, "dropout_key": 0}, "dropout_key 0.*expected a key"),
    "negative tolerance": ({"reach_tolerance": -1e-3}, "reach_tolerance -0.001, expected"),
    "tolerance of NaN": ({"reach_tolerance": float("nan")}, "reach_tolerance nan, expected"),
    "tolerance of text": ({"reach_tolerance": "1e-3"}, "reach_tolerance '1e-3', expected"),
    "causal that is text": ({"causal": "no"}, "causal 'no', expected True or False"),
    "integers": (dict.fromkeys("qkv", Q.astype(int)), "q int32.*Cast them"),
    "float64": ({"q": np.ones(Q.shape)}, "q float64, k float32.*Cast them"),
    "list for an array": ({"q": [1.0]}, "q of type list, expected an array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused(case):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        attend(**({"q": Q, "k": Q, "v": Q} | change))


@pytest.mark.parametrize("option", ["dropout_rate", "reach_tolerance", "causal"])
def test_what_has_to_be_known_when_traced_is_refused_where_it_is_not(option):
    with pytest.raises(ValueError, match=f"{option}.*known when"):
        jax.jit(lambda x: attend(Q, Q, Q, **{option: x}))(0.1)


def test_numbers_of_every_type_mean_the_same():
    q, k, v = (jax.random.normal(jax.random.key(i), Q.shape) for i in range(3))
    options = {"implementation": "reference", "dropout_key": KEY}
    same = [
        {
            "q_offset": 3,
            "dropout_rate": 0.25,
            "reach_tolerance": 0.5,
            "bias": LinearBias(np.array([2.0, 1.0], np.float32)),
        },
        {
            "q_offset": np.int64(3),
            "dropout_rate": np.float32(0.25),
            "reach_tolerance": np.float32(0.5),
            "bias": LinearBias(np.array([2, 1])),
        },
        {
            "q_offset": jnp.int32(3),
            "dropout_rate": jnp.float32(0.25),
            "reach_tolerance": jnp.float32(0.5),
            "bias": LinearBias(jnp.array([2.0, 1.0], jnp.bfloat16)),
        },
    ]
    first, *others = (attend(q, k, v, **options, **change) for change in same)
    for other in others:
        assert_close(other, first, "attention")
