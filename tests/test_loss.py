"""The loss against float64, and the one number it must give without a model."""

import jax.numpy as jnp
import numpy as np

from alibi_jax.loss import nats
from conftest import assert_close


def test_uniform_logits_cost_log_v():
    assert_close(nats(jnp.zeros((2, 3, 50)), jnp.ones((2, 3), int)), np.full((2, 3), np.log(50)), "loss")


def test_against_float64_at_large_logits():
    logits = np.random.default_rng(0).normal(size=(4, 7, 31)) * 30
    targets = np.random.default_rng(1).integers(0, 31, (4, 7))
    shifted = logits - logits.max(-1, keepdims=True)
    expected = np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats(jnp.float32(logits), jnp.asarray(targets)), expected, rtol=1e-5, atol=1e-4)


def test_bfloat16_logits_are_scored_in_float32():
    assert nats(jnp.zeros((1, 5), jnp.bfloat16), jnp.zeros(1, int)).dtype == jnp.float32
