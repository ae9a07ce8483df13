"""Statistics against definitions written out, closed forms and simulation."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alibi_jax.evaluate import statistics
from alibi_jax.evaluate.records import record_of

LOSSES = st.lists(st.floats(0, 20, width=32), min_size=2, max_size=200)


def random_nats(n, seed=0):
    return np.random.default_rng(seed).gamma(2.0, 1.0, n).astype(np.float32)


def windows(n, length, stride):
    """(target, inputs it sees) by walking the windows of the protocol one by one."""
    for window in range(-(-n // stride)):
        start = max(0, (window + 1) * stride - length)
        for target in range(window * stride, min((window + 1) * stride, n)):
            yield target, target - start + 1


@pytest.mark.parametrize("vocabulary", [2, 256, 267_744])
def test_uniform_guessing_has_the_vocabulary_as_perplexity(vocabulary):
    nats = np.full(1001, math.log(vocabulary), np.float32)
    assert statistics.perplexity(nats) == pytest.approx(vocabulary, rel=1e-5)
    assert statistics.mean_nats(nats) == pytest.approx(math.log(vocabulary), rel=1e-6)


def test_uniform_bytes_cost_eight_bits_however_they_are_cut_into_tokens():
    assert statistics.bits_per_byte(np.full(10, math.log(256)), 10) == pytest.approx(8)
    assert statistics.bits_per_byte(np.full(10, 2 * math.log(256)), 20) == pytest.approx(8)


def test_perplexity_weights_tokens_not_windows():
    nats = np.array([1.0, 1.0, 1.0, 5.0])  # a window of three tokens and one of one
    assert statistics.perplexity(nats) == pytest.approx(math.exp(2.0))


def test_sums_are_exact_to_float64_on_long_streams():
    assert statistics.mean_nats(np.full(3_000_000, 0.1, np.float32)) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_standard_error_of_independent_tokens_is_the_textbook_one():
    nats = random_nats(200_000)
    expected = math.sqrt(2.0 / 200_000)  # a gamma(2) has variance 2
    assert statistics.standard_error(nats, block=1) == pytest.approx(expected, rel=0.02)
    assert statistics.standard_error(nats, block=100) == pytest.approx(expected, rel=0.1)


def test_standard_error_of_dependent_tokens_is_the_spread_between_streams():
    streams, n, keep = 400, 6_400, 0.8
    noise = np.random.default_rng(1).normal(size=(streams, n))
    values = np.zeros((streams, n))
    for t in range(1, n):
        values[:, t] = keep * values[:, t - 1] + noise[:, t]
    spread = values.mean(axis=1).std()
    estimated = math.sqrt(np.mean([statistics.standard_error(stream) ** 2 for stream in values]))
    assert estimated == pytest.approx(spread, rel=0.15)
    naive = math.sqrt(np.mean([statistics.standard_error(stream, block=1) ** 2 for stream in values]))
    assert naive < 0.5 * spread


def test_standard_error_leaves_the_partial_block_out():
    nats = random_nats(120)
    blocks = nats[:100].astype(np.float64).reshape(4, 25).mean(axis=1)
    assert statistics.standard_error(np.append(nats[:100], [1e6] * 20), block=25) == pytest.approx(
        blocks.std(ddof=1) / 2
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 120), st.integers(1, 40), st.data())
def test_positions_are_those_of_the_windows_walked_one_by_one(n, length, data):
    stride = data.draw(st.integers(1, length))
    expected = dict(windows(n, length, stride))
    assert statistics.positions(n, length, stride).tolist() == [expected[t] for t in range(n)]
    assert statistics.positions(n, length, stride).dtype == np.int32


def test_position_loss_averages_the_shorter_window_too():
    losses = statistics.position_loss(np.array([1, 2, 3, 5, 8.0]), 3)
    np.testing.assert_allclose(losses, [(1 + 5) / 2, (2 + 8) / 2, 3])


def loss_by_position(model, n, length, stride):
    return np.array([model(inputs) for _, inputs in sorted(windows(n, length, stride))])


@pytest.mark.parametrize("far", [0.3, -0.7])
def test_split_gain_of_a_known_loss(far):
    """Loss 2 + 1/p up to p = 8, and `far` less beyond: the split can be written down."""
    n, train_length, length = 960, 8, 32
    flat = 2 + 1 / train_length

    def model(p):
        return 2 + 1 / p if p <= train_length else flat - far

    arrays = [loss_by_position(model, n, *pair) for pair in ((8, 8), (32, 32), (8, 1))]
    gain = statistics.split_gain(*arrays, train_length, length)
    early = sum(1 / p for p in range(1, 9)) / 8 - (sum(1 / p for p in range(1, 9)) + 24 / 8) / 32
    assert gain.far_context == pytest.approx(far * 24 / 32)
    assert gain.early_tokens == pytest.approx(early)
    assert gain.total == pytest.approx(early + far * 24 / 32)


def test_split_gain_is_exact_however_hard_each_target_is():
    """Pairing: a difficulty added to each target, the same in all three evaluations, changes nothing."""
    n, hard = 960, 50 * random_nats(960)
    arrays = [loss_by_position(lambda p: 1 / p, n, *pair) for pair in ((8, 8), (32, 32), (8, 1))]
    plain = statistics.split_gain(*arrays, 8, 32)
    harder = statistics.split_gain(*(array + hard for array in arrays), 8, 32)
    assert harder.far_context == pytest.approx(plain.far_context)
    assert harder.total == pytest.approx(plain.total)
    assert harder.far_context_error == pytest.approx(plain.far_context_error)
    assert plain.far_context_error > 0


@settings(deadline=None, max_examples=60)
@given(LOSSES, st.integers(1, 9), st.integers(1, 30), st.randoms())
def test_the_two_parts_sum_to_the_total(values, train_length, more, random):
    arrays = [random.sample(values, len(values)) for _ in range(3)]
    gain = statistics.split_gain(*arrays, train_length, train_length + more)
    train, long, full = arrays
    past = [full[t] - long[t] for t in range(len(values)) if t % (train_length + more) + 1 > train_length]
    assert gain.far_context == pytest.approx(sum(past) / len(values), abs=1e-9)
    assert gain.far_context + gain.early_tokens == pytest.approx(gain.total, abs=1e-9)
    assert gain.total == pytest.approx(np.mean(train) - np.mean(long), abs=1e-9)


def scored_at(length, stride, pairs):
    """What a statistic is computed from, of a run trained at 8 tokens and scored at these pairs."""
    facts = {"run": "a", "position": "alibi", "train_length": 8, "length": length, "stride": stride, "num_tokens": 960}
    facts |= {"status": "ok", "detail": "", "split": "test", "checkpoint_step": 1, "corpus_fingerprint": "f00d"}
    run = {pair: random_nats(960, seed) for seed, pair in enumerate(pairs)}
    return statistics.Scored(record_of(facts), run[length, stride], run)


def test_a_gain_takes_the_finest_stride_at_the_training_length():
    scored = scored_at(32, 32, [(8, 8), (8, 4), (8, 2), (32, 32), (32, 8), (16, 1)])
    gain = statistics.gain(scored)
    expected = statistics.split_gain(scored.run[8, 8], scored.nats, scored.run[8, 2], 8, 32)
    assert gain == {**dataclasses.asdict(expected), "far_stride": 2}


@pytest.mark.parametrize(
    "pairs", [[(8, 8)], [(8, 4)], []], ids=["no sliding", "no non-overlapping", "no training length"]
)
def test_there_is_no_gain_without_both_protocols_at_the_training_length(pairs):
    assert statistics.gain(scored_at(32, 32, [*pairs, (32, 32)])) is None


@pytest.mark.parametrize("pair", [(32, 8), (8, 8), (4, 4)], ids=["sliding", "training length", "shorter"])
def test_only_longer_non_overlapping_windows_have_a_gain(pair):
    assert statistics.gain(scored_at(*pair, dict.fromkeys([(8, 8), (8, 2), pair]))) is None


def test_longest_useful_length_allows_a_bump_but_no_rise_above_the_training_length():
    assert statistics.longest_useful_length({64: 3.0, 128: 2.0, 256: 2.1, 512: 2.0, 1024: 2.01}, 128) == 512
    assert statistics.longest_useful_length({64: 1.0, 128: 2.0, 256: 2.1}, 128) == 128


def test_longest_useful_length_needs_the_training_length():
    with pytest.raises(ValueError, match="expected the training length, 128"):
        statistics.longest_useful_length({256: 2.0}, 128)


REFUSALS = {
    "empty": (lambda: statistics.mean_nats([]), "nats: got shape"),
    "matrix": (lambda: statistics.perplexity(np.ones((2, 2))), "nats: got shape"),
    "NaN": (lambda: statistics.perplexity([1, np.nan, 2, np.inf]), "got 2 of 4 .* first at index 1"),
    "no bytes": (lambda: statistics.bits_per_byte([1.0], 0), "num_bytes: got 0"),
    "one block": (lambda: statistics.standard_error(np.ones(10), block=6), "block: got 6 for 10"),
    "no block": (lambda: statistics.standard_error(np.ones(10), block=0), "block: got 0"),
    "long stride": (lambda: statistics.positions(10, 4, 5), "stride: got 5 at length 4"),
    "no window": (lambda: statistics.position_loss([1, 2], 3), "length: got 3 for 2"),
    "no gain": (lambda: statistics.split_gain([1, 2], [1, 2], [1, 2], 8, 8), "length: got 8, expected 9"),
    "gain of another": (lambda: statistics.split_gain([1, 2], [1, 2], [1], 1, 2), "nats_full_context: got 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_with_what_it_got(case):
    call, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        call()
