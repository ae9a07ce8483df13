import bz2
import codecs
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alibi_jax.config import DataConfig
from alibi_jax.data import document as document_module
from alibi_jax.data import facts as facts_module
from alibi_jax.data import stream as stream_module
from alibi_jax.data.corpus import prepare
from alibi_jax.data.document import Document, file_document, text_document
from alibi_jax.data.sources import documents
from alibi_jax.data.tokenizer import make_tokenizer
from alibi_jax.data.tokenizer import words as words_module
from alibi_jax.errors import DataError

TOKENIZERS = {"bytes": {}, "words": {"tokenizer": "words"}, "bpe": {"tokenizer": "bpe", "bpe_vocab_size": 257}}


def put(path, content):
    path.write_bytes(content)
    return path


def read(path):
    return "".join(file_document(path))


@given(st.lists(st.text("ab\n é𝄞", max_size=9)), st.integers(0, 30), st.integers(0, 30))
def test_pieces_have_one_size_whatever_the_text_is_cut_in(texts, start, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_module, "PIECE_CHARACTERS", 4)
        whole, stop = "".join(texts), start + length
        document = Document("some", lambda: texts)
        assert list(document) == [whole[i : i + 4] for i in range(0, len(whole), 4)] == list(document)
        assert document.num_bytes() == len(whole.encode())
        part = document.between(start, stop)
        assert list(part) == [whole[start:stop][i : i + 4] for i in range(0, len(whole[start:stop]), 4)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 65_536])
def test_characters_cut_by_chunks_come_back(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(document_module, "CHUNK_BYTES", chunk)
    text = "\ufeffaé\r\n字𝄞\0b\ufeffc\n"
    path = put(tmp_path / "a.txt", text.encode() + b"d\xffe")
    with pytest.raises(
        DataError, match=rf"a\.txt: got byte 0xff at byte offset {len(text.encode()) + 1}, which is not"
    ):
        read(path)
    assert read(put(path, text.encode())) == text[1:]
    with pytest.raises(DataError, match=r"a\.txt: got byte 0xc3 at byte offset 1, which"):
        read(put(path, b"a\xc3"))


@pytest.mark.parametrize("tokenizer", ["bytes", "words", "bpe"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "A.GZ"])
def test_a_byte_order_mark_is_no_text(tmp_path, tokenizer, name):
    content = codecs.BOM_UTF8 + b"word and word\r\n" * 40
    path = put(tmp_path / name, gzip.compress(content) if name.lower().endswith("gz") else content)
    data = DataConfig(source="files", train_path=str(path), **TOKENIZERS[tokenizer])
    built = make_tokenizer(data, documents(data, "train"))
    assert built.decode(built.encode(read(path))).startswith((" " if tokenizer == "words" else "") + "word and")
    assert "\ufeff" not in built.decode(range(built.vocab_size))


def tar(content):
    with io.BytesIO() as file, tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        return file.getvalue()


def zipped(content):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", content)
        return file.getvalue()


ROOT = Path(__file__).parents[1]
TEXT = "some text, ünd more\n" * 40
OTHERS = {
    "utf-16 with mark": (lambda: TEXT.encode("utf-16"), r"UTF-16 text, .* \(iconv -f UTF-16 -t UTF-8\)"),
    "utf-16-be with mark": (lambda: codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), r"UTF-16 text"),
    "utf-32 with mark": (lambda: TEXT.encode("utf-32"), r"UTF-32 text, .* \(iconv -f UTF-32 -t UTF-8\)"),
    "utf-16 without mark": (lambda: b"abc\n".decode().encode("utf-16-le") * 99, r"50% NUL characters, as UTF-16"),
    "utf-32 without mark": (
        lambda: b"abc\n".decode().encode("utf-32-be") * 99,
        r"75% NUL characters, as UTF-16, UTF-32",
    ),
    "gzip": (lambda: gzip.compress(TEXT.encode()), r"gzip data, .* may end in \.gz"),
    "zip": (lambda: zipped(TEXT), r"a zip archive, expected UTF-8 text\. Unpack it"),
    "xz": (lambda: lzma.compress(TEXT.encode()), r"xz data, .*Decompress it"),
    "bzip2": (lambda: bz2.compress(TEXT.encode()), r"bzip2 data"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd\x04X", r"zstd data"),
    "tar": (lambda: tar(TEXT.encode()), r"a tar archive"),
    "lone surrogate": (lambda: b"ab\xed\xa0\x80c", r"byte 0xed at byte offset 2, which is not UTF-8"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_what_is_no_utf8_text_is_named(tmp_path, kind, compressed):
    content, message = OTHERS[kind]
    path = tmp_path / ("a.gz" if compressed else "a")
    put(path, gzip.compress(content()) if compressed else content())
    with pytest.raises(DataError, match=rf"/a(\.gz)?: got {message}"):
        read(path)


@pytest.mark.parametrize("tail", [b"", b"\0" * 40], ids=["", "padded"])
def test_gzip_of_several_members_is_read_whole(tmp_path, tail):
    content = gzip.compress(b"one\n") + gzip.compress(b"two\n") + tail
    assert read(put(tmp_path / "a.gz", content)) == "one\ntwo\n"


@pytest.mark.parametrize("cut", [3, 11, -9, -1])
def test_gzip_that_ends_early_is_named(tmp_path, cut):
    content = gzip.compress(os.urandom(500).hex().encode())
    with pytest.raises(DataError, match=r"a\.gz: got bytes that do not decompress .* Copy the file again"):
        read(put(tmp_path / "a.gz", content[:cut]))


def test_nul_characters_are_kept_and_many_are_warned_of(tmp_path, caplog):
    assert read(put(tmp_path / "few", b"a\0b\n" + b"word\n" * 99)) == "a\0b\n" + "word\n" * 99
    assert not caplog.records
    path = put(tmp_path / "all", b"\0" * 999)
    assert read(path) == read(path) == "\0" * 999
    (record,) = caplog.records
    assert record.message == f"{path}: 100% of its first 999 characters are NUL. Is it text?"


def test_a_file_of_a_mark_alone_is_empty(tmp_path):
    with pytest.raises(DataError, match=r"a: got an empty file"):
        read(put(tmp_path / "a", codecs.BOM_UTF8))


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path):
    path = put(tmp_path / "a", b"text\n")
    pieces = stream_module._digested(file_document(path), stream_module.hashlib.sha256().update)
    assert next(pieces) == "text\n"
    texts = iter(["one", "longer"])
    with pytest.raises(DataError, match=r"some: got a text that changed while it was read"):
        list(stream_module._digested(Document("some", lambda: [next(texts)]), stream_module.hashlib.sha256().update))


FILES = {
    "one line": lambda size: b"word " * (size // 5),
    "lines": lambda size: b"some words to a line\n" * (size // 21),
    "no spaces": lambda size: b"\xe5\xad\x97" * (size // 3),
    "nuls": lambda size: bytes(size),
}


LONG = {"bytes": ["one line", "nuls"], "words": ["one line", "lines"], "bpe": ["lines", "no spaces"]}


@pytest.mark.parametrize(("tokenizer", "kind"), [(name, kind) for name, kinds in LONG.items() for kind in kinds])
def test_preparing_holds_no_more_for_a_longer_file(tmp_path, monkeypatch, tokenizer, kind):
    """Python's own memory, which holds the text, its words and its tokens, less than three times the text of 600 kB."""
    monkeypatch.setattr(document_module, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(document_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(words_module, "LONGEST_WORD", 1000)
    monkeypatch.setattr(facts_module, "BLOCK", 100_000)
    monkeypatch.setattr(stream_module, "CHUNK", 10_000)
    path = put(tmp_path / "a.gz", gzip.compress(FILES[kind](600_000), 1))
    values = {"directory": str(tmp_path / "corpora"), **TOKENIZERS[tokenizer]}
    tracemalloc.start()
    try:
        corpus = prepare(DataConfig(source="files", train_path=str(path), **values), quiet=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert corpus.facts["splits"]["train"]["tokens"] > 100_000
    assert peak < 1_800_000


@pytest.mark.parametrize("places", [1, 700])
def test_a_word_of_any_length_is_refused(monkeypatch, places):
    monkeypatch.setattr(document_module, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(words_module, "LONGEST_WORD", 1000)
    data = DataConfig(tokenizer="words")
    assert make_tokenizer(data, [text_document("some", f"{'a' * 990} b")]).vocab_size == 4
    with pytest.raises(
        DataError, match=r"got 'words' and a word of more than 1,000 characters \('aaaa.*'\.\.\.\), expected"
    ):
        make_tokenizer(data, [text_document("some", " " * places + "a" * 1200 + " b")])


def test_bpe_holds_what_is_stated_for_a_file_and_line_of_any_length(tmp_path):
    """All of the process's memory, with what the tokenizers' library holds: some 200 bytes a token."""
    path = put(tmp_path / "a.gz", gzip.compress(b"some words " * 230_000, 1))
    data = DataConfig(source="files", train_path=str(path), directory=str(tmp_path / "corpora"), **TOKENIZERS["bpe"])
    program = f"""
import resource, tokenizers
from alibi_jax.config import DataConfig
from alibi_jax.data.corpus import prepare
from alibi_jax.data.write import PREPARING_MIB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare({data!r}, quiet=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / PREPARING_MIB)
"""
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(child.stdout) < 1
