"""Sweeps: every pair kept with its facts, nothing done twice, lengths that cannot be had recorded."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.config import EvaluateConfig, ModelConfig
from alibi_jax.evaluate import nats as nats_module
from alibi_jax.evaluate import sweep as sweep_module
from alibi_jax.evaluate.sweep import plan, sweep
from alibi_jax.model import TransformerLM

STREAM = np.random.default_rng(1).integers(0, 23, 200).astype(np.uint16)
FACTS = {
    "run": "tiny",
    "position": "alibi",
    "train_length": 8,
    "split": "test",
    "checkpoint_step": 3,
    "corpus_fingerprint": "f00d",
}


def make(**changes):
    model = TransformerLM(ModelConfig(num_layers=1, width=16, num_heads=2, mlp_width=32, vocab_size=23, **changes))
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]


@pytest.fixture(scope="module")
def tiny():
    return make()


def run(model, folder, config=None, facts=FACTS, stream=STREAM):
    config = config or EvaluateConfig(lengths=(8, 16, 64), strides=("L", "L/4"), batch_tokens=64)
    model, params = model
    return sweep(model, params, stream, config=config, first_input=0, num_bytes=500, folder=folder, facts=facts)


def test_plan_puts_the_training_length_first_and_repeats_no_pair():
    pairs = plan(EvaluateConfig(strides=("L", "L/4", "L/4"), far_stride="L/16"), 128)
    assert pairs[:2] == [(128, 128), (128, 8)]
    assert set(pairs) == {(128, 8)} | {(128 * k, 128 * k // d) for k in (1, 2, 4, 8, 16) for d in (1, 4)}
    assert len(pairs) == 11
    assert plan(EvaluateConfig(lengths=(64,), strides=("L",)), 128) == [(64, 64)]


def test_records_hold_statistics_that_follow_from_the_arrays(tiny, tmp_path):
    records = run(tiny, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()] == records
    for record in records:
        nats = np.load(tmp_path / record["nats_file"]).astype(np.float64)
        assert len(nats) == record["num_tokens"] == 200
        assert record["status"] == "ok"
        assert record["perplexity"] == pytest.approx(np.exp(nats.sum() / 200))
        assert record["bits_per_byte"] == pytest.approx(nats.sum() / np.log(2) / 500)
        assert record["versions"]["jax"] == jax.__version__
        assert record["corpus_fingerprint"] == "f00d"
    gains = {record["length"]: record["gain"] for record in records if "gain" in record}
    assert set(gains) == {16, 64}
    losses = {r["length"]: r["mean_nats"] for r in records if r["length"] == r["stride"]}
    for length, gain in gains.items():
        assert gain["total"] == pytest.approx(losses[8] - losses[length])
        assert gain["far_context"] + gain["early_tokens"] == pytest.approx(gain["total"])


def test_finished_pairs_are_not_run_again_and_the_rest_is(tiny, tmp_path, monkeypatch):
    first = run(tiny, tmp_path, EvaluateConfig(lengths=(8,), strides=("L",), far_stride="L", batch_tokens=64))
    scored = []
    real = sweep_module.token_nats

    def counting(*args, **options):
        scored.append((options["length"], options["stride"]))
        return real(*args, **options)

    monkeypatch.setattr(sweep_module, "token_nats", counting)
    records = run(tiny, tmp_path)
    assert (8, 8) not in scored
    assert len(scored) == len(records) - 1
    assert records[0] == first[0]
    scored.clear()
    assert run(tiny, tmp_path) == records
    assert scored == []


def test_an_interrupted_sweep_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch):
    whole = run(tiny, tmp_path / "whole")
    real, calls = sweep_module.token_nats, []

    def stopping(*args, **options):
        calls.append(options["length"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "token_nats", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path / "cut")
    resumed = run(tiny, tmp_path / "cut")
    same = ("length", "stride", "mean_nats", "gain")
    assert [[r.get(k) for k in same] for r in resumed] == [[r.get(k) for k in same] for r in whole]


def test_a_sweep_compiles_once_for_each_length_whatever_its_strides(tiny, tmp_path, monkeypatch):
    traced = chex.assert_max_traces(nats_module.window_nats.__wrapped__, n=3)
    monkeypatch.setattr(nats_module, "window_nats", jax.jit(traced, static_argnums=0))
    records = run(tiny, tmp_path, EvaluateConfig(lengths=(8, 16, 64), strides=("L", "L/2", "L/4"), batch_tokens=64))
    assert len(records) == 10


def test_gains_come_when_what_they_need_has_come(tiny, tmp_path):
    """Evaluated in two commands, the longer length first, it has the same gain as in one."""
    run(tiny, tmp_path / "two", EvaluateConfig(lengths=(64,), strides=("L",), batch_tokens=64))
    both = EvaluateConfig(lengths=(8, 64), strides=("L",), batch_tokens=64)
    gains = [[r["gain"] for r in run(tiny, tmp_path / name, both) if "gain" in r] for name in ("two", "one")]
    assert gains[0] == gains[1]
    assert len(gains[0]) == 1
    assert gains[0][0]["far_stride"] == 1


def test_out_of_memory_is_tried_again_with_more(tmp_path):
    model, config = make(attention="reference"), {"lengths": (8, 512), "strides": ("L",), "batch_tokens": 64}
    for limit, status in ((0.001, "out of memory"), (1.0, "ok")):
        records = run(model, tmp_path, EvaluateConfig(**config, memory_limit_gib=limit))
        assert {r["length"]: r["status"] for r in records}[512] == status
    assert len(records) == len({(r["length"], r["stride"]) for r in records})


def test_a_folder_of_another_evaluation_is_refused(tiny, tmp_path):
    run(tiny, tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint_step 3, now 4.*--out"):
        run(tiny, tmp_path, facts=FACTS | {"checkpoint_step": 4})
    with pytest.raises(ValueError, match=r"num_tokens 200, now 100"):
        run(tiny, tmp_path, stream=STREAM[:100])


def test_lengths_past_memory_are_recorded_and_the_sweep_goes_on(tmp_path):
    model = make(attention="reference")
    limit = EvaluateConfig(lengths=(8, 4096, 16), strides=("L",), batch_tokens=64, memory_limit_gib=0.05)
    by_length = {(r["length"], r["stride"]): r for r in run(model, tmp_path, limit)}
    assert by_length[(4096, 4096)]["status"] == "out of memory"
    assert "GiB needed" in by_length[(4096, 4096)]["detail"]
    assert by_length[(16, 16)]["status"] == "ok"


def test_an_allocation_that_fails_is_recorded_and_the_sweep_goes_on(tiny, tmp_path, monkeypatch):
    real = sweep_module.token_nats

    def failing(*args, **options):
        if options["length"] == 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return real(*args, **options)

    monkeypatch.setattr(sweep_module, "token_nats", failing)
    statuses = {r["length"]: r["status"] for r in run(tiny, tmp_path)}
    assert statuses == {8: "ok", 16: "out of memory", 64: "ok"}


def test_other_runtime_errors_are_not_taken_for_memory(tiny, tmp_path, monkeypatch):
    def failing(*args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(sweep_module, "token_nats", failing)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(tiny, tmp_path)


def test_lengths_a_method_refuses_are_recorded(tmp_path):
    model = make(position="learned", learned_length=16)
    statuses = {
        r["length"]: (r["status"], r["detail"]) for r in run(model, tmp_path, facts=FACTS | {"position": "learned"})
    }
    assert statuses[16][0] == "ok"
    assert statuses[64][0] == "refused"
    assert "64 tokens, expected at most 16" in statuses[64][1]
