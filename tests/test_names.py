"""Names of corpora: the fields that the source and the tokenizer use decide them, and earlier names are found."""

import logging
import shutil
import typing
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from alibi_jax.config import DataConfig
from alibi_jax.config.limits import BELONGS
from alibi_jax.config.sections import SourceName, TokenizerName
from alibi_jax.data.corpus import open_corpus, prepare, verify
from alibi_jax.data.names import corpus_folders, corpus_name, earlier_name
from alibi_jax.data.sources import SOURCES
from alibi_jax.data.tokenizer import TOKENIZERS

PLACES = {"directory", "tfds_manual_dir"}  # where files lie does not change them
NEEDED = {"train_path": "text", "tfds_name": "lm1b"}  # what a source that uses them cannot do without
OWN = [
    name for name in TOKENIZERS if name != "file"
]  # somebody's file names a corpus by its content: test_tokenizer_file.py


def config(source, tokenizer="bytes", kind=DataConfig, **values):
    needed = {name: value for name, value in NEEDED.items() if name in SOURCES[source].fields}
    return kind(source=source, tokenizer=tokenizer, **needed | values)


def another(data, field):
    """The config with another value of a field."""
    value = {"tfds_splits": ("a", "b", "c"), "bpe_vocab_size": 999}.get(field, "another")
    return replace(data, **{field: value})


def test_the_config_offers_the_sources_and_tokenizers_there_are():
    assert list(typing.get_args(SourceName)) == list(SOURCES)
    assert list(typing.get_args(TokenizerName)) == list(TOKENIZERS)
    assert [kind.name for kind in TOKENIZERS.values()] == list(TOKENIZERS)
    assert len({kind.file for kind in TOKENIZERS.values()}) == len(TOKENIZERS), "a tokenizer is known by its file"


@pytest.mark.parametrize(("other", "things"), [("source", SOURCES), ("tokenizer", TOKENIZERS)])
def test_the_fields_of_a_source_and_a_tokenizer_are_those_that_belong_to_it(other, things):
    names = [field.name for field in fields(DataConfig) if field.name not in PLACES]
    for choice, thing in things.items():
        belonging = {
            name
            for name in names
            if (belongs := BELONGS.get(f"data.{name}")) and belongs.other == other and belongs.holds(choice)
        }
        assert set(thing.fields) == belonging, choice


@pytest.mark.parametrize("tokenizer", OWN)
@pytest.mark.parametrize("source", SOURCES)
def test_every_field_that_is_used_makes_another_name_and_no_other_does(source, tokenizer):
    @dataclass(frozen=True)
    class Later(DataConfig):
        new: str = ""

    data = config(source, tokenizer)
    for field in SOURCES[source].fields + TOKENIZERS[tokenizer].fields:
        assert corpus_name(another(data, field)) != corpus_name(data), field
    assert corpus_name(replace(data, directory="elsewhere")) == corpus_name(data)
    for later in (config(source, tokenizer, Later), config(source, tokenizer, Later, new="x")):
        assert (corpus_name(later), earlier_name(later)) == (corpus_name(data), earlier_name(data))


EARLIER = {  # names of corpora that were prepared before November 27, 2026
    "stdlib-bytes-34fa03360aed": DataConfig(),
    "stdlib-bpe-5c935f767d5b": DataConfig(tokenizer="bpe", bpe_vocab_size=500),
    "files-words-c87636ba1ca4": config("files", "words", train_path="books", valid_path="held"),
    "tfds-bytes-3a496b299984": config(
        "tfds",
        tfds_name="wikitext/wikitext-103",
        tfds_dir="sets",
        tfds_manual_dir="x",
        tfds_splits=("train[:9%]", "validation", "test"),
    ),
}


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_names_are_those_of_the_corpora_there_are(name):
    assert earlier_name(EARLIER[name]) == name != corpus_name(EARLIER[name])


@pytest.fixture
def earlier(tmp_path):
    """A config, and its corpus under its earlier name."""
    (tmp_path / "text.txt").write_text("a line of text\n" * 400)
    data = DataConfig("files", train_path=str(tmp_path / "text.txt"), directory=str(tmp_path / "corpora"))
    prepared = prepare(data, quiet=True).folder
    return data, prepared.rename(prepared.with_name(prepared.name.replace(corpus_name(data), earlier_name(data))))


@pytest.mark.parametrize("text_is_there", [True, False])
def test_a_corpus_of_an_earlier_name_is_used_in_its_place(earlier, monkeypatch, caplog, text_is_there):
    caplog.set_level(logging.INFO, "alibi_jax")
    data, folder = earlier
    if not text_is_there:
        Path(data.train_path).unlink()
    for name in ("corpus.preparing", "facts.write_atomically"):  # as where nothing can be written
        monkeypatch.setattr(f"alibi_jax.data.{name}", None)
    corpus = open_corpus(data)
    assert corpus.folder == folder and corpus_folders(data) == [folder] == [each.folder for each in verify(data)]
    assert open_corpus(data, corpus.fingerprint).folder == folder == prepare(data).folder
    assert text_is_there is not ("could not be compared" in caplog.text)


def test_of_two_corpora_of_one_text_the_one_that_is_opened_is_replaced_with_force(earlier):
    """As where an earlier version has prepared it, too."""
    data, folder = earlier
    other = shutil.copytree(folder, folder.with_name(folder.name.replace(earlier_name(data), corpus_name(data))))
    assert open_corpus(data).folder == open_corpus(data, open_corpus(data).fingerprint).folder == other
    (other / "train.bin").write_bytes(b"")
    assert prepare(data, force=True, quiet=True).folder == other and len(verify(data)) == 2


def test_a_corpus_of_an_earlier_name_is_replaced_with_force_and_stands_beside_those_of_other_texts(earlier):
    data, folder = earlier
    (folder / "train.bin").write_bytes(b"")
    assert prepare(data, force=True, quiet=True).folder == folder and verify(data)
    Path(data.train_path).write_text("another line\n" * 400)
    other = open_corpus(data).folder
    assert other.name.startswith(corpus_name(data)) and corpus_folders(data) == [other, folder]
