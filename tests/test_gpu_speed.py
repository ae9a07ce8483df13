"""The GPU benchmark's speed of attention and of training: small ones run here, and the real ones are lowered for CUDA."""

import csv
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.attention import IMPLEMENTATIONS
from alibi_jax.attention.reach import DEFAULT_TOLERANCE
from benchmarks.gpu import contenders, inputs, kernels, speed, training
from benchmarks.gpu.programs import compile_each
from cuda import mesh_of

REACH = Path(__file__).parents[1] / "experiments" / "results" / "reach" / "reach.csv"
OURS = [name for name, each in IMPLEMENTATIONS.items() if each.platform == "gpu"]
HERE = [
    name for name, why in kernels.our_kernels(True, kernels.ALL_TAKE_PART).items() if not why
]  # can be had on this jax
KERNEL = {"pallas_gpu": "__gpu$xla.gpu.triton", "mosaic_gpu": "@mosaic_gpu_v2"}  # what a lowered program calls
SETTING = speed.Setting("forward", 256, 16, 2, "random")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    for module in (speed, training):
        monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(training, "TURNS", 2)


@pytest.fixture(scope="module")
def all_rows():
    """All rows of the speed of attention, small."""
    return [row for row in speed.rows(interpret=True) if "skipped" not in row]


def measured_fractions():
    """Fractions of causal blocks visited by the heads of the model "books" at 4,096 tokens, means over its layers."""
    with REACH.open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "books" and row["length"] == "4096"]
    rows = [row for row in rows if row["bound"].endswith("(the kernels)")]
    heads = [[float(row["share_visited"]) for row in rows if row["head"] == str(head)] for head in range(8)]
    return np.mean(heads, axis=1)


def test_inputs_of_a_trained_models_bounds_visit_what_was_measured_of_one():
    arrays = inputs.make_inputs(4096, 8, 64, True)
    actual = np.asarray(inputs.visited(arrays, DEFAULT_TOLERANCE["float32"]))
    expected = measured_fractions()
    assert abs(actual.mean() - expected.mean()) < 0.01
    assert np.abs(actual - expected).max() < 0.03


def test_inputs_of_a_trained_models_bounds_have_them():
    arrays = inputs.make_inputs(256, 8, 64, True)
    q, k = (np.linalg.norm(np.asarray(x, np.float32), axis=-1) for x in arrays[:2])
    np.testing.assert_allclose((q * k).mean((0, 1)) / 8, inputs.score_bounds(np.asarray(arrays.slopes)), rtol=0.01)


def test_every_contender_of_this_machine_is_timed_in_both_directions_and_on_both_inputs(all_rows):
    names = [*HERE, "XLA, dense"]
    assert [(row["direction"], row["inputs"], row["contender"]) for row in all_rows] == [
        (direction, kind, name)
        for direction in ("forward+backward", "forward")
        for kind in ("random", "trained")
        for name in names
    ]
    assert all(row["passed"] and row["milliseconds"] > 0 for row in all_rows)
    assert {row["compared_with"] for row in all_rows} == {HERE[0]}


def test_rates_count_a_causal_attentions_operations_and_the_blocks_visited(all_rows):
    row = next(row for row in all_rows if row["contender"] == "XLA, dense" and row["direction"] == "forward+backward")
    products, seconds = 7, row["milliseconds"] / 1000
    pairs = sum(range(128))  # strictly before each query; half of the diagonal makes it L^2 / 2
    assert math.isclose(row["effective_tflops"], 1e-12 * products * 2 * 16 * (pairs + 128 / 2) / seconds)
    assert math.isclose(row["computed_tflops"], 1e-12 * products * 2 * 16 * 128**2 / seconds)
    assert row["of_peak"] is None


def test_a_contender_that_fails_and_one_that_differs_are_not_timed_and_the_others_are():
    def fails(*_):
        raise NotImplementedError("no such kernel\nand more")

    good = contenders.of_jax("XLA, dense", contenders.xla)
    wrong = contenders.of_jax("wrong", lambda q, k, v, slopes: contenders.xla(q, k, v, 2 * slopes))
    unbiased = contenders.of_jax("no bias", lambda q, k, v, s: contenders.xla(q, k, v, 0 * s), biased=False)
    broken = contenders.of_jax("not finite", lambda q, k, v, slopes: q * jnp.nan)
    several = [broken, good, wrong, contenders.of_jax("fails", fails), unbiased]
    arrays = inputs.make_inputs(256, 2, 16, False)
    shapes = jax.eval_shape(lambda: arrays)
    programs = compile_each({each.name: functools.partial(each.lower, "forward", shapes) for each in several})
    rows = {row["contender"]: row for row in speed.measure(SETTING, several, programs, arrays, 1)}
    assert [name for name, row in rows.items() if row["passed"]] == ["XLA, dense", "no bias"]
    assert [name for name, row in rows.items() if row["milliseconds"]] == ["XLA, dense", "no bias"]
    assert rows["fails"]["reason"] == "NotImplementedError: no such kernel"
    assert "not finite" in rows["not finite"]["reason"]
    assert "from XLA, dense, expected" in rows["wrong"]["reason"]


def test_flex_attention_that_cannot_be_compiled_is_not_compiled_again_at_other_lengths(monkeypatch):
    """Each try may take a minute of a GPU."""
    tries = []

    def fails(*arguments):
        tries.append(arguments)
        raise AssertionError("no kernel")

    monkeypatch.setattr(contenders, "flex_call", fails)
    monkeypatch.setattr(contenders, "compiled_flex", lambda: None)
    contenders.first_flex_call.cache_clear()
    for length in (256, 512):
        shapes = jax.eval_shape(inputs.make_inputs, length, 2, 16, False)
        with pytest.raises(RuntimeError, match="AssertionError: no kernel"):
            contenders.lower_flex("cpu")("forward", shapes)
    assert len(tries) == 1
    contenders.first_flex_call.cache_clear()


def test_nan_in_one_of_the_gradients_does_not_pass():
    """Wherever among them it stands."""
    arrays = inputs.make_inputs(256, 2, 16, False)
    good = contenders.of_jax("good", contenders.xla)
    expected = speed.Expected(arrays)
    outputs = contenders.program(contenders.xla, "forward+backward")(*arrays)
    assert expected.difference(good, lambda _: None, lambda: outputs) == 0
    for place in range(3):
        broken = [x.at[0, 5].set(jnp.nan) if number == place else x for number, x in enumerate(outputs)]
        with pytest.raises(ValueError, match="difference of nan"):
            speed.admit(good, lambda _, broken=broken: lambda: broken, arrays, expected)


def test_a_model_whose_gradients_are_not_finite_is_not_timed(monkeypatch):
    step = training.train_step
    spoilt = lambda *rest: jax.tree.map(lambda x: x * jnp.nan if x.ndim > 1 else x, step(*rest))  # noqa: E731
    monkeypatch.setattr(training, "train_step", spoilt)
    rows = list(training.rows(interpret=True))
    assert not any(row["passed"] for row in rows)
    assert all("a step later, nan, expected finite" in row["reason"] for row in rows)


def test_all_shapes_are_timed_most_telling_first():
    assert set(speed.ORDER) == {(length, width) for length in (2048, 8192, 32768, 131072) for width in (64, 128)}
    assert speed.ORDER[:2] == ((8192, 64), (32768, 64))


@pytest.fixture
def pretend_cudnn(monkeypatch):
    """cuDNN's version and the card's capability, which jax asks a device for when it lowers."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_200)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")


def lower_for_cuda(function, *arguments):
    with jax.sharding.use_abstract_mesh(mesh_of()):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("length", "width", "direction"), [(131_072, 64, "forward+backward"), (8192, 128, "forward")])
def test_contenders_lower_for_cuda(length, width, direction, pretend_cudnn):
    shapes = jax.eval_shape(inputs.make_inputs, length, speed.HEADS, width, False)
    for name in OURS:
        program = contenders.program(contenders.ours(name, False), direction)
        assert lower_for_cuda(program, *shapes).count(KERNEL[name]) == (1 if direction == "forward" else 3)
    text = lower_for_cuda(contenders.program(contenders.cudnn, direction), *shapes)
    assert "__cudnn$fmha" in text
    assert f"{length}x{length}x" not in text
    if length == 8192:
        assert f"{length}x{length}xf32" in lower_for_cuda(contenders.program(contenders.xla, direction), *shapes)


def test_training_is_timed_with_and_without_alibi():
    rows = list(training.rows(interpret=True))
    assert [row["position"] for row in rows] == ["none", "alibi"]
    assert all(row["passed"] and row["tokens_per_second"] > 0 for row in rows)
    assert all(abs(row["loss"] - math.log(training.TINY.vocab_size)) < 1.5 for row in rows)
    assert math.isclose(rows[1]["over_none"], rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"])


def test_a_model_that_cannot_be_trained_is_a_row_and_the_other_is_timed(monkeypatch):
    make = training.make_config

    def without_alibi(model, position, *rest):
        attention, *sizes = rest
        return make(model, position, attention if position == "none" else "pallas_tpu", *sizes)

    monkeypatch.setattr(training, "make_config", without_alibi)
    none, alibi = training.rows(interpret=True)
    assert none["passed"] and none["over_none"] == 1
    assert not alibi["passed"] and "pallas_tpu cannot serve" in alibi["reason"] and alibi["mfu"] is None


@pytest.mark.parametrize(("position", "attention"), [*zip(["alibi", "none"], OURS, strict=True)])
def test_training_steps_of_a_hundred_million_parameters_lower_for_cuda(position, attention):
    config = training.make_config(training.MODEL, position, attention, 16_384, training.TOKENS)
    with jax.sharding.use_abstract_mesh(mesh_of()):
        step, make_state = training.make_step(config)
        state, batch = jax.eval_shape(make_state), training.batch_shape(config)
        text = step.trace(state, batch, batch).lower(lowering_platforms=("cuda",)).as_text()
    assert 1.0e8 < sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)) < 1.2e8
    assert text.count(KERNEL[attention]) == 3
    assert "16384x16384x" not in text
