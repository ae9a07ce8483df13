"""Schedules against their formulas, and what weight decay touches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alibi_jax.config import ModelConfig, OptimizerConfig, load_config
from alibi_jax.model import TransformerLM
from alibi_jax.optimizer import decayed, learning_rate, make_optimizer

PEAK, FINAL, WARMUP, STEPS = 2e-3, 1e-4, 20, 100
RATES = {"peak_learning_rate": PEAK, "final_learning_rate": FINAL}


def formula(schedule, step):
    if step < WARMUP:
        return PEAK * step / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    if schedule == "cosine":
        return FINAL + (PEAK - FINAL) * 0.5 * (1 + math.cos(math.pi * done))
    return PEAK + (FINAL - PEAK) * done if schedule == "linear" else PEAK


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_is_its_formula_at_every_step(schedule):
    config = OptimizerConfig(**RATES, schedule=schedule, warmup_steps=WARMUP)
    rates = [float(learning_rate(config, STEPS)(step)) for step in range(STEPS + 1)]
    np.testing.assert_allclose(rates, [formula(schedule, step) for step in range(STEPS + 1)], rtol=1e-5, atol=1e-10)


def test_without_warmup_it_starts_at_the_peak():
    assert float(learning_rate(OptimizerConfig(**RATES, warmup_steps=0), STEPS)(0)) == pytest.approx(PEAK)


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
        **RATES,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.5,
        epsilon=1.0,
        beta1=0.0,
        beta2=0.0,
        clip_norm=3.0,
    )
    optimizer, params = make_optimizer(config, STEPS), {"up": jnp.full((2, 2), 7.0)}
    state = optimizer.init(params)
    updates, _ = optimizer.update({"up": jnp.zeros((2, 2))}, state, params)
    np.testing.assert_allclose(updates["up"], -PEAK * 0.5 * 7.0, rtol=1e-5)
    updates, _ = optimizer.update({"up": jnp.full((2, 2), 1e6)}, state, params)
    clipped = 3.0 / 2  # each of four equal entries of a gradient of norm 3
    np.testing.assert_allclose(updates["up"], -PEAK * (clipped / (clipped + 1.0) + 0.5 * 7.0), rtol=1e-5)
    assert float(optax.tree.norm(updates)) < 1


def fairseq_nag(parameter, gradients, rates, momentum, weight_decay):
    """The published rule in float64: parameters after each update, the momentum rescaled by rate / previous rate."""
    buffer, previous, trace = np.zeros_like(parameter), rates[0], []
    for gradient, rate in zip(gradients, rates, strict=True):
        correction = rate / previous
        parameter = parameter * (1 - rate * weight_decay)
        parameter = parameter + momentum**2 * correction * buffer - (1 + momentum) * rate * gradient
        buffer = momentum * correction * buffer - rate * gradient
        previous = rate
        trace.append(parameter)
    return trace


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.versions
def test_nag_is_fairseqs_rule_under_warmup_and_cosine(weight_decay):
    """The paper's schedule shrunk: 1e-7 to the peak, then cosine; no clip is reached."""
    config = OptimizerConfig(
        name="nag",
        momentum=0.99,
        initial_learning_rate=1e-7,
        **RATES,
        warmup_steps=WARMUP,
        weight_decay=weight_decay,
        clip_norm=1e9,
    )
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 5)), rng.normal(size=(STEPS, 3, 5))
    rates = [float(learning_rate(config, STEPS)(step)) for step in range(STEPS)]
    assert rates[0] == pytest.approx(1e-7, abs=1e-9) and max(rates) == pytest.approx(PEAK)
    optimizer, params = make_optimizer(config, STEPS), {"up": jnp.float32(start)}
    state, update = optimizer.init(params), jax.jit(make_optimizer(config, STEPS).update)
    expected = fairseq_nag(start, gradients, rates, 0.99, weight_decay)
    for gradient, after in zip(gradients, expected, strict=True):
        updates, state = update({"up": jnp.float32(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["up"], after, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[-1] - start).max() > 0.1  # and it did move


def test_the_papers_schedule():
    """1e-7 to 1 over 16,000 updates, then cosine to 1e-4 over 270,000 (Baevski & Auli 2019)."""
    config = load_config("configs/wikitext103.py")
    rate = learning_rate(config.optimizer, config.train.steps)
    expected = {0: 1e-7, 8_000: 0.5, 16_000: 1.0, 151_000: (1 + 1e-4) / 2, 286_000: 1e-4}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-4, abs=1e-7)
    assert (
        config.optimizer.momentum == 0.99 and config.optimizer.clip_norm == 0.1 and config.optimizer.weight_decay == 0
    )
