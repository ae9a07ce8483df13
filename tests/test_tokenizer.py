import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alibi_jax.config import DataConfig
from alibi_jax.data import document as document_module
from alibi_jax.data.document import text_document
from alibi_jax.data.tokenizer import TOKENIZERS, load_tokenizer, make_tokenizer
from alibi_jax.data.tokenizer.words import WordTokenizer
from alibi_jax.errors import DataError

TEXTS = ["the cat sat on the mat\n" * 40, "café — naïve <|endoftext|>\n\n  the end"]


def make(name, texts=TEXTS):
    documents = [text_document("text", text) for text in texts]
    size = {"bpe_vocab_size": 280} if name == "bpe" else {}
    return make_tokenizer(DataConfig(tokenizer=name, **size), documents)


BPE = make("bpe")
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts)
def test_bytes_are_the_utf8_of_the_text_and_a_newline(text):
    tokens = make("bytes").encode(text)
    assert bytes(tokens.tolist()) == (text if text.endswith("\n") else text + "\n").encode()
    assert make("bytes").decode(tokens) == text + "\n" * (not text.endswith("\n"))
    assert make("bytes").token_bytes[tokens].sum() == len(tokens)


@given(texts | st.lists(st.sampled_from(["<|endoftext|>", "the", " ", "\n", "é"])).map("".join))
def test_bpe_comes_back_exactly_and_counts_its_bytes(text):
    tokens = BPE.encode(text)
    assert BPE.decode(tokens) == text
    assert BPE.token_bytes[tokens].sum() == len(text.encode())
    assert tokens[-1] == BPE.first_input and BPE.first_input not in tokens[:-1]


@given(st.data())
def test_bpe_counts_the_bytes_of_any_stretch(data):
    tokens = BPE.encode("".join(TEXTS))
    cut = data.draw(st.integers(0, len(tokens)))
    assert sum(BPE.token_bytes[tokens[:cut]]) + sum(BPE.token_bytes[tokens[cut:]]) == len("".join(TEXTS).encode())


def test_the_letters_of_the_special_token_stay_text_when_loaded(tmp_path):
    BPE.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(loaded.encode("a <|endoftext|>"), BPE.encode("a <|endoftext|>"))
    assert (loaded.encode("a <|endoftext|>") == loaded.first_input).sum() == 1


def test_bpe_training_gives_the_same_file_twice(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make("bpe").save(tmp_path / name)
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


def test_a_long_document_in_pieces_comes_back_exactly(monkeypatch):
    monkeypatch.setattr(document_module, "PIECE_CHARACTERS", 7)
    assert BPE.decode(BPE.encode(TEXTS[1])) == TEXTS[1]
    assert (BPE.encode(TEXTS[1]) == BPE.first_input).sum() == 1


def test_a_text_too_short_for_the_bpe_vocabulary_is_refused():
    with pytest.raises(DataError, match=r"got .* for 257 tokens, expected 280\. Lower data.bpe_vocab_size"):
        make("bpe", ["a"])


def test_words_are_those_of_each_line_with_an_end_of_line():
    words = make("words", ["b a  a\t\n\nc b a"])
    assert words.types == ["<eos>", "a", "b", "c", "<unk>"]
    assert [words.types[i] for i in words.encode("a z\n\n b")] == ["a", "<unk>", "<eos>", "<eos>", "b", "<eos>"]
    assert words.types[words.first_input] == "<eos>"


def test_an_unknown_word_is_an_ordinary_type_with_a_place_by_its_count():
    assert make("words", ["<unk> <unk> <unk> b a\n"]).types == ["<unk>", "<eos>", "a", "b"]


@given(st.text(st.sampled_from(["a", "b", " ", "\n", "\r", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"])))
def test_words_split_where_the_reference_does(text):
    lines = text.split("\n")[: -1 if text.endswith("\n") or not text else None]
    expected = [word for line in lines for word in [*re.sub(r"\s+", " ", line).strip().split(), "<eos>"]]
    words = WordTokenizer(["<eos>", "<unk>", *sorted(set(expected) - {"<eos>"})])
    assert [words.types[i] for i in words.encode(text)] == expected


@given(st.lists(st.lists(st.sampled_from(["=", "the", "café", "<unk>"]), max_size=5)))
def test_text_in_wikitext_layout_comes_back_exactly_and_counts_its_bytes(lines):
    text = "".join("".join(f" {word}" for word in line) + " \n" for line in lines)
    words = WordTokenizer(["<eos>", "<unk>", "the", "café", "="])
    assert words.decode(words.encode(text)) == text
    assert words.token_bytes[words.encode(text)].sum() == len(text.encode())


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "file"])  # tests/test_tokenizer_file.py
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    built = make(name)
    built.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.name, loaded.vocab_size, loaded.first_input) == (name, built.vocab_size, built.first_input)
    np.testing.assert_array_equal(loaded.token_bytes, built.token_bytes)
    assert loaded.token_bytes.shape == (loaded.vocab_size,) and loaded.token_bytes.dtype == np.int32
    for text in TEXTS:
        assert built.encode(text).dtype == np.int32
        np.testing.assert_array_equal(loaded.encode(text), built.encode(text))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b'{"version"', r"tokenizer\.json: got a file that cannot be read .* saved bpe tokenizer"),
        ("vocabulary.txt", b"a\n", r"vocabulary\.txt: got 1 types without <eos> or <unk>, expected both"),
        ("vocabulary.txt", b"\xff\n", r"vocabulary\.txt: got a file that cannot be read"),
        ("other.txt", b"", r"got no tokenizer, expected one of bytes\.txt, vocabulary\.txt, tokenizer\.json, foreign"),
    ],
)
def test_a_broken_tokenizer_is_refused(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=f"{message}.* Prepare the corpus again with --force"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif("ALIBI_JAX_TEXT" not in os.environ, reason="set ALIBI_JAX_TEXT to a folder with wikitext-2/")
def test_wikitext_2_comes_back_exactly():
    """Of its validation text; the published counts of all are in test_wikitext.py."""
    text = (Path(os.environ.get("ALIBI_JAX_TEXT", "")) / "wikitext-2/wiki.valid.tokens").read_bytes().decode()
    words = make("words", [text])
    tokens = words.encode(text)
    assert len(tokens) == 217_646
    assert (np.diff(np.bincount(tokens, minlength=words.vocab_size)) <= 0).all(), "ids by count"
    assert words.decode(tokens) == text
    assert words.token_bytes[tokens].sum() == len(text.encode())
