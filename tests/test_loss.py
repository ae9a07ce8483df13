"""From features to nats: against float64, and a chunk at a time as well as whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.model import loss
from alibi_jax.model.loss import Weights, log_probabilities, target_nats
from conftest import assert_close

EDGES = (0, 11, 20, 37)  # of three clusters
WIDTHS = (8, 4, 2)


def built(dtype=np.float32, clusters=3, scale=1.0):
    """features [2, 13, w] of each cluster, weights, targets over the whole vocabulary."""
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2, 13, width)).astype(dtype) * scale for width in WIDTHS[:clusters]]
    tables = [rng.normal(size=(EDGES[b + 1] - EDGES[b], WIDTHS[b])).astype(dtype) for b in range(clusters)]
    classes = rng.normal(size=(clusters - 1, WIDTHS[0])).astype(dtype) if clusters > 1 else None
    features, weights = jax.tree.map(jnp.asarray, (features, Weights(tables, classes)))
    return features, weights, rng.integers(0, EDGES[clusters], (2, 13))


def expected_nats(features, weights, targets):
    """The definition in float64: log-softmax of the head over its tokens and classes, of each cluster within it."""

    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    features, tables = ([np.float64(x) for x in xs] for xs in (features, weights.tables))
    rows = tables[0] if weights.classes is None else np.concatenate([tables[0], np.float64(weights.classes)])
    head = log_softmax(features[0] @ rows.T)
    tails = [
        log_softmax(x @ table.T) + head[..., len(tables[0]) + b, None]
        for b, (x, table) in enumerate(zip(features[1:], tables[1:], strict=True))
    ]
    everything = np.concatenate([head[..., : len(tables[0])], *tails], -1)
    np.testing.assert_allclose(np.exp(everything).sum(-1), 1, rtol=1e-12)
    return -np.take_along_axis(everything, targets[..., None], -1)[..., 0], everything


@pytest.mark.parametrize("clusters", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_nats_and_log_probabilities_equal_the_definition_in_float64(clusters, scale):
    features, weights, targets = built(clusters=clusters, scale=scale)
    nats, everything = expected_nats(features, weights, targets)
    got = target_nats(features, jnp.asarray(targets), weights, logits_mib=1)
    np.testing.assert_allclose(got, nats, rtol=2e-6, atol=2e-6 * scale)
    logits = log_probabilities(features, weights)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), everything, rtol=2e-6, atol=2e-6 * scale)
    if clusters > 1:
        np.testing.assert_allclose(logits, everything, rtol=2e-6, atol=2e-6 * scale)  # normalised already


@pytest.mark.parametrize("tokens", [1, 4, 5, 13, 100])
def test_a_chunk_at_a_time_is_the_whole_forward_and_backward(tokens):
    """Also where some chunks hold no token of a cluster, and the others hold nothing else."""
    features, weights, targets = built()

    def total(features, weights, tokens):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss, "CLUSTER_TOKENS", tokens)
            patch.setattr(loss, "local_size", lambda size, dimension: 2**20 // 4 // tokens)
            scores = target_nats(features, jnp.asarray(targets), weights, logits_mib=1)
        return jnp.square(scores).sum(), scores

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True), static_argnums=2)
    (got, scores), (expected, whole) = (gradient(features, weights, t) for t in (tokens, 26))
    assert_close(scores, whole, "loss")
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5), got, expected)


def test_bfloat16_features_are_scored_in_float32():
    features, weights, targets = built(jnp.bfloat16)
    nats = target_nats(features, jnp.asarray(targets), weights, logits_mib=1)
    assert nats.dtype == jnp.float32
    np.testing.assert_allclose(nats, expected_nats(features, weights, targets)[0], rtol=2e-5)


def test_the_gradients_of_many_chunks_are_summed_in_float32():
    """bfloat16 features, 512 chunks: a sum kept in bfloat16 would stop growing after 256 equal terms."""
    x, table = jnp.ones((1, 512, 4), jnp.bfloat16), jnp.zeros((2**18, 4))

    def total(table):
        return target_nats([x], jnp.zeros((1, 512), int), Weights([table], None), logits_mib=1).sum()

    gradient = jax.jit(jax.grad(total))(table)
    np.testing.assert_allclose(gradient[0], 512 * (2.0**-18 - 1), rtol=1e-3)


@pytest.mark.parametrize("clusters", [1, 3])
def test_a_target_outside_the_vocabulary_has_no_loss(clusters):
    features, weights, targets = built(clusters=clusters)
    targets[0, :2] = -1, EDGES[clusters]
    nats = target_nats(features, jnp.asarray(targets), weights, logits_mib=1)
    assert np.isnan(nats[0, :2]).all() and np.isfinite(nats[1]).all()


def test_only_the_logits_of_a_chunk_are_ever_held():
    """Memory of the compiled gradient of 512 tokens, a vocabulary of 50,000: all logits at once are 98 MiB, twice."""
    x, table = jnp.zeros((1, 512, 16)), jnp.zeros((50_000, 16))
    targets = jnp.zeros((1, 512), jnp.int32)

    def total(x, table, mib):
        return target_nats([x], targets, Weights([table], None), logits_mib=mib).sum()

    def mebibytes(mib):
        lowered = jax.jit(jax.grad(total, argnums=(0, 1)), static_argnums=2).lower(x, table, mib)
        return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20

    assert mebibytes(98) > 98
    assert mebibytes(6) < 30


def test_chunks_without_a_token_of_the_cluster_are_not_computed():
    """NaN in the vectors of the last cluster: it shows where its logits are computed, and nowhere else."""
    features, weights, targets = built()
    weights.tables[2] = jnp.full_like(weights.tables[2], jnp.nan)
    features = [jnp.tile(x, (1, 100, 1)) for x in features]
    targets = jnp.zeros((2, 1300), int).at[1, -1].set(30)
    nats = target_nats(features, targets, weights, logits_mib=1)
    assert np.isnan(nats).sum() == 1 and np.isnan(nats[1, -1])
    gradient = jax.grad(lambda f: target_nats(f, targets.at[1, -1].set(5), weights, logits_mib=1).sum())(features)
    assert all(np.isfinite(x).all() for x in gradient)
