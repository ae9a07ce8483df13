import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alibi_jax.config import DataConfig
from alibi_jax.data.corpus import open_corpus, prepare
from alibi_jax.data.facts import read_facts
from alibi_jax.data.names import corpus_folders, earlier_name
from alibi_jax.errors import DataError


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Project a's text, by a path relative to its folder, and a folder of corpora that others use, too."""
    fill(tmp_path / "a", "alpha")
    monkeypatch.chdir(tmp_path / "a")
    return DataConfig(source="files", train_path="text", directory=str(tmp_path / "shared"))


def fill(project, word):
    (project / "text").mkdir(parents=True)
    for i in range(25):
        (project / f"text/{i}.txt").write_text(f"{word} {i}\n" * 5)
        os.utime(project / f"text/{i}.txt", ns=(0, 0))  # as out of an archive that keeps no times


def train_text(corpus):
    return corpus.tokenizer.decode(corpus.tokens("train"))


def test_another_project_with_the_same_relative_path_reads_its_own_text(data, tmp_path, monkeypatch):
    first = prepare(data, quiet=True)
    fill(tmp_path / "b", "bravo")  # names, sizes and times are the same
    monkeypatch.chdir(tmp_path / "b")
    second = open_corpus(data)
    assert "bravo" in train_text(second) and "alpha" not in train_text(second)
    assert len(corpus_folders(data)) == 2 and open_corpus(data).folder == second.folder
    monkeypatch.chdir(tmp_path / "a")
    assert open_corpus(data).folder == first.folder


def edit(path):
    path.write_text(path.read_text().replace("alpha", "omega"))
    os.utime(path, ns=(0, 0))


CHANGES = {
    "edited at equal size and time": (lambda f: edit(f / "3.txt"), "3.txt has other content"),
    "added": (lambda f: (f / "new.txt").write_text("new\n"), "train/new.txt is new"),
    "removed": (lambda f: (f / "3.txt").unlink(), "train/3.txt is gone"),
    "renamed": (lambda f: (f / "3.txt").rename(f / "z.txt"), "train/3.txt is gone"),
    "grown": (lambda f: (f / "3.txt").write_text("longer\n" * 50), "3.txt has 350 bytes in place of 40"),
    "exchanged": (lambda f: shutil.copyfile(f / "4.txt", f / "3.txt"), "3.txt has other content"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_new_run_takes_the_text_as_it_is_and_an_old_one_goes_on_with_its_own(data, caplog, change):
    caplog.set_level(logging.INFO, "alibi_jax")
    first, (make, message) = prepare(data, quiet=True), CHANGES[change]
    make(Path("text"))
    again = open_corpus(data, first.fingerprint)
    assert (again.folder, train_text(again)) == (first.folder, train_text(first))
    assert "which the run was begun with; its text was edited or touched since" in caplog.text
    caplog.clear()
    second = open_corpus(data)
    assert second.folder != first.folder and second.fingerprint != first.fingerprint
    assert f"{first.folder} is of another text" in caplog.text and message in caplog.text
    caplog.clear()
    assert open_corpus(data).folder == second.folder and not caplog.text


@pytest.mark.parametrize("how", ["touched", "copied"])
def test_the_same_content_elsewhere_or_at_another_time_is_not_prepared_again(data, tmp_path, monkeypatch, caplog, how):
    first = prepare(data, quiet=True)
    if how == "touched":
        (Path("text") / "3.txt").touch()
    else:
        shutil.copytree("text", tmp_path / "c" / "text")
        monkeypatch.chdir(tmp_path / "c")
    monkeypatch.setattr("alibi_jax.data.write.documents", None)  # reading it would fail
    assert open_corpus(data).folder == first.folder and not caplog.text
    kept = (first.folder / "text.json").read_bytes()
    prepare(data)  # keeps the times, so that the next does not read the content
    assert (first.folder / "text.json").read_bytes() != kept
    monkeypatch.setattr("alibi_jax.data.text._sha256", None)
    assert open_corpus(data).folder == first.folder


def test_a_rename_that_changes_neither_order_nor_splits_is_prepared_again_once(data, caplog):
    first = prepare(data, quiet=True)
    Path("text/3.txt").rename("text/33.txt")
    assert prepare(data, quiet=True).folder == first.folder
    caplog.set_level(logging.INFO, "alibi_jax")
    assert open_corpus(data).folder == first.folder and not caplog.text


def test_a_text_that_is_gone_leaves_its_corpus_of_use(data, tmp_path, monkeypatch, caplog):
    first = prepare(data, quiet=True)
    shutil.rmtree("text")
    assert open_corpus(data, first.fingerprint).folder == first.folder
    assert (
        "which the run was begun with, could not be compared with its text: data.train_path: got 'text'" in caplog.text
    )
    caplog.clear()
    assert open_corpus(data).folder == prepare(data).folder == first.folder
    assert "is used, though its text could not be compared: data.train_path: got 'text'" in caplog.text
    monkeypatch.chdir(tmp_path)  # another place has no text, and never had it
    with pytest.raises(DataError, match=r"data\.train_path: got 'text', which matches no file"):
        open_corpus(data)
    assert open_corpus(data, first.fingerprint).folder == first.folder


def test_a_run_whose_corpus_is_gone_has_it_prepared_again(data):
    first = prepare(data, quiet=True)
    shutil.rmtree(first.folder)
    assert open_corpus(data, first.fingerprint).folder == first.folder


@pytest.mark.parametrize("fingerprint", ["", "none", "../../etc", "0" * 64])
def test_a_fingerprint_that_no_corpus_has_opens_that_of_the_text(data, fingerprint):
    assert open_corpus(data, fingerprint).fingerprint == prepare(data).fingerprint


def test_a_corpus_of_the_earlier_format_is_prepared_again_and_said(data, caplog):
    caplog.set_level(logging.INFO, "alibi_jax")
    earlier = Path(data.directory) / earlier_name(data)
    earlier.mkdir(parents=True)
    (earlier / "corpus.json").write_text('{"format": 1}')
    prepare(data, quiet=True)
    assert f"{earlier} is of an earlier version, without checksums: its text is prepared again" in caplog.text


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "words"])
def test_a_run_that_an_earlier_version_began_goes_on_without_its_text(data, tokenizer, caplog):
    data = replace(data, tokenizer=tokenizer, **({"bpe_vocab_size": 270} if tokenizer == "bpe" else {}))
    corpus = prepare(data, quiet=True)
    earlier, tokens = corpus.folder.with_name(earlier_name(data)), np.array(corpus.tokens("valid"))
    corpus.folder.rename(earlier)
    facts = read_facts(earlier / "corpus.json", 2) | {"format": 1}
    del facts["files"]
    for split in facts["splits"].values():
        del split["unknown"]
    (earlier / "corpus.json").write_text(json.dumps(facts))
    shutil.rmtree("text")
    if tokenizer == "words":  # which bytes its unknown words had is not known
        with pytest.raises(DataError, match=r"data\.train_path: got 'text', which matches no file"):
            open_corpus(data, corpus.fingerprint)
        return
    again = open_corpus(data, corpus.fingerprint)
    np.testing.assert_array_equal(again.tokens("valid"), tokens)
    assert (again.folder, again.facts) == (corpus.folder, corpus.facts) and earlier.exists()
    assert "of an earlier version, is taken over as" in caplog.text
    caplog.clear()
    caplog.set_level(logging.INFO, "alibi_jax")
    assert open_corpus(data, corpus.fingerprint).folder == again.folder
    assert "whose text an earlier version did not keep" in caplog.text and "edited" not in caplog.text
    shutil.rmtree(again.folder)
    with open(earlier / "valid.bin", "ab") as file:
        file.write(b"a")
    with pytest.raises(DataError, match=r"valid\.bin: got \d+ bytes, expected \d+ tokens of 2"):
        open_corpus(data, corpus.fingerprint)


def test_a_text_that_changes_while_it_is_read_is_refused(data, monkeypatch):
    from alibi_jax.data import write as module

    write = module.write_tokens

    def overtaken(path, *arguments):
        (Path("text") / "9.txt").write_text("alpha 9\n" * 6)
        return write(path, *arguments)

    monkeypatch.setattr(module, "write_tokens", overtaken)
    with pytest.raises(
        DataError, match=r"got a text whose files changed while they were read, .* Prepare it again once"
    ):
        prepare(data, quiet=True)
    assert not corpus_folders(data)


def test_a_broken_corpus_of_another_text_stops_nobody(data):
    first = prepare(data, quiet=True)
    edit(Path("text/3.txt"))
    second = prepare(data, quiet=True)
    (first.folder / "text.json").write_text("")
    assert open_corpus(data).folder == second.folder


def test_the_standard_library_of_another_python_is_another_text(tmp_path, monkeypatch):
    root = tmp_path / "lib"
    root.mkdir()
    for i in range(20):
        (root / f"module_{i}.py").write_text(f"'{i}'\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(root))
    data = DataConfig(directory=str(tmp_path / "corpora"))
    first = prepare(data, quiet=True)
    shutil.copytree(root, tmp_path / "other")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "other"))
    assert open_corpus(data).folder == first.folder
    (tmp_path / "other/module_3.py").write_text("'changed'\n")
    assert open_corpus(data).folder != first.folder


def test_a_file_older_than_1970_is_a_file_like_others(data):
    os.utime("text/3.txt", ns=(-(10**18), -(10**18)))
    assert open_corpus(data).folder == prepare(data).folder


def test_held_out_texts_belong_to_the_text(data, tmp_path):
    for name in ("valid", "test"):
        (tmp_path / f"{name}.txt").write_text("held out\n")
    data = replace(data, valid_path=str(tmp_path / "valid.txt"), test_path=str(tmp_path / "test.txt"))
    first = prepare(data, quiet=True)
    (tmp_path / "test.txt").write_text("held in.\n")
    assert open_corpus(data).folder != first.folder


def test_copies_of_held_out_files_in_the_training_text_are_warned_of(data, caplog):
    Path("valid.txt").write_text("held out\n" * 5)
    own = replace(data, valid_path="valid.txt")
    prepare(own, quiet=True)
    assert "has the content of" not in caplog.text
    for name in ("copy.txt", "another.txt"):
        shutil.copy("valid.txt", f"text/{name}")
    prepare(own, quiet=True)
    first, held_out = os.path.abspath("text/another.txt"), os.path.abspath("valid.txt")
    assert f"{first} has the content of {held_out}, which is held out; such files: 2" in caplog.text


@pytest.mark.parametrize("directory", ["text", ".", "text/corpora"])
@pytest.mark.parametrize("path", ["text", ".", "**/*"])
def test_a_corpus_below_its_text_is_no_text(data, path, directory):
    data = replace(data, train_path=path, directory=directory)
    first = prepare(data, quiet=True)
    assert open_corpus(data).folder == first.folder
    assert prepare(replace(data, tokenizer="words"), quiet=True).facts["splits"]["train"]["documents"] == 23
