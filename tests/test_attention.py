"""One suite for every implementation of attention: against float64 numpy, forward and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.attention import IMPLEMENTATIONS, attend
from alibi_jax.attention.dropout import keep_mask, seed_words
from alibi_jax.positions import BucketBias, LinearBias, alibi_slopes
from conftest import TOLERANCE, assert_close

# (batch, queries, keys, heads, head width, q_offset, causal): no block divides most of them
SHAPES = [
    (2, 128, 128, 4, 16, 0, True),
    (1, 300, 300, 3, 8, 0, True),
    (2, 1, 1, 1, 4, 0, True),
    (1, 1, 257, 2, 8, 256, True),
    (1, 70, 333, 2, 8, 263, True),
    (2, 130, 200, 3, 8, 10, True),
    (1, 200, 150, 2, 8, 0, False),
]
BIASES = ["none", "alibi", "t5"]


def inputs(shape, dtype=jnp.float32):
    batch, queries, keys, heads, width, *_ = shape
    sizes = [(batch, queries, heads, width), (batch, keys, heads, width), (batch, keys, heads, width)]
    return [jax.random.normal(jax.random.key(i), size, dtype) for i, size in enumerate(sizes)]


def make_bias(name, heads):
    table = jax.random.normal(jax.random.key(9), (32, heads))
    return {"none": None, "alibi": LinearBias(jnp.asarray(alibi_slopes(heads))), "t5": BucketBias(table)}[name]


def dense(q, k, v, bias, q_offset, causal):
    """Float64 numpy, one (row, head, query) at a time where it matters: nothing shared with the code under test."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    q_positions, k_positions = q_offset + np.arange(q.shape[1]), np.arange(k.shape[1])
    distances = q_positions[:, None] - k_positions[None, :]
    if isinstance(bias, LinearBias):
        scores -= np.asarray(bias.slopes, np.float64)[None, :, None, None] * np.abs(distances)
    elif bias is not None:
        buckets = np.asarray(bias.buckets(jnp.asarray(distances)))
        scores += np.asarray(bias.table, np.float64)[buckets].transpose(2, 0, 1)[None]
    if causal:
        scores = np.where(distances >= 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, v)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bias_name", BIASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_float64(shape, bias_name, implementation):
    q, k, v = inputs(shape)
    *_, heads, _, q_offset, causal = shape
    bias = make_bias(bias_name, heads)
    out = jax.jit(functools.partial(attend, causal=causal, implementation=implementation))(
        q, k, v, bias=bias, q_offset=q_offset
    )
    assert_close(out, dense(q, k, v, bias, q_offset, causal), "attention")


@pytest.mark.parametrize("bias_name", BIASES)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4], SHAPES[6]])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_blockwise_gradients_equal_the_references(shape, bias_name, rate):
    *_, heads, _, q_offset, causal = shape
    q, k, v = inputs(shape)

    def loss(implementation, *arrays):
        options = {"q_offset": q_offset, "causal": causal, "dropout_rate": rate, "dropout_key": jax.random.key(3)}
        *qkv, bias = arrays
        return jnp.square(attend(*qkv, bias=bias, implementation=implementation, **options)).sum()

    grads = [
        jax.jit(jax.grad(functools.partial(loss, name), argnums=(0, 1, 2, 3)))(q, k, v, make_bias(bias_name, heads))
        for name in ("blockwise", "reference")
    ]
    for blockwise, reference in zip(*map(jax.tree.leaves, grads), strict=True):
        scale = max(1.0, float(jnp.abs(reference).max()))
        assert_close(blockwise / scale, reference / scale, "attention gradient")


def test_reference_gradient_equals_finite_differences_in_float64():
    q, k, v = (np.asarray(x, np.float64) for x in inputs((1, 5, 5, 2, 4)))
    bias = make_bias("alibi", 2)
    grad = jax.grad(
        lambda q: jnp.square(attend(q, *map(jnp.float32, (k, v)), bias=bias, implementation="reference")).sum()
    )
    actual, step = np.asarray(grad(jnp.float32(q))), 1e-5
    for index in [(0, 4, 0, 0), (0, 2, 1, 3), (0, 0, 1, 2)]:
        moved = [q.copy(), q.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        high, low = (np.square(dense(x, k, v, bias, 0, True)).sum() for x in moved)
        np.testing.assert_allclose(actual[index], (high - low) / (2 * step), atol=TOLERANCE["attention gradient"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_inputs_keep_float32_distances(implementation):
    """At 3,000 tokens bfloat16 positions would be rounded to multiples of 16."""
    shape = (1, 4, 3000, 2, 16, 2996, True)
    q, k, v = inputs(shape, jnp.bfloat16)
    bias = make_bias("alibi", 2)
    out = jax.jit(functools.partial(attend, q_offset=2996, implementation=implementation))(q, k, v, bias=bias)
    assert out.dtype == jnp.bfloat16
    assert_close(out, dense(q, k, v, bias, 2996, True), "attention bfloat16")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decoding_token_by_token_equals_the_whole(implementation):
    """The bias is not left out, nor its distances restarted, when one query meets a cache of keys."""
    q, k, v = inputs((1, 20, 20, 4, 8))
    bias = make_bias("alibi", 4)
    run = jax.jit(functools.partial(attend, bias=bias, implementation=implementation))
    whole = run(q, k, v)
    steps = [run(q[:, t : t + 1], k, v, q_offset=t) for t in range(20)]  # keys after the query are not seen
    assert_close(jnp.concatenate(steps, 1), whole, "attention")


def test_blockwise_memory_grows_linearly():
    def temporary(length):
        shape = jax.ShapeDtypeStruct((1, length, 4, 16), jnp.float32)
        bias = make_bias("alibi", 4)
        step = jax.grad(lambda q, k, v: attend(q, k, v, bias=bias, implementation="blockwise").sum(), argnums=(0, 1, 2))
        return jax.jit(step).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert temporary(16384) < 4.5 * temporary(4096)
    assert temporary(16384) < 16384 * 4 * 16 * 4 * 16  # sixteen arrays the size of q; the scores alone would be 256


def test_fixed_slopes_cost_the_backward_pass_nothing():
    """No loop carries a gradient [H] that nobody reads; where slopes are learned, one does."""
    q, bias = jnp.zeros((1, 256, 5, 4)), make_bias("alibi", 5)

    def compiled(argnums):
        loss = lambda q, bias: attend(q, q, q, bias=bias, implementation="blockwise").sum()  # noqa: E731
        if argnums == 0:
            return jax.jit(jax.grad(lambda q: loss(q, bias))).lower(q).as_text()
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(q, bias).as_text()

    def carried(text):
        return sum("stablehlo.while" in line and line.count("tensor<5xf32>") > 1 for line in text.splitlines())

    assert carried(compiled(0)) == 0
    assert carried(compiled(1)) >= 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_drops_the_rate_and_keeps_the_mean(implementation):
    q, k = (jnp.zeros((1, 256, 2, 4)),) * 2
    v = jnp.ones((1, 256, 2, 4))
    options = {"implementation": implementation, "dropout_rate": 0.4, "dropout_key": jax.random.key(1), "causal": False}
    out = attend(q, k, v, **options)
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.01)
    assert float(out.std()) == pytest.approx(np.sqrt(0.4 / 0.6 / 256), rel=0.2)
    assert float(jnp.abs(out - attend(q, k, v, **options | {"dropout_key": jax.random.key(2)})).max()) > 0.01


def test_dropout_masks_are_independent_across_every_axis():
    positions = jnp.arange(128)
    mask = np.asarray(keep_mask(seed_words(jax.random.key(0)), 0.5, 4, 4, positions, positions)).astype(float) - 0.5
    for axis in range(4):
        shifted = np.take(mask, range(1, mask.shape[axis]), axis) * np.take(mask, range(mask.shape[axis] - 1), axis)
        assert abs(shifted.mean()) < 5 * 0.25 / np.sqrt(shifted.size)
    assert abs(mask.mean()) < 5 * 0.5 / np.sqrt(mask.size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (1, 8, 3, 4)}, "as many heads"),
        ({"v": (1, 7, 2, 4)}, r"k and v|k, v"),
        ({"dropout_rate": 0.5}, "a key"),
        ({"dropout_rate": 1.0, "dropout_key": jax.random.key(0)}, r"\[0, 1\)"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_bad_shapes_and_rates_are_refused(change, message):
    arrays = {name: jnp.zeros(change.pop(name, (1, 8, 2, 4))) for name in ("q", "k", "v")}
    with pytest.raises(ValueError, match=message):
        attend(*arrays.values(), **change)


@pytest.mark.usefixtures("shapes_unchecked")
def test_an_unknown_implementation_is_refused_naming_those_there_are():
    q = jnp.zeros((1, 8, 2, 4))
    with pytest.raises(NotImplementedError, match="reference, blockwise"):
        attend(q, q, q, implementation="flash")
