"""Ids outside the vocabulary are seen wherever they stand, in streams of any size."""

import numpy as np
import pytest

from alibi_jax.data import vocabulary
from alibi_jax.data.vocabulary import check_ids
from alibi_jax.errors import DataError


def stream(**changes):
    ids = np.arange(100, dtype=np.int32) % 50
    for index, value in changes.items():
        ids[int(index[1:])] = value
    return ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (stream(_0=50), "got token 50 at index 0, expected ids from 0 to 49"),
        (stream(_61=300), "got token 300 at index 61"),
        (stream(_99=50), "got token 50 at index 99"),
        (stream(_33=-1), "got token -1 at index 33"),
        (stream().astype(np.float32), "got float32"),
        (stream() > 10, "got bool"),
        (stream().reshape(2, 50), r"got int32 of shape \(2, 50\)"),
    ],
    ids=["first", "middle", "last", "negative", "float", "bool", "two dimensions"],
)
def test_what_is_no_stream_of_the_vocabulary_is_refused(ids, message, monkeypatch):
    monkeypatch.setattr(vocabulary, "PIECE", 8)
    with pytest.raises(DataError, match=f"stream: {message}"):
        check_ids("stream", ids, 50)
    check_ids("stream", stream(), 50)


def test_without_a_vocabulary_only_negative_ids_are_refused():
    check_ids("stream", stream(_5=10**9), None)
    with pytest.raises(DataError, match="expected ids from 0 on"):
        check_ids("stream", stream(_5=-1), None)


def test_of_a_long_stream_evenly_spread_pieces_are_read_and_it_is_said(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(vocabulary, "PIECE", 8)
    monkeypatch.setattr(vocabulary, "PIECES", 3)
    monkeypatch.setattr(vocabulary.log.parent, "propagate", True)
    caplog.set_level("INFO")
    stream(_50=300).astype("<u2").tofile(tmp_path / "ids.bin")
    ids = np.memmap(tmp_path / "ids.bin", "<u2", mode="r")
    with pytest.raises(DataError, match="got token 300 at index 50"):
        check_ids("stream", ids, 50, sampled=True)  # pieces 0, 6 and 12 of 13
    check_ids("stream", stream(_60=300), 50, sampled=True)
    assert "stream: checked the ids of 24 of 100 tokens" in caplog.text
    with pytest.raises(DataError, match="got token 300 at index 60"):
        check_ids("stream", stream(_60=300), 50)
