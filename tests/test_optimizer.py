"""Schedules against their formulas, and what weight decay touches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alibi_jax.config import ModelConfig, OptimizerConfig
from alibi_jax.model import TransformerLM
from alibi_jax.optimizer import decayed, learning_rate, make_optimizer

PEAK, FINAL, WARMUP, STEPS = 2e-3, 1e-4, 20, 100


def formula(schedule, step):
    if step < WARMUP:
        return PEAK * step / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    if schedule == "cosine":
        return FINAL + (PEAK - FINAL) * 0.5 * (1 + math.cos(math.pi * done))
    return PEAK + (FINAL - PEAK) * done if schedule == "linear" else PEAK


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_is_its_formula_at_every_step(schedule):
    config = OptimizerConfig(PEAK, FINAL, schedule, WARMUP)
    rates = [float(learning_rate(config, STEPS)(step)) for step in range(STEPS + 1)]
    np.testing.assert_allclose(rates, [formula(schedule, step) for step in range(STEPS + 1)], rtol=1e-5, atol=1e-10)


def test_without_warmup_it_starts_at_the_peak():
    assert float(learning_rate(OptimizerConfig(PEAK, FINAL, "cosine", 0), STEPS)(0)) == pytest.approx(PEAK)


def test_weight_decay_touches_matrices_alone():
    model = TransformerLM(ModelConfig(position="t5", num_layers=1, width=8, num_heads=2, mlp_width=8, vocab_size=9))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    named = jax.tree_util.tree_leaves_with_path(decayed(params))
    kept = {jax.tree_util.keystr(path, simple=True, separator="/") for path, does in named if does}
    layer = {f"layer_0/attention/{name}" for name in ("query", "key", "value", "out")}
    assert kept == layer | {"embedding/table", "layer_0/mlp/up", "layer_0/mlp/down"}


def test_an_update_is_bounded_by_the_clip_and_decays_by_rate_times_weight():
    """With gradients of zero the update is -rate * decay * weight; huge gradients act as gradients of norm clip_norm."""
    config = OptimizerConfig(
        PEAK, FINAL, "constant", 0, weight_decay=0.5, epsilon=1.0, beta1=0.0, beta2=0.0, clip_norm=3.0
    )
    optimizer, params = make_optimizer(config, STEPS), {"up": jnp.full((2, 2), 7.0)}
    state = optimizer.init(params)
    updates, _ = optimizer.update({"up": jnp.zeros((2, 2))}, state, params)
    np.testing.assert_allclose(updates["up"], -PEAK * 0.5 * 7.0, rtol=1e-5)
    updates, _ = optimizer.update({"up": jnp.full((2, 2), 1e6)}, state, params)
    clipped = 3.0 / 2  # each of four equal entries of a gradient of norm 3
    np.testing.assert_allclose(updates["up"], -PEAK * (clipped / (clipped + 1.0) + 0.5 * 7.0), rtol=1e-5)
    assert float(optax.tree.norm(updates)) < 1
