import hashlib
import http.server
import os
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alibi_jax.config import DataConfig
from alibi_jax.data.corpus import open_corpus, prepare
from alibi_jax.data.sources import documents
from alibi_jax.data.sources import wikitext as builder_module
from alibi_jax.data.sources import wikitext_files as files_module
from alibi_jax.data.splits import SPLITS
from alibi_jax.errors import DataError

TEXT = {  # articles of each split; the first has the blank line that opens the file
    "train": [
        " \n = Plain maskray = \n \n The maskray is a <unk> of stingray . \n \n = = Taxonomy = = \n \n A 1 @.@ 5 m fish \n \n",
        " = Zoë = \n \n = = = Early life = = = \n \n = Played , W = \n Zoë was born in Ö <unk> , 1 @,@ 000 km off \n \n \n",
        " = M @-@ 82 ( Michigan highway ) = \n \n = Goals ; A = \n A road \n \n",
        " = B = \n \n the end \n \n",
    ],
    "valid": [" \n = Homarus = \n \n a lobster \n \n", " = 2011 – 12 season = \n \n = = Games = = \n \n hockey \n"],
    "test": [" \n = Du Fu = \n \n a poet \n \n"],
}
TOKENS = {f"wiki.{split}.tokens": "".join(TEXT[split]).encode() for split in SPLITS}


def fill(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_zip(path, files=TOKENS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"wikitext-2/{name}", content)
    return path


def wikitext(tmp_path, manual="", **more):
    values = {"tfds_name": "wikitext/wikitext-2", "tfds_dir": str(tmp_path / "tfds"), "tfds_manual_dir": str(manual)}
    return DataConfig(source="tfds", directory=str(tmp_path / "corpora"), **values | more)


def read(data):
    return {split: ["".join(document) for document in documents(data, split)] for split in SPLITS}


@pytest.fixture
def official(monkeypatch):
    """Takes this zip for the official one."""

    def set_digest(path):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr(files_module, "SHA256", {"wikitext-103": "0" * 64, "wikitext-2": digest})

    return set_digest


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served at the address that stands for the official one, and the list of requests."""
    (tmp_path / "served").mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "served")

        def do_GET(self):
            if "busy" in self.path:
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *arguments):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as local:
        threading.Thread(target=local.serve_forever, args=(0.01,)).start()
        monkeypatch.setattr(builder_module, "URL", f"http://127.0.0.1:{local.server_port}")
        yield tmp_path / "served", asked
        local.shutdown()


@pytest.mark.parametrize("layout", ["", "wikitext-2"])
def test_bare_files_give_articles_in_order_that_join_to_the_files(tmp_path, layout):
    fill(tmp_path / "manual" / layout, TOKENS)
    data = wikitext(tmp_path, tmp_path / "manual")
    assert read(data) == TEXT
    (tmp_path / "manual" / layout / "wiki.train.tokens").unlink()
    assert read(data) == TEXT  # prepared once
    sliced = wikitext(
        tmp_path, tfds_name="wikitext/wikitext-2:1.0.0", tfds_splits=("train[:50%]", "validation[1:]", "train[50%:]")
    )
    assert read(sliced) == {"train": TEXT["train"][:2], "valid": TEXT["valid"][1:], "test": TEXT["train"][2:]}
    assert "tensorflow" not in sys.modules


def test_the_zip_is_read_before_bare_files(tmp_path, official):
    manual = fill(tmp_path / "manual", dict.fromkeys(TOKENS, b" other \n"))
    official(make_zip(manual / "wikitext-2-v1.zip"))
    assert read(wikitext(tmp_path, manual)) == TEXT


def test_the_zip_is_downloaded_and_checked(tmp_path, official, server):
    folder, asked = server
    official(make_zip(folder / "wikitext-2-v1.zip"))
    assert read(wikitext(tmp_path)) == TEXT
    assert set(asked) == {"/wikitext-2-v1.zip"}


def test_a_wrong_download_is_refused_and_not_kept(tmp_path, official, server):
    folder, _ = server
    path = make_zip(folder / "wikitext-2-v1.zip")
    official(path)
    right = path.read_bytes()
    path.write_bytes(right[:-1])
    for _ in range(2):
        with pytest.raises(DataError, match=r"got a file with sha256 .* expected .* official wikitext-2-v1\.zip"):
            read(wikitext(tmp_path))
    assert not [path for path in (tmp_path / "tfds" / "downloads").rglob("*") if path.is_file()]
    path.write_bytes(right)
    assert read(wikitext(tmp_path)) == TEXT


@pytest.mark.parametrize("place", ["{URL}", "{URL}/busy", "http://127.0.0.1:9"])  # no such file, overloaded, no server
def test_a_download_that_fails_says_at_once_what_to_do(tmp_path, server, monkeypatch, place):
    monkeypatch.setattr(builder_module, "URL", place.format(URL=builder_module.URL))
    message = r"wikitext/wikitext-2: got no file from http://127.*/wikitext-2-v1\.zip \(.+\), expected .*"
    with pytest.raises(
        DataError, match=message + r"three \.tokens files, in a folder .* --data\.tfds-manual-dir FOLDER"
    ):
        read(wikitext(tmp_path))


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b" dos \r\n", r"b' dos \\r\\n'"),
        (b"no space before \n", r"b'no space before \\n'"),
        (b" no space after\n", r"b' no space after\\n'"),
        (b"\n", r"b'\\n'"),
        (b" latin \xe9 \n", r"b' latin \\xe9 \\n'"),
        (b" no newline ", r"b' no newline '"),
        (b" word" * 99 + b".\n", r"b' word word .* word \[\.\.\.\] .* word\.\\n'"),
    ],
)
def test_another_layout_is_refused_and_leaves_nothing_behind(tmp_path, line, got):
    manual = fill(tmp_path / "manual", TOKENS | {"wiki.test.tokens": TOKENS["wiki.test.tokens"] + line})
    expected = (
        r"expected WikiText's tokenized layout in UTF-8: each line is ' word word \.\.\. \\n', a blank one ' \\n'"
    )
    message = rf"wiki\.test\.tokens, line 6: got {got}, {expected}\. This may be .* official \.tokens files, or --data"
    with pytest.raises(DataError, match=message):
        next(documents(wikitext(tmp_path, manual), "train"))
    kept = [path for path in (tmp_path / "tfds").rglob("*") if path.is_file() and ".config" not in path.parts]
    assert kept == [] and list((tmp_path / "tfds" / "wikitext" / "wikitext-2").iterdir()) == []
    fill(manual, TOKENS)
    assert read(wikitext(tmp_path, manual)) == TEXT


def test_an_empty_file_is_refused(tmp_path):
    manual = fill(tmp_path / "manual", TOKENS | {"wiki.valid.tokens": b""})
    with pytest.raises(DataError, match=r"wiki\.valid\.tokens: got an empty file, expected WikiText"):
        read(wikitext(tmp_path, manual))


def test_missing_files_are_named(tmp_path):
    manual = fill(tmp_path / "manual", {"wiki.valid.tokens": b" \n"})
    with pytest.raises(
        DataError, match=r"manual: got no wiki\.train\.tokens and no wiki\.test\.tokens, expected wiki\."
    ):
        read(wikitext(tmp_path, manual))


@pytest.mark.parametrize("folder", ["missing", "empty", "wikitext-103"])
def test_a_folder_without_the_files_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "wikitext-103", TOKENS)  # named the same, and another text
    message = (
        r"data\.tfds_manual_dir: got '.*', which has neither wikitext-2-v1\.zip nor wiki\.train\.tokens, wiki\.valid"
    )
    with pytest.raises(
        DataError, match=message + r".* expected one or the other, the files there or in wikitext-2/\. Put"
    ):
        read(wikitext(tmp_path, tmp_path / folder))


def test_a_zip_that_is_not_the_official_one_is_refused(tmp_path):
    path = make_zip(tmp_path / "manual" / "wikitext-2-v1.zip")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    message = rf"got a file with sha256 {digest}\.\.\., expected 92675f1d6301\.\.\., the official wikitext-2-v1\.zip"
    with pytest.raises(DataError, match=message + r"\. Download it again, or pass the bare \.tokens files"):
        read(wikitext(tmp_path, tmp_path / "manual"))


def test_a_zip_without_a_member_or_that_cannot_be_opened_is_refused(tmp_path, official):
    path = make_zip(
        tmp_path / "manual" / "wikitext-2-v1.zip", {"wiki.train.tokens": b" \n", "wiki.test.tokens": b" \n"}
    )
    official(path)
    with pytest.raises(DataError, match=r"wikitext-2-v1\.zip/wikitext-2/: got no wiki\.valid\.tokens, expected"):
        read(wikitext(tmp_path, path.parent))
    path.write_bytes(b"no zip")
    official(path)
    with pytest.raises(DataError, match=r"v1\.zip: got a file that cannot be unzipped \(.*\), expected .* Download it"):
        read(wikitext(tmp_path, path.parent))


@pytest.mark.parametrize("name", ["wikitext/wikitext-3", "wikitext", "wikitext/wikitext-2:9.0.0"])
def test_an_unknown_config_is_told_the_known_two(tmp_path, name):
    message = (
        rf"data\.tfds_name: got '{name}', expected wikitext/wikitext-103 or wikitext/wikitext-2 \(version 1\.0\.0\)"
    )
    with pytest.raises(DataError, match=message):
        read(wikitext(tmp_path, tfds_name=name))


def test_a_manual_folder_for_another_data_set_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"data\.tfds_manual_dir: got '.*' with data\.tfds_name 'lm1b', expected wikitext/"
    ):
        read(wikitext(tmp_path, tmp_path, tfds_name="lm1b"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    manual = fill(tmp_path / "manual", TOKENS)
    (tmp_path / "tfds").write_bytes(b"a file")
    with pytest.raises(
        DataError, match=r"got 'wikitext/wikitext-2', which cannot be prepared in .*tfds.* Check permissions"
    ):
        read(wikitext(tmp_path, manual))


@settings(max_examples=200)
@given(st.lists(st.sampled_from([" \n", " \n", " = A = \n", " = = S = = \n", " = = = \n", " a = b \n"]), min_size=1))
def test_articles_are_cut_where_a_regular_expression_over_the_whole_text_cuts(lines):
    opening, text = re.fullmatch(r"((?: \n)*)(.*)", "".join(lines), re.DOTALL).groups()
    first, *others = re.split(r"(?<=\n \n)(?= = A = \n \n)", text)
    assert list(files_module.articles(lines)) == [opening + first, *others]


def test_a_corpus_of_words_has_one_end_a_line(tmp_path):
    corpus = open_corpus(wikitext(tmp_path, fill(tmp_path / "manual", TOKENS), tokenizer="words"))
    for split in SPLITS:
        text = "".join(TEXT[split])
        assert len(corpus.tokens(split)) == len(text.split()) + text.count("\n")
    assert corpus.tokenizer.decode(corpus.tokens("train")) == "".join(TEXT["train"])


def test_a_corpus_is_known_by_the_data_set_it_was_prepared_from(tmp_path, caplog):
    manual = fill(tmp_path / "manual", TOKENS)
    data = wikitext(tmp_path, manual, tokenizer="words")
    first = open_corpus(data)
    os.utime(manual / "wiki.valid.tokens", (2**32, 2**32))
    assert open_corpus(data).folder == first.folder
    assert (
        "wiki.valid.tokens was written after" in caplog.text
        and "remove that folder: it is prepared again" in caplog.text
    )
    shutil.rmtree(tmp_path / "tfds")  # as on a machine that has the corpus alone
    for fingerprint in (None, first.fingerprint):
        caplog.clear()
        assert open_corpus(data, fingerprint).folder == first.folder
        assert "could not be compared" in caplog.text
    (manual / "wiki.valid.tokens").write_text(" another = text \n" * 9)
    assert prepare(data, force=True, quiet=True).fingerprint == open_corpus(data).fingerprint != first.fingerprint
    assert open_corpus(data, first.fingerprint).folder == first.folder


@pytest.mark.skipif("ALIBI_JAX_TEXT" not in os.environ, reason="set ALIBI_JAX_TEXT to a folder with wikitext-2/")
def test_wikitext_2_has_the_published_counts(tmp_path):
    text = Path(os.environ.get("ALIBI_JAX_TEXT", ""))
    data = wikitext(tmp_path, text, tokenizer="words")
    corpus = open_corpus(data)
    counts = {split: facts["tokens"] for split, facts in corpus.facts["splits"].items()}
    assert counts == {"train": 2_088_628, "valid": 217_646, "test": 245_569}
    assert corpus.tokenizer.vocab_size == 33_278
    articles = {split: facts["documents"] for split, facts in corpus.facts["splits"].items()}
    assert articles == {"train": 600, "valid": 60, "test": 60}  # Merity et al. 2016, table 1
    for split in SPLITS:
        file = text / "wikitext-2" / f"wiki.{split}.tokens"
        assert "".join("".join(document) for document in documents(data, split)).encode() == file.read_bytes()


@pytest.mark.skipif("ALIBI_JAX_TEXT" not in os.environ, reason="set ALIBI_JAX_TEXT to a folder with wikitext-103/")
def test_wikitext_103_without_its_training_text_is_refused(tmp_path):
    text = Path(os.environ.get("ALIBI_JAX_TEXT", ""))
    if (text / "wikitext-103" / "wiki.train.tokens").exists():
        pytest.skip("the training text is there")
    with pytest.raises(DataError, match=r"wikitext-103: got no wiki\.train\.tokens, expected .* Put the missing files"):
        read(wikitext(tmp_path, text, tfds_name="wikitext/wikitext-103"))
