"""A sequence split over devices: the same attention, forward and backward, and no step that is needless."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.attention import IMPLEMENTATIONS, attend, blocks, blockwise, ring
from alibi_jax.attention.implementation import Inputs, Options, Residuals, RowBounds
from alibi_jax.attention.reach import bounds_from, norms
from alibi_jax.config import MeshConfig
from alibi_jax.positions import BucketBias, LinearBias, alibi_slopes
from alibi_jax.sharding import make_mesh, on_each_device
from conftest import assert_close
from kernels import KERNELS, parameters

LENGTH, HEADS, WIDTH = 128, 4, 8
MESHES = {"four": (1, 1, 1, 4), "two": (1, 1, 1, 2), "mixed": (2, 1, 2, 2)}


def biases(name: str, heads: int = HEADS):
    """steep: every head but the last needs only its neighbour; gentle: all of the ring."""
    slopes = {"alibi": alibi_slopes(heads), "steep": np.array([16.0, 8.0, 4.0, 0.5]), "gentle": np.full(heads, 1e-3)}
    if name in slopes:
        return LinearBias(jnp.asarray(slopes[name], jnp.float32))
    table = jax.random.normal(jax.random.key(9), (32, heads))
    return BucketBias(table, 64) if name == "t5" else None


def arrays(batch: int = 2, key_heads: int = HEADS, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [(batch, LENGTH, heads, WIDTH) for heads in (HEADS, key_heads, key_heads, HEADS)]
    return [jax.random.normal(key, size, dtype) for key, size in zip(keys, sizes, strict=True)]


def mesh_of(sizes):
    return make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


def forward_and_backward(implementation, rate, q, k, v, bias, d_out):
    def output(q, k, v, bias):
        key = jax.random.key(1) if rate else None
        options = {"implementation": implementation, "dropout_rate": rate, "dropout_key": key}
        return attend(q, k, v, bias=bias, interpret=implementation.startswith("pallas"), **options)

    if implementation == "blockwise" or bias is None:
        out, vjp = jax.vjp(output, q, k, v, bias)
    else:  # the kernels know no gradient of the bias
        out, vjp = jax.vjp(lambda q, k, v: output(q, k, v, bias), q, k, v)
    return out, vjp(d_out)


def on_mesh(sizes, implementation, rate, *inputs):
    with jax.set_mesh(mesh_of(sizes)):
        return jax.jit(functools.partial(forward_and_backward, implementation, rate))(*inputs)


def assert_same(actual, expected):
    assert_close(actual[0], expected[0], "attention")
    actual, actual_bias = actual[1][:3], actual[1][3:]
    expected, expected_bias = expected[1][:3], expected[1][3:]
    for gradient, other in zip(actual, expected, strict=True):
        assert_close(gradient, other, "attention gradient")
    for gradient, other in zip(jax.tree.leaves(actual_bias), jax.tree.leaves(expected_bias), strict=bool(actual_bias)):
        size = np.abs(other).max()  # of slopes: a sum over all distances
        assert_close(gradient / size, other / size, "attention gradient")


CASES = [("four", bias, 0.3) for bias in ("steep", "gentle", "t5", "none")]
CASES += [("two", "alibi", 0.0), ("mixed", "steep", 0.0)]


@pytest.mark.parametrize(("mesh", "bias", "rate"), CASES)
def test_ring_equals_one_device(mesh, bias, rate):
    q, k, v, d_out = arrays()
    sizes, inputs = MESHES[mesh], (q, k, v, biases(bias), d_out)
    whole = jax.jit(functools.partial(forward_and_backward, "blockwise", rate))(*inputs)
    assert_same(on_mesh(sizes, "blockwise", rate, *inputs), whole)


@pytest.mark.parametrize("bias", ["steep", "t5"])
def test_key_heads_shared_by_queries(bias):
    q, k, v, d_out = arrays(key_heads=2)
    inputs = q, k, v, biases(bias), d_out
    whole = jax.jit(functools.partial(forward_and_backward, "blockwise", 0.0))(*inputs)
    assert_same(on_mesh((1, 1, 2, 4), "blockwise", 0.0, *inputs), whole)


@pytest.mark.versions
def test_kernel_serves_the_ring():
    q, k, v, d_out = arrays(batch=1)
    inputs = q, k, v, biases("alibi"), d_out
    whole = jax.jit(functools.partial(forward_and_backward, "blockwise", 0.0))(*inputs)
    assert_same(on_mesh((1, 1, 1, 2), "pallas_gpu", 0.0, *inputs), whole)


@pytest.mark.parametrize("kernel", [*map(parameters, KERNELS)])
def test_kernels_know_what_was_seen_elsewhere(kernel):
    """Keys one shard back, beside a row's mass known from its own shard: where it is great they are skipped, and weigh nothing.

    The TPU's interpreter makes all devices wait for one another, and so cannot run a ring, whose first device never looks back.
    """
    q, k, v, d_out = arrays(batch=1)
    bounds = bounds_from(q, norms(k).max(1, keepdims=True))
    seeds = jnp.zeros((1, HEADS, 2), jnp.uint32)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both(implementation, options, known_mass):
        known = jnp.full_like(bounds, known_mass)
        inputs = Inputs(q, k, v, biases("steep"), jnp.int32(LENGTH), seeds, RowBounds(bounds, known))
        out, logsumexp = implementation.forward(options, inputs)
        fraction = jnp.exp(logsumexp - known_mass).swapaxes(1, 2)[..., None]
        residuals = Residuals(d_out, known, jnp.zeros_like(bounds))
        return out * fraction, *implementation.backward(options, inputs, residuals, False)[:3]

    for known_mass in (0.0, 200.0):
        actual = both(IMPLEMENTATIONS[kernel], Options(True, 0.0, 2.0**-25, True), known_mass)
        expected = both(blockwise.IMPLEMENTATION, Options(True, 0.0, None), known_mass)
        for x, y in zip(actual, expected, strict=True):
            assert_close(x, y, "attention")
        assert all(bool(jnp.any(x)) == (known_mass == 0.0) for x in actual)


@pytest.mark.parametrize("kernel", [*map(parameters, KERNELS)])
def test_kernels_of_16_bits_have_the_log_sum_exp_that_others_go_on_from(kernel):
    """There a kernel's scores may have a bias that differs by row, which is put back."""
    q, k, v = (x.astype(jnp.bfloat16) for x in arrays(batch=1)[:3])
    inputs = Inputs(q, k, v, biases("steep"), jnp.int32(0), jnp.zeros((1, HEADS, 2), jnp.uint32))
    options = Options(True, 0.0, None, True)
    actual, expected = (
        jax.jit(functools.partial(each.forward, options))(inputs)[1]
        for each in (IMPLEMENTATIONS[kernel], blockwise.IMPLEMENTATION)
    )
    assert_close(actual, expected, "attention bfloat16")


def test_large_scores_and_a_far_key_that_outweighs_the_near():
    q, k, v, d_out = arrays()
    k = k.at[:, 3].multiply(300.0)
    inputs = q, k, v, biases("alibi"), d_out
    whole = jax.jit(functools.partial(forward_and_backward, "blockwise", 0.0))(*inputs)
    actual = on_mesh((1, 1, 1, 4), "blockwise", 0.0, *inputs)
    assert_close(actual[0], whole[0], "attention")


def test_heads_look_back_no_farther_than_their_reach():
    """Four shards of 32 tokens: steep heads need their neighbour alone, a slope of 1e-3 all three."""
    k = jax.random.normal(jax.random.key(3), (1, LENGTH, HEADS, WIDTH))
    slopes = jnp.array([16.0, 4.0, 0.5, 1e-3])

    def measure(k, slopes):
        inputs = Inputs(k, k, k, LinearBias(slopes), jnp.int32(0), jnp.zeros((1, HEADS, 2), jnp.uint32))
        return ring.steps_taken(blockwise.IMPLEMENTATION, 4, Options(True, 0.0, 2.0**-25), inputs)

    with jax.set_mesh(mesh_of(MESHES["four"])):
        placed = "batch", "length", "heads", "head_width"
        run = jax.jit(lambda *inputs: on_each_device(measure, inputs, (placed, ("heads",)), ("heads",)))
        steps = np.asarray(run(k, slopes))
        assert steps.tolist()[0] == 1 and steps[3] == 3 and sorted(steps) == steps.tolist(), steps
        assert np.asarray(run(1000 * k, slopes)).tolist()[2] == 3, "large scores see farther"


def test_a_key_that_is_not_a_number_is_seen_by_all_that_see_it():
    q, k, v, d_out = arrays()
    inputs = q, k.at[0, 5, 0].set(jnp.nan), v, biases("steep"), d_out
    whole = jax.jit(functools.partial(forward_and_backward, "blockwise", 0.0))(*inputs)[0]
    actual = on_mesh(MESHES["four"], "blockwise", 0.0, *inputs)[0]
    assert np.isnan(whole).any()
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(whole))


def test_blocks_within_a_shard_are_skipped_too(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    q, k, v, d_out = arrays()
    inputs = q, k, v, LinearBias(jnp.array([2.0, 1.0, 0.5, 0.25])), d_out
    whole = jax.jit(functools.partial(forward_and_backward, "blockwise", 0.0))(*inputs)
    assert_same(on_mesh(MESHES["four"], "blockwise", 0.0, *inputs), whole)


def test_what_a_ring_cannot_serve_is_refused():
    q = jnp.zeros((1, LENGTH, HEADS, WIDTH))
    with jax.set_mesh(mesh_of(MESHES["four"])):
        for arguments in (
            (q[:, :1], q, {"q_offset": LENGTH - 1}),
            (q, q, {"causal": False}),
            (q, q, {"q_offset": jnp.int32(0)}),
        ):
            with pytest.raises(
                NotImplementedError, match=r"on a mesh that splits the sequence, expected causal attention"
            ):
                attend(arguments[0], arguments[1], arguments[1], implementation="blockwise", **arguments[2])
        with pytest.raises(ValueError, match="length: got 126, expected a multiple of 4"):
            attend(q[:, 2:], q[:, 2:], q[:, 2:], implementation="blockwise")
