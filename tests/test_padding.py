"""Outputs and gradients where lengths are padded to blocks, rows see no key, and biases or scores are large: finite, and those
of float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.attention import IMPLEMENTATIONS, attend
from alibi_jax.attention.dropout import dense_keep_scale, head_seeds
from alibi_jax.config import MeshConfig
from alibi_jax.positions import BucketBias, LinearBias
from alibi_jax.sharding import make_mesh
from benchmarks.shapes import Shape
from conftest import assert_close
from kernels import KERNELS, mosaic_gpu_of_float32, parameters  # noqa: F401

pytestmark = pytest.mark.usefixtures("mosaic_gpu_of_float32")

KEY = jax.random.key(3)


class Case(NamedTuple):
    shape: Shape
    slopes: tuple = ()  # of the heads
    table: tuple = ()  # of every head: bias by bucket
    size: float = 1.0  # of queries and keys
    rate: float = 0.0

    @property
    def bias(self):
        if self.table:
            return BucketBias(jnp.tile(jnp.float32(self.table)[:, None], self.shape.heads), 16)
        return LinearBias(jnp.float32(self.slopes)) if self.slopes else None


CASES = {
    "all rise": Case(Shape(1, 129, 129, 2, 2, 8), (-0.7, -0.7)),
    "queries and keys padded": Case(Shape(2, 150, 170, 4, 2, 8, 20), (-0.7, 0.5, -1.0, 0.0)),
    "dropout": Case(Shape(1, 40, 40, 2, 1, 8), (-5.0, 0.25), rate=0.3),
    "encoder": Case(Shape(1, 33, 50, 2, 2, 8, 0, False), (-2.0, 2.0)),
    "before the keys": Case(Shape(1, 40, 40, 2, 2, 8, -5), (-4.0, 0.1)),
    "before all keys": Case(Shape(1, 20, 30, 2, 2, 8, -600), (-0.7, 0.1)),
    "huge scores": Case(Shape(1, 40, 40, 2, 2, 8), (-4.0, 0.1), size=4.0),
    "far bucket": Case(Shape(2, 40, 40, 4, 2, 8), table=(0.0, 1.0, -1.0, 0.5, 200.0, 300.0)),
    "hidden bucket": Case(Shape(1, 40, 40, 2, 2, 8), table=(-np.inf, 1.0, 90.0, 0.5)),
    "nothing seen": Case(Shape(1, 20, 20, 2, 2, 8), table=(-np.inf,) * 4),
}
BY_KERNELS = ["encoder", "before the keys", "dropout"]  # Pallas's interpreters take seconds for each
SERVED = [
    parameters(case, name, quick=case == "before the keys")
    for case in CASES
    for name in IMPLEMENTATIONS
    if name not in KERNELS or case in BY_KERNELS
]


def inputs(case: Case):
    """q, k, v and the gradient that comes."""
    shape = case.shape
    sizes = [(shape.queries, shape.heads), *[(shape.keys, shape.key_heads)] * 2, (shape.queries, shape.heads)]
    q, k, v, d_out = (
        jax.random.normal(jax.random.key(i), (shape.batch, *size, shape.width)) for i, size in enumerate(sizes)
    )
    return q * case.size, k * case.size, v, d_out


def exact(case: Case, q, k, v, d_out):
    """(output, dq, dk, dv, gradient of the bias's array) in float64 numpy: the formulas, no row that sees no key."""
    shape, group = case.shape, case.shape.heads // case.shape.key_heads
    q, k, v, d_out = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v, d_out))
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    positions = shape.q_offset + np.arange(shape.queries), np.arange(shape.keys)
    distances = positions[0][:, None] - positions[1][None, :]
    scores = q @ k.swapaxes(2, 3) / np.sqrt(shape.width)
    if case.bias is not None:
        scores = scores + np.asarray(case.bias.block(*map(jnp.asarray, positions)), np.float64)[None]
    scores = np.where((distances >= 0) | (not shape.causal), scores, -np.inf)
    seen = np.isfinite(scores).any(-1, keepdims=True)
    weights = np.exp(scores - np.where(seen, scores.max(-1, keepdims=True), 0.0))
    weights = weights / np.where(seen, weights.sum(-1, keepdims=True), 1.0)
    keep = 1.0
    if case.rate:
        seeds = head_seeds(KEY, shape.batch, shape.heads)
        keep = np.asarray(dense_keep_scale(seeds, case.rate, *map(jnp.asarray, positions)), np.float64)
    d_weights = d_out @ v.swapaxes(2, 3) * keep
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
    of_keys = (
        x.reshape(shape.batch, -1, group, *x.shape[2:]).sum(2)
        for x in (d_scores.swapaxes(2, 3) @ q, (weights * keep).swapaxes(2, 3) @ d_out)
    )
    dk, dv = of_keys
    arrays = weights * keep @ v, d_scores @ k / np.sqrt(shape.width), dk / np.sqrt(shape.width), dv
    return *(x.swapaxes(1, 2) for x in arrays), bias_gradient(case, d_scores.sum(0), distances)


def bias_gradient(case: Case, d_scores, distances):
    if case.bias is None:
        return None
    if case.slopes:
        return -(d_scores * np.abs(distances)).sum((1, 2))
    buckets = np.asarray(case.bias.buckets(jnp.asarray(distances)))
    return np.stack([d_scores[:, buckets == row].sum(-1) for row in range(len(case.table))])


def observed(case: Case, implementation: str, q, k, v, d_out):
    """The same five of attend, the last only where the implementation knows it; q_offset is traced, as it may be negative."""
    learned = case.bias is not None and implementation not in KERNELS

    def output(q, k, v, bias, q_offset):
        options = {"causal": case.shape.causal, "dropout_rate": case.rate, "dropout_key": KEY, "interpret": True}
        return attend(q, k, v, bias=bias, q_offset=q_offset, implementation=implementation, **options)

    @jax.jit
    def run(q, k, v, d_out, q_offset):
        if learned:
            out, vjp = jax.vjp(functools.partial(output, q_offset=q_offset), q, k, v, case.bias)
        else:
            out, vjp = jax.vjp(lambda q, k, v: output(q, k, v, case.bias, q_offset), q, k, v)
        return out, *vjp(d_out)

    out, *gradients = run(q, k, v, d_out, case.shape.q_offset)
    return out, *gradients[:3], jax.tree.leaves(gradients[3])[0] if learned else None


def assert_exact(case, actual, expected):
    """The bias's gradient sums rounding errors of large scores, times distances."""
    allowed = ["attention of huge scores" if case.size > 1 else "attention gradient"] * 4 + ["attention of huge scores"]
    for x, y, what in zip(actual, expected, allowed, strict=True):
        if x is not None:
            assert np.isfinite(x).all()
            scale = max(1.0, np.abs(y).max())
            assert_close(np.asarray(x) / scale, y / scale, what)


@pytest.mark.parametrize(("case", "implementation"), SERVED)
def test_outputs_and_gradients_are_finite_and_those_of_float64(case, implementation):
    case = CASES[case]
    arrays = inputs(case)
    assert_exact(case, observed(case, implementation, *arrays), exact(case, *arrays))


def test_a_ring_whose_parts_are_padded():
    """33 tokens a device, blocks of 48."""
    case = Case(Shape(1, 132, 132, 2, 2, 8), (-10.0, 0.5))
    arrays = inputs(case)

    def output(q, k, v, bias):
        return attend(q, k, v, bias=bias, implementation="blockwise")

    with jax.set_mesh(make_mesh(MeshConfig(data=1, sequence=4), jax.devices()[:4])):
        run = jax.jit(lambda d_out, *inputs: (lambda out, vjp: (out, *vjp(d_out)))(*jax.vjp(output, *inputs)))
        out, dq, dk, dv, d_bias = run(arrays[3], *arrays[:3], case.bias)
    assert_exact(case, (out, dq, dk, dv, d_bias.slopes), exact(case, *arrays))


@pytest.mark.usefixtures("shapes_unchecked")  # which know no float64, though all that comes out is float32
@pytest.mark.parametrize("name", ["linear", "bucket"])
def test_gradients_of_a_bias_in_float32_are_the_same_where_float64_is_enabled(name):
    q = jax.random.normal(KEY, (1, 129, 1, 8), jnp.float32)
    bias = LinearBias(jnp.float32([0.5])) if name == "linear" else BucketBias(jnp.zeros((8, 1)), 16)

    def gradient():
        built = jax.grad(lambda bias: jnp.square(attend(q, q, q, bias=bias, implementation="blockwise")).sum())(bias)
        return jax.tree.leaves(built)[0]

    expected = gradient()
    with jax.enable_x64(True):
        again = gradient()
    assert again.dtype == jnp.float32
    assert_close(again, expected, "attention gradient")
