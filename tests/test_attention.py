"""One suite for every implementation of attention: against float64 numpy, forward and gradients."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax import attention
from alibi_jax.attention import IMPLEMENTATIONS, ImplementationName, attend
from alibi_jax.attention.dropout import dense_keep_scale, head_seeds
from alibi_jax.config import Attention, MeshConfig
from alibi_jax.positions import BucketBias, LinearBias, alibi_slopes
from alibi_jax.sharding import Device, make_mesh
from benchmarks.shapes import SHAPES, Shape
from conftest import TOLERANCE, assert_close
from kernels import KERNELS, mosaic_gpu_of_float32, parameters  # noqa: F401

pytestmark = pytest.mark.usefixtures("mosaic_gpu_of_float32")

BIASES = ["none", "alibi", "t5"]
SERVED = [(bias, name) for bias in BIASES for name in IMPLEMENTATIONS if not (bias == "t5" and name in KERNELS)]
FORWARD_SHAPES = {
    "none": ("odd", "encoder"),
    "alibi": SHAPES,
    "t5": ("odd", "end of a cache", "encoder", "several blocks"),
}
FORWARD = [(shape, bias, name) for bias, name in SERVED for shape in FORWARD_SHAPES[bias]]
RATES = {"odd": 0.0, "past the keys": 0.0, "encoder": 0.0, "several blocks": 0.0, "end of a cache": 0.3, "grouped": 0.3}
GRADIENT_SHAPES = {
    "none": ("encoder", "grouped"),
    "alibi": RATES,
    "t5": ("encoder", "several blocks", "end of a cache"),
}
GRADIENTS = [  # the implementations of a case follow one another: they share the reference's gradients
    (shape, bias, name)
    for bias, shapes in GRADIENT_SHAPES.items()
    for shape in shapes
    for name in IMPLEMENTATIONS
    if (bias, name) in SERVED and name != "reference"
]
QUICK = [("encoder", "none"), ("end of a cache", "alibi")]  # of mosaic_gpu


def inputs(shape: Shape, dtype=jnp.float32):
    keys = shape.batch, shape.keys, shape.key_heads, shape.width
    sizes = [(shape.batch, shape.queries, shape.heads, shape.width), keys, keys]
    return [jax.random.normal(jax.random.key(i), size, dtype) for i, size in enumerate(sizes)]


def run(implementation, **options):
    return jax.jit(functools.partial(attend, implementation=implementation, interpret=True, **options))


def make_bias(name, heads):
    table = jax.random.normal(jax.random.key(9), (32, heads))
    return {"none": None, "alibi": LinearBias(jnp.asarray(alibi_slopes(heads))), "t5": BucketBias(table)}[name]


def dense(q, k, v, bias, q_offset, causal):
    """Float64 numpy, one (row, head, query) at a time where it matters: nothing shared with the code under test."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.stack([x[:, :, h // (q.shape[2] // k.shape[2])] for h in range(q.shape[2])], 2) for x in (k, v))
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


@pytest.mark.parametrize(
    ("shape", "bias_name", "implementation"), [parameters(*each, quick=each[:2] in QUICK) for each in FORWARD]
)
def test_forward_equals_float64(shape, bias_name, implementation):
    shape = SHAPES[shape]
    q, k, v = inputs(shape)
    bias = make_bias(bias_name, shape.heads)
    out = run(implementation, causal=shape.causal)(q, k, v, bias=bias, q_offset=shape.q_offset)
    assert_close(out, dense(q, k, v, bias, shape.q_offset, shape.causal), "attention")


@pytest.mark.parametrize("implementation", ["reference", "blockwise", "pallas_tpu", "pallas_gpu"])
def test_numpy_arrays_are_served_outside_of_jit(implementation):
    shape = SHAPES["one block"]
    q, k, v = (np.asarray(x) for x in inputs(shape))
    bias = LinearBias(alibi_slopes(shape.heads))
    out = attend(q, k, v, bias=bias, implementation=implementation, interpret=True)
    assert_close(out, dense(q, k, v, bias, 0, True), "attention")


@functools.cache
def gradients(shape_name, bias_name, implementation):
    """Of q, k, v and, but for the kernels, of the bias; the reference's are needed again for each implementation."""
    shape = SHAPES[shape_name]
    options = {"q_offset": shape.q_offset, "causal": shape.causal, "dropout_rate": RATES[shape_name]}

    def loss(q, k, v, bias):
        key = jax.random.key(3)
        out = attend(q, k, v, bias=bias, implementation=implementation, interpret=True, dropout_key=key, **options)
        return jnp.square(out).sum()

    argnums = (0, 1, 2) if implementation in KERNELS else (0, 1, 2, 3)
    gradient = jax.jit(jax.grad(loss, argnums))(*inputs(shape), make_bias(bias_name, shape.heads))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]


@pytest.mark.parametrize(
    ("shape", "bias_name", "implementation"), [parameters(*each, quick=each[:2] in QUICK) for each in GRADIENTS]
)
def test_gradients_equal_the_references(shape, bias_name, implementation):
    observed, expected = (gradients(shape, bias_name, name) for name in (implementation, "reference"))
    assert len(observed) >= 3
    for actual, reference in zip(observed, expected, strict=implementation not in KERNELS):
        scale = max(1.0, float(jnp.abs(reference).max()))
        assert_close(actual / scale, reference / scale, "attention gradient")


@pytest.mark.parametrize(("shape", "bias_name"), [("grouped", "alibi"), ("grouped", "none"), ("end of a cache", "t5")])
def test_all_heads_in_one_pass_give_the_same_as_one_by_one(shape, bias_name, monkeypatch):
    """What blockwise does on accelerators."""
    shape = SHAPES[shape]
    *qkv, bias = *inputs(shape), make_bias(bias_name, shape.heads)
    options = {"dropout_rate": 0.3, "dropout_key": jax.random.key(3), "q_offset": shape.q_offset}

    def out_and_grads():
        def loss(q, k, v, bias):
            out = attend(q, k, v, bias=bias, implementation="blockwise", **options)
            return jnp.square(out).sum(), out

        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*qkv, bias))

    one_by_one = out_and_grads()
    monkeypatch.setattr("alibi_jax.attention.blockwise.device", lambda: Device("tpu", "TPU v5e"))
    for actual, expected in zip(out_and_grads(), one_by_one, strict=True):
        scale = max(1.0, float(jnp.abs(expected).max()))
        assert_close(actual / scale, expected / scale, "attention gradient")


def test_reference_gradient_equals_finite_differences_in_float64():
    q, k, v = (np.asarray(x, np.float64) for x in inputs(Shape(1, 5, 5, 2, 2, 4)))
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


@pytest.mark.parametrize("implementation", [*map(parameters, IMPLEMENTATIONS)])
def test_bfloat16_inputs_keep_float32_distances(implementation):
    """At 3,000 tokens bfloat16 positions would be rounded to multiples of 16."""
    q, k, v = inputs(Shape(1, 4, 3000, 2, 2, 16), jnp.bfloat16)
    bias = make_bias("alibi", 2)
    out = run(implementation, q_offset=2996)(q, k, v, bias=bias)
    assert out.dtype == jnp.bfloat16
    assert_close(out, dense(q, k, v, bias, 2996, True), "attention bfloat16")


@pytest.mark.parametrize("implementation", [*map(parameters, ["blockwise", *KERNELS])])
@pytest.mark.versions
def test_bfloat16_gradients_equal_the_references(implementation):
    q, k, v = inputs(SHAPES["grouped"], jnp.bfloat16)

    def grads(name):
        def loss(q, k, v):
            out = attend(q, k, v, bias=make_bias("alibi", 6), implementation=name, interpret=True)
            return jnp.square(out.astype(jnp.float32)).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)

    for actual, reference in zip(grads(implementation), grads("reference"), strict=True):
        scale = float(jnp.abs(reference).max())
        assert_close(actual / scale, reference / scale, "attention bfloat16")


@pytest.mark.parametrize("implementation", [*map(parameters, ["blockwise", "pallas_gpu", "mosaic_gpu"])])
def test_float16_gradients_of_scores_overflow_no_sooner_than_scaled(implementation):
    """Of equal weights and outputs of 0, the scaled scores have gradients of 131,072, those of q k^T an eighth of it."""
    k = jnp.full((1, 2, 1, 64), 1 / 64, jnp.float16).at[:, 1].multiply(-1)
    v, q = 64 * k, jnp.zeros((1, 1, 1, 64), jnp.float16)
    options = {"causal": False, "implementation": implementation, "interpret": True}
    _, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, **options), q, k, v)
    dq, dk, dv = vjp(jnp.full_like(q, 4096))
    np.testing.assert_array_equal(dq, jnp.full_like(q, 2 * 131_072 / 8 / 64))
    np.testing.assert_array_equal(dk, jnp.zeros_like(k))
    np.testing.assert_array_equal(dv, jnp.full_like(v, 2048))


@pytest.mark.parametrize("implementation", [parameters(name, quick=False) for name in IMPLEMENTATIONS])
def test_decoding_token_by_token_equals_the_whole(implementation):
    """The bias is not left out, nor its distances restarted, when one query meets a cache of keys."""
    q, k, v = inputs(Shape(1, 8, 8, 4, 4, 8))
    step = run(implementation, bias=make_bias("alibi", 4))
    whole = step(q, k, v)
    steps = [step(q[:, t : t + 1], k, v, q_offset=t) for t in range(8)]  # keys after the query are not seen
    assert_close(jnp.concatenate(steps, 1), whole, "attention")


@pytest.mark.parametrize("implementation", [parameters(name, quick=False) for name in ["blockwise", *KERNELS]])
def test_large_scores_neither_overflow_nor_vanish(implementation):
    """Below and far above what exp can hold unshifted; one query sees a score of +size among some of -size."""
    small_q, small_k, v = inputs(Shape(1, 600, 600, 2, 2, 8))
    compiled = run(implementation)
    for size in (1.0, 30.0, 3000.0):
        direction = jnp.zeros((1, 1, 1, 8)).at[..., 0].set(jnp.sqrt(size * jnp.sqrt(8.0)))
        q = small_q * 0.1 + direction
        k = small_k * 0.1 + jnp.where(jnp.arange(600) % 50 == 0, 1.0, -1.0)[None, :, None, None] * direction
        out = compiled(q, k, v, bias=make_bias("alibi", 2))
        exact = dense(q, k, v, make_bias("alibi", 2), 0, True)
        assert_close(out, exact, "attention" if size == 1.0 else "attention of huge scores")


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


@pytest.mark.parametrize("implementation", [parameters(name, quick=False) for name in IMPLEMENTATIONS])
def test_dropout_drops_the_rate_and_keeps_the_mean(implementation):
    q, k = (jnp.zeros((1, 256, 2, 4)),) * 2
    v = jnp.ones((1, 256, 2, 4))
    options = {"dropout_rate": 0.4, "dropout_key": jax.random.key(1), "causal": False}
    options |= {"implementation": implementation, "interpret": True}
    out = attend(q, k, v, **options)
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.01)
    assert float(out.std()) == pytest.approx(np.sqrt(0.4 / 0.6 / 256), rel=0.2)
    assert float(jnp.abs(out - attend(q, k, v, **options | {"dropout_key": jax.random.key(2)})).max()) > 0.01


def test_dropout_masks_are_independent_across_every_axis():
    positions, seeds = jnp.arange(128), head_seeds(jax.random.key(0), 4, 4)
    mask = np.asarray(dense_keep_scale(seeds, 0.5, positions, positions)) / 2 - 0.5
    for axis in range(4):
        shifted = np.take(mask, range(1, mask.shape[axis]), axis) * np.take(mask, range(mask.shape[axis] - 1), axis)
        assert abs(shifted.mean()) < 5 * 0.25 / np.sqrt(shifted.size)
    assert abs(mask.mean()) < 5 * 0.5 / np.sqrt(mask.size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (1, 8, 3, 4), "v": (1, 8, 3, 4)}, "multiple of that of k"),
        ({"v": (1, 7, 2, 4)}, r"k and v|k, v"),
        ({"q": (1, 0, 2, 4)}, "none of them 0"),
        ({"dropout_rate": 0.5}, "a key"),
        ({"dropout_rate": 1.0, "dropout_key": jax.random.key(0)}, r"\[0, 1\)"),
        ({"reach_tolerance": 0.0}, "None to skip"),
        ({"reach_tolerance": 1.0}, "None to skip"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_bad_shapes_rates_and_tolerances_are_refused(change, message):
    arrays = {name: jnp.zeros(change.pop(name, (1, 8, 2, 4))) for name in ("q", "k", "v")}
    with pytest.raises(ValueError, match=message):
        attend(*arrays.values(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": jnp.zeros((1, 8, 2, 4), jnp.bfloat16)}, "bfloat16.*Cast them"),
        ({"reach_tolerance": "Auto"}, "'auto', or None"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_what_does_not_belong_together_is_refused(change, message):
    """Too few slopes would be read past their end, in silence."""
    arrays = {name: jnp.zeros((1, 8, 2, 4)) for name in ("q", "k", "v")}
    with pytest.raises(ValueError, match=message):
        attend(**(arrays | change))


@pytest.mark.parametrize("implementation", [*map(parameters, ["blockwise", *KERNELS])])
def test_an_output_nobody_uses_has_gradients_of_zero(implementation):
    q, k, v = inputs(Shape(1, 40, 40, 2, 2, 8))
    both = jax.jit(lambda q: (attend(q, k, v, implementation=implementation, interpret=True), q.sum()))
    np.testing.assert_array_equal(jax.grad(lambda q: both(q)[1])(q), jnp.ones_like(q))


@pytest.mark.usefixtures("shapes_unchecked")
def test_an_unknown_implementation_is_refused_naming_those_there_are():
    q = jnp.zeros((1, 8, 2, 4))
    with pytest.raises(NotImplementedError, match="auto, reference, blockwise, pallas_tpu, pallas_gpu, mosaic_gpu"):
        attend(q, q, q, implementation="flash")


@pytest.mark.parametrize("implementation", [*map(parameters, KERNELS)])
def test_kernels_refuse_by_name_what_they_cannot_serve(implementation):
    q, bias = jnp.zeros((1, 8, 2, 4)), make_bias("alibi", 2)
    refused = functools.partial(pytest.raises, NotImplementedError)
    with refused(match=f"{implementation} cannot serve a computation for cpu.*auto"):
        attend(q, q, q, bias=bias, implementation=implementation)
    with refused(match=f"{implementation} cannot serve a BucketBias"):
        attend(q, q, q, bias=make_bias("t5", 2), implementation=implementation, interpret=True)
    with refused(match="a head width of 512"):
        attend(*(jnp.zeros((1, 8, 2, 512)),) * 3, implementation=implementation, interpret=True)
    with refused(match="gradient of learned slopes"):
        jax.grad(lambda bias: attend(q, q, q, bias=bias, implementation=implementation, interpret=True).sum())(bias)


def test_the_config_offers_the_implementations_there_are():
    names = ("auto", *IMPLEMENTATIONS)
    assert typing.get_args(ImplementationName) == typing.get_args(Attention) == names
    assert [each.name for each in IMPLEMENTATIONS.values()] == list(IMPLEMENTATIONS)


def test_auto_is_dense_for_one_block_and_takes_blocks_beyond(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(
        attention.log, "propagate", True
    )  # a command run in this process before would have kept it to itself
    monkeypatch.setattr(attention.log.parent, "propagate", True)
    attention._log_once.cache_clear()  # another test may have logged it
    for length in (64, 1024):
        jax.eval_shape(attend, *(jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32),) * 3)
    assert "reference for 64 queries" in caplog.text
    assert "blockwise for 1024 queries" in caplog.text


@pytest.mark.parametrize("implementation", ["blockwise", "pallas_gpu"])
@pytest.mark.versions
def test_heads_and_rows_split_over_a_mesh_give_the_same(implementation):
    """Each device has its heads' slopes, not the first ones, and drops what one device would.

    Not mosaic_gpu: its interpreter takes the devices of a mesh for one, and finds them racing for its memory.
    """
    q, k, v = inputs(Shape(2, 150, 150, 8, 4, 16))
    mesh = make_mesh(MeshConfig(data=2, tensor=4))

    def loss(q, k, v, slopes):
        options = {"dropout_rate": 0.3, "dropout_key": jax.random.key(5)}
        bias = LinearBias(slopes)
        out = attend(q, k, v, bias=bias, implementation=implementation, interpret=True, **options)
        return jnp.square(out).sum(), out

    argnums = (0, 1, 2, 3) if implementation == "blockwise" else (0, 1, 2)
    step = jax.jit(jax.grad(loss, argnums, has_aux=True))
    inputs_and_slopes = q, k, v, make_bias("alibi", 8).slopes
    grads, out = step(*inputs_and_slopes)
    with jax.set_mesh(mesh):
        mesh_grads, mesh_out = step(*inputs_and_slopes)
    assert mesh_out.sharding.spec[0] is not None and mesh_out.sharding.spec[2] is not None
    assert_close(mesh_out, out, "attention")
    for actual, expected in zip(mesh_grads, grads, strict=True):
        scale = max(1.0, float(jnp.abs(expected).max()))
        assert_close(actual / scale, expected / scale, "attention gradient")


def test_heads_that_do_not_divide_over_the_mesh_are_refused():
    q, k, v = inputs(Shape(2, 150, 150, 6, 6, 16))
    with (
        jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=4))),
        pytest.raises(ValueError, match="heads: got 6.*4.*tensor"),
    ):
        attend(q, k, v, bias=make_bias("alibi", 6), implementation="blockwise")


def test_a_mesh_of_explicit_axes_is_refused_saying_what_to_do():
    q, k, v = inputs(Shape(8, 150, 150, 2, 2, 16))
    with (
        jax.set_mesh(jax.make_mesh((8,), ("data",))),
        pytest.raises(ValueError, match=r"axis_types=\(AxisType.Auto,\)"),
    ):
        attend(q, k, v, bias=make_bias("alibi", 2), implementation="blockwise")
