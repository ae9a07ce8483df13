import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alibi_jax.data.batches import Batches, num_sequences
from alibi_jax.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
TOKENS = np.arange(1001, dtype=np.uint16)  # token i is i: a batch shows where it was cut


@given(st.integers(1, 50), st.integers(1, 300))
def test_sequences_share_one_token_and_use_all_that_fit(length, extra):
    count = num_sequences(np.zeros(length + extra, np.uint16), length)
    assert count * length + 1 <= length + extra < (count + 1) * length + 1


def test_a_stream_shorter_than_one_sequence_is_refused():
    message = r"train_length: got 8 with a training stream of 8 tokens, expected at least 9 tokens\. Give more text"
    for make in (lambda: num_sequences(TOKENS[:8], 8), lambda: Batches(TOKENS[:8], 8, 1, 0)):
        with pytest.raises(DataError, match=message):
            make()
    assert num_sequences(TOKENS[:9], 8) == 1


def test_targets_are_the_inputs_one_token_later():
    inputs, targets = Batches(TOKENS, 10, 4, 0).batch_at(3)
    assert inputs.shape == targets.shape == (4, 10) and inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(np.diff(inputs), 1)


def test_an_epoch_is_a_permutation_and_the_next_another():
    source = Batches(TOKENS, 10, 6, 0)  # 100 sequences: an epoch ends inside a batch
    firsts = np.concatenate([source.batch_at(step)[0][:, 0] for step in range(50)])
    epochs = firsts.reshape(3, 100)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(0, 1000, 10))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not (np.sort(epochs[0]) == epochs[0]).all()


def test_seeds_give_other_orders_and_the_same_seed_the_same():
    firsts = [tuple(Batches(TOKENS, 10, 100, seed).batch_at(0)[0][:, 0]) for seed in (0, 1, 2, 0)]
    assert len(set(firsts)) == 3 and firsts[0] == firsts[3]
    second_epoch = tuple(Batches(TOKENS, 10, 100, 0).batch_at(1)[0][:, 0])
    assert second_epoch not in firsts


@pytest.mark.versions
def test_the_order_of_seed_0_is_the_one_that_runs_were_made_with():
    got = Batches(TOKENS, 10, 8, 0).batch_at(0)[0][:, 0].tolist()
    expected = [960, 770, 310, 790, 90, 700, 280, 830]
    assert got == expected, (
        "Grain's shuffle changed: a run resumed with this version would not see the batches it left off"
    )


@settings(max_examples=20)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 5]), st.integers(0, 2**31), st.integers(0, 2**32 - 1))
def test_hosts_make_the_same_global_batch_together(by_rows, by_columns, step, seed):
    whole, together = Batches(TOKENS, 10, 8, seed).batch_at(step), np.zeros((2, 8, 10), np.int32)
    for rows in np.arange(8).reshape(-1, by_rows).T:  # not neighbours
        for first in range(0, 10, 10 // by_columns):
            columns = slice(first, first + 10 // by_columns)
            part = Batches(TOKENS, 10, 8, seed, rows, columns).batch_at(step)
            assert part[0].shape == (len(rows), 10 // by_columns), "more than a host's shard was read"
            together[:, rows, columns] = part
    np.testing.assert_array_equal(together, whole)


@pytest.mark.parametrize("first_step", [0, 7, 1_000_000])
@pytest.mark.parametrize("prefetch", [1, 2, 5])
@pytest.mark.versions
def test_the_iterator_starts_at_a_step_and_gives_the_same_batches(first_step, prefetch):
    source = Batches(TOKENS, 10, 4, 3, np.arange(2, 4), slice(5, 10))
    stream = source.read_ahead(first_step, prefetch)
    for expected, (step, inputs, targets) in zip(range(first_step, first_step + 12), stream, strict=False):
        assert step == expected
        np.testing.assert_array_equal(inputs, source.batch_at(step)[0])
        np.testing.assert_array_equal(targets, source.batch_at(step)[1])
    stream.close()


def test_resuming_makes_no_earlier_batch_and_reads_ahead(monkeypatch):
    asked, batch_at = [], Batches.batch_at
    monkeypatch.setattr(Batches, "batch_at", lambda self, step: asked.append(step) or batch_at(self, step))
    stream = Batches(TOKENS, 10, 4, 0).read_ahead(500, prefetch=3)
    taken = [step for step, _, _ in itertools.islice(stream, 4)]
    time.sleep(0.5)  # the threads catch up
    stream.close()
    assert taken == [500, 501, 502, 503]
    assert min(asked) == 500 and 503 < max(asked) <= 503 + 3


def test_closing_ends_the_threads():
    before = set(threading.enumerate())
    stream = Batches(TOKENS, 10, 4, 0).read_ahead()
    next(stream)
    started = set(threading.enumerate()) - before
    assert started
    stream.close()
    for thread in started:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.versions
def test_a_program_that_drops_the_iterator_exits():
    program = "import numpy as np; from alibi_jax.data.batches import Batches\n"
    program += "stream = Batches(np.arange(99), 4, 2, 0).read_ahead(); print(next(stream)[0])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0\n" and done.stderr == ""


def test_a_seed_that_cannot_be_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"seed: got -1, expected 0 to 2\^32 - 1"):
        Batches(TOKENS, 10, 8, -1)


def test_a_memory_map_gives_plain_arrays(tmp_path):
    TOKENS.tofile(tmp_path / "train.bin")
    inputs, _ = Batches(np.memmap(tmp_path / "train.bin", "<u2", "r"), 10, 4, 0).batch_at(0)
    assert type(inputs) is np.ndarray
    np.testing.assert_array_equal(inputs, Batches(TOKENS, 10, 4, 0).batch_at(0)[0])
