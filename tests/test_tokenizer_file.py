"""Somebody's tokenizer.json, or vocabulary.txt, as a tokenizer of this project."""

import dataclasses
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from alibi_jax.config import ConfigError, DataConfig
from alibi_jax.data import document as document_module
from alibi_jax.data.corpus import open_corpus, prepare
from alibi_jax.data.names import corpus_name
from alibi_jax.data.tokenizer import TOKENIZERS, load_tokenizer, make_tokenizer
from alibi_jax.data.tokenizer.file import FileTokenizer, number_of_tokens
from alibi_jax.data.tokenizer.foreign import foreign_files
from alibi_jax.errors import DataError

TEXTS = ["the cat sat on the mat\n" * 20, "café — naïve </s> <unk>\n\n  the end <0x41>"]
END = "</s>"


def byte_level():
    """As GPT-NeoX and MPT have it: NFC, and runs of spaces as tokens that are added and not special."""
    model = tokenizers.Tokenizer(models.BPE())
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<s>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXTS, trainer)
    model.add_tokens([tokenizers.AddedToken("  ", normalized=True), tokenizers.AddedToken("x—y", normalized=False)])
    return model


def like_llama():
    """A mark for spaces, one in front of a text, a token for every byte, and <s> in front by the post-processor."""
    model = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<unk>", "<s>", END], show_progress=False)
    model.train_from_iterator(TEXTS[:1], trainer)
    vocabulary = json.loads(model.to_str())["model"]
    ids = vocabulary["vocab"] | {token: len(vocabulary["vocab"]) + i for i, token in enumerate(tokens)}
    model.model = models.BPE(ids, [tuple(pair) for pair in vocabulary["merges"]], byte_fallback=True, unk_token="<unk>")
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", model.token_to_id("<s>"))]
    )
    return model


MODELS = {"byte-level": byte_level(), "like llama": like_llama()}


def write(folder, model, beside=None):
    """Saves a tokenizer as transformers does, with the file that names the end of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    text = model if isinstance(model, str) else model.to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, values in ({"tokenizer_config.json": {"eos_token": END}} if beside is None else beside).items():
        (folder / name).write_text(json.dumps(values))
    return folder


def made(folder, end=""):
    return make_tokenizer(DataConfig(tokenizer="file", tokenizer_path=str(folder), tokenizer_end=end), ())


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The tokenizers by their names, from files."""
    return {name: made(write(tmp_path_factory.mktemp("foreign"), model)) for name, model in MODELS.items()}


letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"))
mixed = st.lists(st.sampled_from([END, "<s>", "<unk>", "<0x41>", "x—y", "the", " ", "   ", "\n", "é", "e\u0301"]))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=40)
@given(text=letters | mixed.map("".join))
def test_a_text_comes_back_exactly_and_its_bytes_are_counted(foreign, name, text):
    tokenizer = foreign[name]
    tokens = tokenizer.encode(text)
    normal = unicodedata.normalize("NFC", text) if name == "byte-level" else text
    dropped = name == "like llama" and text.startswith(" ")  # one space in front is that of the tokenizer
    assert tokenizer.decode(tokens) == normal[dropped:]
    prefix = int(name == "like llama" and text != "" and not text.startswith(" "))
    assert tokenizer.token_bytes[tokens].sum() == len(normal.encode()) + prefix
    assert tokens[-1] == tokenizer.end and tokenizer.end not in tokens[:-1]


@pytest.mark.parametrize("name", MODELS)
def test_a_document_in_pieces_comes_back_with_one_space_in_front_at_most(foreign, name, monkeypatch):
    monkeypatch.setattr(document_module, "PIECE_CHARACTERS", 7)
    tokenizer = foreign[name]
    tokens = tokenizer.encode(TEXTS[1])
    assert tokenizer.decode(tokens) == TEXTS[1]
    assert tokenizer.token_bytes[tokens].sum() == len(TEXTS[1].encode()) + (name == "like llama")


def test_words_at_the_end_of_a_piece_are_not_cut(foreign, monkeypatch):
    monkeypatch.setattr(document_module, "PIECE_CHARACTERS", 7)
    tokenizer, text = foreign["byte-level"], "the cat sat on the mat on the matmat"
    np.testing.assert_array_equal(tokenizer.encode(text)[:-1], tokenizer.model.encode(text).ids)


def test_a_stream_starts_with_what_the_tokenizer_puts_in_front_else_with_the_end_of_a_document(foreign):
    ids = {name: MODELS[name].token_to_id for name in MODELS}
    llama, plain = foreign["like llama"], foreign["byte-level"]
    assert (llama.first_input, llama.end) == (ids["like llama"]("<s>"), ids["like llama"](END))
    assert plain.first_input == plain.end == ids["byte-level"](END)


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_is_the_same(foreign, name, tmp_path):
    foreign[name].save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.name, loaded.end, loaded.first_input) == ("file", foreign[name].end, foreign[name].first_input)
    np.testing.assert_array_equal(loaded.token_bytes, foreign[name].token_bytes)
    np.testing.assert_array_equal(loaded.encode(TEXTS[1]), foreign[name].encode(TEXTS[1]))


def test_added_tokens_stand_for_their_letters_special_ones_and_holes_for_nothing(tmp_path):
    facts = json.loads(byte_level().to_str())
    vocabulary = facts["model"]["vocab"]
    size = max(vocabulary.values()) + 1
    vocabulary |= {"Ġé": size + 5, "ĠĠé": size + 7}
    facts["added_tokens"][-1] |= {"id": size + 5, "content": "Ġé"}
    tokenizer = made(write(tmp_path, json.dumps(facts)))
    assert tokenizer.vocab_size == size + 8 == len(tokenizer.token_bytes) == number_of_tokens(tmp_path)
    assert tokenizer.token_bytes[[size + 5, size + 7]].tolist() == [4, 3], "letters of a text, letters for bytes"
    assert not tokenizer.token_bytes[[0, 1, size + 1, size + 6]].any()
    assert tokenizer.encode("Ġé")[0] == size + 5
    assert tokenizer.decode([size + 6, *tokenizer.encode("a")]) == "a"


def test_truncation_and_padding_of_the_file_are_left_out(tmp_path):
    model = byte_level()
    model.enable_truncation(4)
    model.enable_padding(length=64)
    assert made(write(tmp_path, model)).decode(made(tmp_path).encode(TEXTS[0])) == TEXTS[0]


@pytest.mark.parametrize(
    ("beside", "end"),
    [
        ({"tokenizer_config.json": {"eos_token": {"content": END}}, "config.json": {"eos_token_id": 0}}, END),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {"eos_token": END}}, END),
        ({"generation_config.json": {"eos_token_id": [1, 0]}, "config.json": {"eos_token_id": 0}}, END),
        ({"config.json": {"eos_token_id": 0}}, "<s>"),
    ],
    ids=["object", "special_tokens_map", "generation_config", "config"],
)
def test_the_end_of_documents_is_read_beside_the_file_and_goes_with_a_copy(tmp_path, beside, end):
    folder = write(tmp_path / "theirs", MODELS["byte-level"], beside)
    assert made(folder).end == MODELS["byte-level"].token_to_id(end)
    assert made(folder, "<s>").end == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in foreign_files(folder).items():
        (copy / name).write_bytes(content)
    (copy / "config.json").write_text("{}")
    assert made(copy).end == made(folder).end


def no_decoder(facts):
    facts["decoder"] = None


def word_piece(facts):
    facts["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}


def unknown_model(facts):
    facts["model"]["type"] = "Other"


@pytest.mark.parametrize(
    ("change", "end", "message"),
    [
        (
            lambda folder: shutil.rmtree(folder),
            "",
            r"tokenizer_path: got .* which does not exist, expected tokenizer.json",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "",
            r"a folder with neither, expected tokenizer.json or voc",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{"),
            "",
            r"tokenizer.json: got a file that is not JSON",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "", r"got JSON of type list, expected an object"),
        (
            lambda folder: (folder / "tokenizer_config.json").unlink(),
            "",
            r"without a token that ends .* --data.tokenizer-end",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("x"),
            "",
            r"tokenizer_config.json: got a file that is",
        ),
        (lambda folder: None, "<end>", r"tokenizer_end: got '<end>', which is not in the tokenizer's vocabulary"),
        (no_decoder, "", r"whose decoder is none, expected ByteLevel"),
        (word_piece, "", r"whose decoder is WordPiece, expected ByteLevel"),
        (unknown_model, "", r"that the tokenizers library cannot read"),
    ],
    ids=["gone", "empty", "cut", "list", "no end", "bad end", "outside", "no decoder", "decoder", "model"],
)
def test_a_tokenizer_that_cannot_serve_is_refused(tmp_path, change, end, message):
    folder = write(tmp_path / "theirs", MODELS["byte-level"])
    if change in (no_decoder, word_piece, unknown_model):
        facts = json.loads(MODELS["byte-level"].to_str())
        change(facts)
        write(folder, json.dumps(facts))
    else:
        change(folder)
    with pytest.raises(DataError, match=message):
        made(folder, end)


def test_a_tokenizer_that_drops_letters_is_refused_for_a_text_that_has_them(tmp_path):
    model = byte_level()
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), model.pre_tokenizer])
    tokenizer = made(write(tmp_path, model))
    assert tokenizer.decode(tokenizer.encode("the")) == "the"
    with pytest.raises(DataError, match=r"got tokens of 6 bytes for 7 bytes of text, expected as many"):
        tokenizer.encode("the cat")


def test_a_saved_tokenizer_of_other_json_is_refused(tmp_path):
    (tmp_path / FileTokenizer.file).write_text("{}")
    with pytest.raises(DataError, match=r"got other JSON, expected a saved tokenizer. Prepare the corpus again"):
        load_tokenizer(tmp_path)


def test_fields_without_effect_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data.tokenizer_path: got '', expected a tokenizer.json"):
        DataConfig(tokenizer="file")
    with pytest.raises(ConfigError, match=r"data.tokenizer_end: got '</s>' with data.tokenizer 'bytes'"):
        DataConfig(tokenizer_end=END)
    (tmp_path / "vocabulary.txt").write_text("<eos>\n<unk>\n")
    with pytest.raises(
        ConfigError, match=r"data.tokenizer_end: got '</s>', expected none: lines of words end in <eos>"
    ):
        made(tmp_path, END)


def test_a_vocabulary_of_words_is_the_words_tokenizer(tmp_path, tiny_data):
    types = ["<s>", "<pad>", "<eos>", "<unk>", "north", "south", "east", "madeupword0000"]
    (tmp_path / "vocabulary.txt").write_text("".join(f"{word}\n" for word in types))
    data = dataclasses.replace(tiny_data, tokenizer="file", tokenizer_path=str(tmp_path / "vocabulary.txt"))
    corpus = prepare(data, quiet=True)
    assert (corpus.tokenizer.name, corpus.tokenizer.types, corpus.tokenizer.first_input) == ("words", types, 2)
    assert corpus.num_unknown("valid") > 0 and open_corpus(data).folder == corpus.folder
    assert TOKENIZERS["file"].configured_size(data) == 8


def test_a_broken_vocabulary_is_refused(tmp_path):
    for content, message in ((b"a\n", "got 1 types without <eos> or <unk>"), (b"\xff\n", "expected UTF-8")):
        (tmp_path / "vocabulary.txt").write_bytes(content)
        with pytest.raises(DataError, match=f"{message}.* Complete the file"):
            made(tmp_path)


def test_a_corpus_is_that_of_the_tokenizers_content_wherever_it_is(tmp_path, tiny_data):
    folder = write(tmp_path / "theirs", MODELS["byte-level"])
    data = dataclasses.replace(tiny_data, tokenizer="file", tokenizer_path=str(folder))
    corpus = prepare(data, quiet=True)
    assert corpus.num_bytes("train") == corpus.facts["splits"]["train"]["bytes"] <= Path(data.train_path).stat().st_size
    moved = dataclasses.replace(data, tokenizer_path=str(shutil.move(folder, tmp_path / "moved")))
    assert corpus_name(moved) == corpus.folder.name.rpartition("-")[0] and open_corpus(moved).folder == corpus.folder
    assert corpus_name(dataclasses.replace(moved, tokenizer_end="<s>")) != corpus_name(moved)
    facts = json.loads((tmp_path / "moved/tokenizer.json").read_text())
    facts["model"]["merges"].pop()
    write(tmp_path / "moved", json.dumps(facts))
    edited = prepare(moved, quiet=True)
    assert edited.folder != corpus.folder and edited.fingerprint != corpus.fingerprint
    assert open_corpus(data, corpus.fingerprint).folder == corpus.folder, "a run goes on though the file is gone"


@pytest.mark.parametrize("name", ["bpe", "file"])
def test_what_is_exported_is_the_same_tokenizer(foreign, name, tmp_path):
    bpe = make_tokenizer(DataConfig(tokenizer="bpe", bpe_vocab_size=270), [[text] for text in TEXTS])
    tokenizer = {"bpe": bpe, "file": foreign["like llama"]}[name]
    for file, content in tokenizer.exported().items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    again = made(tmp_path)
    assert (again.vocab_size, again.first_input) == (tokenizer.vocab_size, tokenizer.first_input)
    np.testing.assert_array_equal(again.encode(TEXTS[1]), tokenizer.encode(TEXTS[1]))
    np.testing.assert_array_equal(again.token_bytes, tokenizer.token_bytes)
