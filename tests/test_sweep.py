"""Sweeps: every pair kept with its facts, nothing done twice, lengths that cannot be had recorded."""

import dataclasses
import errno
import json
import logging
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax.config import EvaluateConfig, ModelConfig
from alibi_jax.errors import HeldError, ResultsError
from alibi_jax.evaluate import nats as nats_module
from alibi_jax.evaluate import reader as reader_module
from alibi_jax.evaluate import results as results_module
from alibi_jax.evaluate import statistics
from alibi_jax.evaluate import sweep as sweep_module
from alibi_jax.evaluate.memory import Limits
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.records import fields_of
from alibi_jax.evaluate.statistics import longest_useful_length
from alibi_jax.evaluate.sweep import batch_rows, plan, sweep
from alibi_jax.model import TransformerLM
from alibi_jax.run.lock import only_run

STREAM = np.random.default_rng(1).integers(0, 23, 200).astype(np.uint16)
FACTS = {
    "run": "tiny",
    "position": "alibi",
    "train_length": 8,
    "split": "test",
    "checkpoint_step": 3,
    "corpus_fingerprint": "f00d",
}


SHORT = EvaluateConfig(lengths=(8, 16), strides=("L",), far_stride="L/2", batch_tokens=64)


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


def named_in(folder, records):
    """The records as they are read, with their files named from where the program runs."""
    return [dataclasses.replace(record, nats_file=str(folder / record.nats_file)) for record in records]


def losses_of(records):
    """pair -> mean loss and gain."""
    return {r.pair: (r.statistics.get("mean_nats"), r.statistics.get("gain")) for r in records}


def test_plan_puts_the_training_length_first_and_repeats_no_pair():
    pairs = plan(EvaluateConfig(strides=("L", "L/4", "L/4"), far_stride="L/16"), 128)
    assert pairs[:2] == [(128, 128), (128, 8)]
    assert set(pairs) == {(128, 8)} | {(128 * k, 128 * k // d) for k in (1, 2, 4, 8, 16) for d in (1, 4)}
    assert len(pairs) == 11
    assert plan(EvaluateConfig(lengths=(64,), strides=("L",)), 128) == [(64, 64)]
    assert plan(EvaluateConfig(lengths=(128, 256), strides=("8",)), 128) == [(128, 8), (256, 8)]  # no gain to speak of


def test_records_hold_statistics_that_follow_from_the_arrays(tiny, tmp_path):
    records = run(tiny, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert lines == [fields_of(record) for record in records]
    for record in records:
        nats = np.load(tmp_path / record.nats_file).astype(np.float64)
        assert len(nats) == record.num_tokens == 200
        assert record.status == "ok"
        assert record.statistics["perplexity"] == pytest.approx(np.exp(nats.sum() / 200))
        assert record.statistics["bits_per_byte"] == pytest.approx(nats.sum() / np.log(2) / 500)
        assert record.versions["jax"] == jax.__version__
        assert record.corpus_fingerprint == "f00d"
    gains = {record.length: record.statistics["gain"] for record in records if "gain" in record.statistics}
    assert set(gains) == {16, 64}
    losses = {r.length: r.statistics["mean_nats"] for r in records if r.length == r.stride}
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
    assert losses_of(resumed) == losses_of(whole)


def test_a_sweep_compiles_once_for_each_length_whatever_its_strides(tiny, tmp_path, monkeypatch):
    traced = chex.assert_max_traces(nats_module.window_nats.__wrapped__, n=3)
    monkeypatch.setattr(nats_module, "window_nats", jax.jit(traced, static_argnums=0))
    records = run(tiny, tmp_path, EvaluateConfig(lengths=(8, 16, 64), strides=("L", "L/2", "L/4"), batch_tokens=64))
    assert len(records) == 10


def test_gains_come_when_what_they_need_has_come(tiny, tmp_path):
    """Evaluated in two commands, the longer length first, it has the same gain as in one."""
    run(tiny, tmp_path / "two", EvaluateConfig(lengths=(64,), strides=("L",), batch_tokens=64))
    both = EvaluateConfig(lengths=(8, 64), strides=("L",), batch_tokens=64)
    both_ways = [run(tiny, tmp_path / name, both) for name in ("two", "one")]
    gains = [[r.statistics["gain"] for r in records if "gain" in r.statistics] for records in both_ways]
    assert gains[0] == gains[1]
    assert len(gains[0]) == 1
    assert gains[0][0]["far_stride"] == 1
    lines = [json.loads(line) for line in (tmp_path / "two" / "sweep.jsonl").read_text().splitlines()]
    assert [line["gain"] for line in lines if "gain" in line] == gains[0], "for those who have no file of losses"


def test_lines_lack_a_gain_no_longer_once_a_killed_sweep_is_run_again(tiny, tmp_path):
    records = run(tiny, tmp_path, SHORT)
    path = tmp_path / "sweep.jsonl"
    whole = path.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert lines[2].pop("gain")
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run(tiny, tmp_path, SHORT) == records
    assert path.read_bytes() == whole


def test_losses_that_are_damaged_but_not_asked_for_do_not_end_a_sweep(tiny, tmp_path):
    records = run(tiny, tmp_path, SHORT)
    path = tmp_path / "nats" / "16-16.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    only_8 = dataclasses.replace(SHORT, lengths=(8,))
    assert statuses(run(tiny, tmp_path, only_8))[16, 16] == "ok"
    with pytest.raises(ResultsError, match=r"16-16\.npy: got no array.*again with length 16 and stride 16 among those"):
        read_records([tmp_path])
    path.unlink()
    assert read_records([tmp_path]) == named_in(tmp_path, records)
    run(tiny, tmp_path, SHORT)
    assert path.read_bytes() == whole and read_records([tmp_path])


def test_other_hosts_than_the_first_score_alike_read_no_losses_and_write_nothing(tiny, tmp_path, monkeypatch):
    first = run(tiny, tmp_path / "first", SHORT)
    monkeypatch.setattr(results_module, "is_first", lambda: False)
    monkeypatch.setattr(reader_module, "load_nats", lambda path, _: pytest.fail(f"read {path}"))
    other = run(tiny, tmp_path / "other", SHORT)
    assert [r.statistics["mean_nats"] for r in other] == [r.statistics["mean_nats"] for r in first]
    assert not [path for path in (tmp_path / "other").rglob("*") if path.suffix in (".jsonl", ".npy")]
    before = (tmp_path / "first" / "sweep.jsonl").read_bytes()
    assert statuses(run(tiny, tmp_path / "first", dataclasses.replace(SHORT, lengths=(8, 16, 32))))[32, 32] == "ok"
    assert (tmp_path / "first" / "sweep.jsonl").read_bytes() == before


def test_a_statistic_may_return_a_number_of_numpy(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(statistics.STATISTICS, "median", lambda scored: np.median(scored.nats))
    monkeypatch.setitem(
        statistics.STATISTICS, "above", lambda scored: np.count_nonzero(scored.nats > 3, keepdims=True)[0]
    )
    records = run(tiny, tmp_path, dataclasses.replace(SHORT, lengths=(8,)))
    lines = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    for name in ("median", "above"):
        assert isinstance(records[0].statistics[name], np.generic)
        assert [line[name] for line in lines] == [record.statistics[name] for record in records]


def test_out_of_memory_is_tried_again_with_more(tmp_path):
    model, config = make(attention="reference"), {"lengths": (8, 512), "strides": ("L",), "batch_tokens": 64}
    for limit, status in ((0.001, "out of memory"), (1.0, "ok")):
        evaluate = EvaluateConfig(**config, memory_limit_gib=limit)
        records = run(model, tmp_path, evaluate, stream=np.resize(STREAM, 512))
        assert {r.length: r.status for r in records}[512] == status
    assert len(records) == len({(r.length, r.stride) for r in records})


def test_a_folder_of_another_evaluation_is_refused(tiny, tmp_path):
    run(tiny, tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint_step 3, now 4.*--out"):
        run(tiny, tmp_path, facts=FACTS | {"checkpoint_step": 4})
    with pytest.raises(ValueError, match=r"num_tokens 200, now 100"):
        run(tiny, tmp_path, stream=STREAM[:100])


def test_lengths_past_memory_are_recorded_and_the_sweep_goes_on(tmp_path):
    model = make(attention="reference")
    limit = EvaluateConfig(lengths=(8, 4096, 16), strides=("L",), batch_tokens=64, memory_limit_gib=0.05)
    by_length = {(r.length, r.stride): r for r in run(model, tmp_path, limit, stream=np.resize(STREAM, 4096))}
    assert by_length[(4096, 4096)].status == "out of memory"
    assert "GiB needed" in by_length[(4096, 4096)].detail
    assert by_length[(16, 16)].status == "ok"


def test_an_allocation_that_fails_is_recorded_and_the_sweep_goes_on(tiny, tmp_path, monkeypatch):
    real = sweep_module.token_nats

    def failing(*args, **options):
        if options["length"] == 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return real(*args, **options)

    monkeypatch.setattr(sweep_module, "token_nats", failing)
    statuses = {r.length: r.status for r in run(tiny, tmp_path)}
    assert statuses == {8: "ok", 16: "out of memory", 64: "ok"}


def test_other_runtime_errors_are_not_taken_for_memory(tiny, tmp_path, monkeypatch):
    def failing(*args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(sweep_module, "token_nats", failing)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(tiny, tmp_path)


def test_lengths_a_method_refuses_are_recorded(tmp_path):
    model = make(position="learned", learned_length=16)
    statuses = {r.length: (r.status, r.detail) for r in run(model, tmp_path, facts=FACTS | {"position": "learned"})}
    assert statuses[16][0] == "ok"
    assert statuses[64][0] == "refused"
    assert "64 tokens, expected at most 16" in statuses[64][1]


def test_a_length_of_which_the_text_has_no_full_window_is_refused(tiny, tmp_path):
    """Its losses would be those of shorter inputs: the same in every longer column."""
    config = EvaluateConfig(lengths=(8, 40, 41, 64, 1024, 10**9), strides=("L", "L/4"), batch_tokens=64)
    records = run(tiny, tmp_path, config, stream=STREAM[:40])
    assert {pair for pair, status in statuses(records).items() if status == "ok"} == {
        *((8, 8), (8, 2), (8, 1)),
        *((40, 40), (40, 10)),
    }
    refused = {(r.length, r.stride): r for r in records if r.status == "refused"}
    assert len(refused) == 8 and not any(r.statistics or r.nats_file for r in refused.values())
    assert "40 tokens of text" in refused[64, 16].detail and "needs 64" in refused[64, 16].detail
    losses = {r.length: r.statistics["mean_nats"] for r in records if r.status == "ok"}
    assert longest_useful_length(losses, 8) <= 40
    assert run(tiny, tmp_path, config, stream=STREAM[:40]) == records


def test_a_stride_that_does_not_divide_the_length_needs_the_window_after_it(tiny, tmp_path):
    """At length 16 and stride 7 windows end after 7, 14 and 21 tokens: the third is the first that is full."""
    config = EvaluateConfig(lengths=(16,), strides=("7",), batch_tokens=64)
    assert statuses(run(tiny, tmp_path / "20", config, stream=STREAM[:20])) == {(16, 7): "refused"}
    assert statuses(run(tiny, tmp_path / "21", config, stream=STREAM[:21])) == {(16, 7): "ok"}


def test_default_lengths_past_the_text_are_refused(tiny, tmp_path):
    records = run(tiny, tmp_path, EvaluateConfig(strides=("L",), batch_tokens=64), stream=STREAM[:64])
    assert statuses(records)[64, 64] == "ok" and statuses(records)[128, 128] == "refused"


def test_a_text_of_one_token_is_refused_before_anything_is_written(tiny, tmp_path):
    for size in (0, 1):
        with pytest.raises(ResultsError, match=f"got {size} tokens to score, expected 2 or more"):
            run(tiny, tmp_path / "out", stream=STREAM[:size])
    assert not (tmp_path / "out").exists()
    assert statuses(run(tiny, tmp_path / "out", stream=STREAM[:2])) == dict.fromkeys(
        plan(EvaluateConfig(lengths=(8, 16, 64)), 8), "refused"
    )


def test_sizes_are_counted_before_anything_is_allocated_or_compiled(tmp_path, monkeypatch):
    model = make(attention="reference")
    monkeypatch.setattr(sweep_module, "memory_needed", lambda *_: pytest.fail("compiled"))
    for length, rows, limits, what in (
        (2**30, 1, Limits(2.0**33, 2.0**33), "on the host"),
        (2**30, 1, Limits(2.0**33, math.inf), "at least"),
        (10**7, 1, Limits(2.0**40, math.inf), "at least"),  # its scores
        (8, 10**12, Limits(2.0**33, 2.0**33), "on the host"),
    ):
        needed, reason = sweep_module._memory(*model, rows, length, limits)
        assert what in reason and f"for {rows} x {length} tokens" in reason and needed > 2**33


def test_more_tokens_of_a_batch_than_the_text_has_make_no_more_windows(tiny, tmp_path):
    assert batch_rows(8192, 128, 128, 300) == 64  # an ordinary batch is as it was asked for
    assert batch_rows(10**12, 1024, 1024, 10_000_000) == 9766
    assert batch_rows(10**12, 1024, 256, 10_000_000) == 39063
    assert batch_rows(10**12, 1024, 1024, 300) == 1024  # a million tokens
    assert batch_rows(10**12, 1024, 1, 10**9) == 2**21 - 1  # places in a batch are int32
    assert batch_rows(1, 2**31 - 1, 1, 10) == 1
    config = EvaluateConfig(lengths=(8,), strides=("L",), batch_tokens=2**31 - 1, memory_limit_gib=0.01)
    assert statuses(run(tiny, tmp_path, config)) == {(8, 8): "out of memory", (8, 1): "out of memory"}


def statuses(records):
    return {(r.length, r.stride): r.status for r in records}


def scoring(monkeypatch, scores):
    """Every length is scored as scores(length)."""
    monkeypatch.setattr(sweep_module, "token_nats", lambda *_, **options: scores(options["length"]))


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_a_perplexity_past_the_largest_number_is_infinite_and_kept(tiny, tmp_path, monkeypatch):
    scoring(monkeypatch, lambda length: np.full(200, 33_798.0 if length == 16 else 2.0, np.float32))
    records = run(tiny, tmp_path, SHORT)
    by_length = {r.length: r for r in records}
    assert by_length[16].statistics["perplexity"] == math.inf and by_length[16].status == "ok"
    assert by_length[16].statistics["mean_nats"] == 33_798.0 and by_length[16].statistics["gain"]["total"] == -33_796.0
    for line in (tmp_path / "sweep.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=no_constant)
    assert read_records([tmp_path]) == named_in(tmp_path, records)
    assert run(tiny, tmp_path, SHORT) == records


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_length_with_a_loss_that_is_no_number_is_recorded_and_the_sweep_goes_on(tiny, tmp_path, monkeypatch, bad):
    one = np.where(np.arange(200) == 7, bad, 2.0).astype(np.float32)
    scoring(monkeypatch, lambda length: one if length == 8 else np.full(200, 2.0, np.float32))
    records = run(tiny, tmp_path, SHORT)
    assert statuses(records) == {(8, 8): "not finite", (8, 4): "not finite", (16, 16): "ok"}
    assert records[0].detail == "1 of 200 losses, the first that of token 7"
    assert run(tiny, tmp_path, SHORT) == records


def test_a_host_that_cannot_allocate_is_recorded(tiny, tmp_path, monkeypatch):
    def failing(_):
        raise MemoryError("Unable to allocate 7 PiB")

    scoring(monkeypatch, failing)
    assert set(statuses(run(tiny, tmp_path, SHORT)).values()) == {"out of memory"}


def test_lengths_that_are_not_asked_for_stay_out_of_memory(tiny, tmp_path, monkeypatch):
    """And what a killed evaluation left half-written is removed."""
    monkeypatch.setattr(sweep_module, "least_memory", lambda _, rows, length: 2**50 if length == 16 else 0)
    first = run(tiny, tmp_path, SHORT)
    assert statuses(first)[16, 16] == "out of memory"
    leftovers = [tmp_path / ".sweep.jsonl.0a.partial", tmp_path / "nats" / ".8-8.npy.0a.partial"]
    for path in leftovers:
        path.write_text("half")
    longer = EvaluateConfig(lengths=(64,), strides=("L",), batch_tokens=64)
    assert run(tiny, tmp_path, longer)[:3] == first
    assert not any(path.exists() for path in leftovers)


def test_two_evaluations_at_once_in_one_folder_are_refused(tiny, tmp_path):
    with (
        only_run(tmp_path, "out", "evaluation"),
        pytest.raises(HeldError, match="another evaluation is at work.*--out"),
    ):
        run(tiny, tmp_path, SHORT)
    assert not (tmp_path / "sweep.jsonl").exists()
    assert len(run(tiny, tmp_path, SHORT)) == 3


def other_nats(path):
    """Ways in which the array of 200 losses at `path` is not what was saved."""
    array = np.load(path)
    yield "missing", None
    yield "empty", b""
    yield "cut", path.read_bytes()[:-7]
    yield "no array", b"x" * 1000
    yield "huge", path.read_bytes().replace(b"(200,)", b"(2000000000000000,)")
    arrays = {
        "shorter": array[:-1],
        "matrix": array[:, None],
        "double": array.astype(np.float64),
        "objects": array.astype(object),
        "NaN": np.where(np.arange(200) == 5, np.float32(np.nan), array),
        "altered": array + np.float32(0.01),
        "in another order": array[::-1],
    }
    for name, other in arrays.items():
        np.save(path, other, allow_pickle=True)
        yield name, path.read_bytes()


def test_a_damaged_array_is_scored_again_and_that_is_said_once(tiny, tmp_path, caplog):
    records = run(tiny, tmp_path, SHORT)
    path = tmp_path / "nats" / "16-16.npy"
    whole, damages = path.read_bytes(), list(other_nats(path))
    for name, content in damages:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        caplog.clear()
        again = run(tiny, tmp_path, SHORT)
        assert path.read_bytes() == whole, name
        (message,) = (record.getMessage() for record in caplog.records)
        assert "16-16.npy" in message and "Length 16, stride 16 is scored again" in message, name
        assert losses_of(again) == losses_of(records), name


def test_a_record_that_is_not_asked_for_is_kept_without_its_array(tiny, tmp_path):
    records = run(tiny, tmp_path, SHORT)
    (tmp_path / "nats" / "16-16.npy").unlink()
    longer = EvaluateConfig(lengths=(64,), strides=("L",), far_stride="L/2", batch_tokens=64)
    again = run(tiny, tmp_path, longer)
    assert again[:3] == records and again[3].length == 64
    assert "gain" in again[3].statistics  # from the arrays of the training length, which were not asked for


LINES = {
    "cut": lambda lines: [*lines[:2], lines[2][:-40]],
    "cut to a number": lambda lines: [*lines[:2], b"1"],
    "broken in the middle": lambda lines: [lines[0], b"{" + lines[1], lines[2], b""],
    "null": lambda lines: [b"null", *lines, b""],
    "binary": lambda _: [bytes(range(256)) * 20],
    "nested": lambda lines: [*lines, b"[" * 100_000, b""],
    "twice": lambda lines: [*lines, *lines, b""],
    "another type": lambda lines: [lines[0].replace(b'"length": 8', b'"length": "8"'), *lines[1:], b""],
    "another perplexity": lambda lines: [*lines[:2], lines[2].replace(b'"perplexity": ', b'"perplexity": 1'), b""],
}


@pytest.mark.parametrize("case", LINES)
def test_what_cannot_be_read_is_scored_again_and_that_is_said_once(tiny, tmp_path, caplog, case):
    records = run(tiny, tmp_path, SHORT)
    path = tmp_path / "sweep.jsonl"
    damaged = b"\n".join(LINES[case](path.read_bytes().splitlines()))
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        again = run(tiny, tmp_path, SHORT)
    (message,) = (record.getMessage() for record in caplog.records)
    assert "sweep.jsonl: lines that cannot be used: " in message
    assert losses_of(again) == losses_of(records)
    assert (tmp_path / "sweep.jsonl.damaged").read_bytes() == damaged
    caplog.clear()
    assert run(tiny, tmp_path, SHORT) == again and not caplog.records


def test_a_record_of_an_older_version_past_its_text_counts_as_refused(tiny, tmp_path):
    run(tiny, tmp_path, SHORT)
    path = tmp_path / "sweep.jsonl"
    path.write_text(path.read_text().replace("16", "512"))
    (tmp_path / "nats" / "16-16.npy").rename(tmp_path / "nats" / "512-512.npy")
    config = EvaluateConfig(lengths=(8, 512), strides=("L",), far_stride="L/2", batch_tokens=64)
    records = run(tiny, tmp_path, config)
    assert statuses(records)[512, 512] == "refused"
    assert not records[-1].statistics and records[-1].nats_file is None and records[-1].nats_crc32 is None


def test_results_without_checksums_are_read(tiny, tmp_path):
    """As older versions wrote them."""
    records = run(tiny, tmp_path, SHORT)
    path = tmp_path / "sweep.jsonl"
    path.write_text(re.sub(r'"nats_crc32": \d+, ', "", path.read_text()))
    again = run(tiny, tmp_path, SHORT)
    assert again == [dataclasses.replace(record, nats_crc32=None) for record in records]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("what", ["save_array", "write_records"])
def test_a_disk_that_fails_is_named_and_nothing_saved_is_lost(tiny, tmp_path, monkeypatch, number, what):
    config = EvaluateConfig(lengths=(8,), strides=("L",), far_stride="L", batch_tokens=64)
    first = run(tiny, tmp_path, config)

    def failing(*_):
        raise OSError(number, "no luck")

    with monkeypatch.context() as patch:
        patch.setattr(results_module, what, failing)
        with pytest.raises(OSError, match=f"results: could not read or write in {tmp_path}: no luck.*--out"):
            run(tiny, tmp_path, SHORT)
    assert read_records([tmp_path]) == named_in(tmp_path, first)
    assert run(tiny, tmp_path, SHORT)[0] == first[0]


def test_a_folder_of_results_that_is_a_file_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="out: got .*cannot be written.*--out"):
            run(tiny, folder, SHORT)
