"""The check that the ids of a token stream are in the vocabulary, in pieces: a stream may be a map of a large file."""

import logging

import numpy as np

from alibi_jax.errors import DataError

log = logging.getLogger(__name__)

PIECE = 2**22  # tokens read at once
PIECES = 64  # of a stream that is only sampled: 2^28 tokens, about a second


def check_ids(name: str, stream: np.ndarray, vocab_size: int | None, *, sampled: bool = False) -> None:
    """Raises DataError where `stream` (`name` in the message) is no row of integers, or one is outside 0 ... vocab_size - 1.

    vocab_size None: only negative ids are refused. sampled: of a stream of more than PIECES pieces only that many are read,
    evenly spread, the first and the last among them; the log says how much that is.
    """
    if stream.ndim != 1 or not np.issubdtype(stream.dtype, np.integer):
        raise DataError(
            f"{name}: got {stream.dtype} of shape {stream.shape}, expected one row of integers, the tokens' ids. Tokenize the "
            "text."
        )
    count = -(-len(stream) // PIECE)
    pieces = range(count)
    if sampled and count > PIECES:
        pieces = np.linspace(0, count - 1, PIECES).astype(int).tolist()
        log.info("%s: checked the ids of %d of %d tokens", name, PIECES * PIECE, len(stream))
    for piece in pieces:
        _check_piece(name, np.asarray(stream[piece * PIECE : (piece + 1) * PIECE]), piece * PIECE, vocab_size)


def _check_piece(name: str, ids: np.ndarray, first: int, vocab_size: int | None) -> None:
    low = int(ids.min())
    high = int(ids.max())
    if low >= 0 and (vocab_size is None or high < vocab_size):
        return
    wrong = low if low < 0 else high
    expected = "ids from 0 on" if vocab_size is None else f"ids from 0 to {vocab_size - 1:,}, the vocabulary"
    raise DataError(
        f"{name}: got token {wrong:,} at index {first + int((ids == wrong).argmax()):,}, expected {expected}. "
        "Tokenize the text with the tokenizer that the model was trained with."
    )
