import ast
import gzip
import hashlib
import json.decoder
import pydoc_data.topics
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alibi_jax.config import DataConfig
from alibi_jax.data.sources import SPLITS, DataError, documents, split_names


def files(path, **more):
    return DataConfig(source="files", train_path=str(path), **more)


def read_split(data, split):
    return ["".join(document) for document in documents(data, split)]


def read(data):
    return {split: read_split(data, split) for split in SPLITS}


def write(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


@pytest.fixture(scope="module")
def stdlib():
    return read(DataConfig())


def test_stdlib_is_python_split_about_90_5_5_with_nothing_twice(stdlib):
    texts = [text for split in SPLITS for text in stdlib[split]]
    assert len(texts) > 300 and len(set(texts)) >= len(texts) - 3  # a few tiny __init__ files may be alike
    for split in ("valid", "test"):
        assert len(stdlib[split]) == len(texts) // 20
    ast.parse(texts[0])


@pytest.mark.parametrize("module", [json.decoder, pydoc_data.topics])
def test_stdlib_holds_the_files_that_modules_are_loaded_from(stdlib, module):
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert sum(stdlib[split].count(text) for split in SPLITS) == 1


def test_stdlib_comes_in_the_same_order_again(stdlib):
    assert stdlib["valid"] == read_split(DataConfig(), "valid")


def test_stdlib_leaves_out_tests_installed_packages_and_what_differs_by_install(stdlib, tmp_path, monkeypatch):
    kept = [f"module_{i}.py" for i in range(20)]
    left_out = ["test/a.py", "json/tests/a.py", "idlelib/idle_test/a.py", "site-packages/a.py", "__pycache__/a.py"]
    left_out += ["_sysconfigdata__linux.py", "config-3.11/python-config.py", "tkinter/a.py", "README.txt"]
    write(tmp_path, {name: f"'{name}'\n" for name in kept + left_out} | {"empty.py": ""})
    write(tmp_path, {"latin.py": b"# coding: latin-1\n'\xe9'\n", "bad.py": b"'\xe9'\n"})
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    got = read(DataConfig())
    texts = [text for split in SPLITS for text in got[split]]
    assert got["train"] == sorted(got["train"])  # here the texts sort as their paths do
    assert sorted(texts) == sorted([f"'{name}'\n" for name in kept] + ["# coding: latin-1\n'é'\n"])


def test_a_python_without_its_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"got 'stdlib' with 0 source files .* use --data.source files"):
        next(documents(DataConfig(), "train"))


@settings(max_examples=30)
@given(st.sets(st.text(max_size=20), min_size=20, max_size=100))
def test_split_names_ranks_by_sha256_and_leaves_no_split_empty(names):
    splits = split_names(sorted(names))
    assert splits == split_names(sorted(names, reverse=True))
    members = {split: {name for name in names if splits[name] == split} for split in SPLITS}
    assert len(members["test"]) == len(members["valid"]) == len(names) // 20
    highest = {split: max(hashlib.sha256(n.encode()).hexdigest() for n in members[split]) for split in SPLITS}
    assert highest["test"] < highest["valid"] < highest["train"]


def test_files_takes_a_file_a_folder_or_a_glob_in_the_order_of_the_names(tmp_path):
    write(tmp_path, {"b.txt": "b\n", "a/c.md": "c\n", "a/d.txt": "d\n", ".hidden/e.txt": "e\n", "a/.f": "f\n"})
    own = {"valid_path": str(tmp_path / "b.txt"), "test_path": str(tmp_path / "b.txt")}
    for path, expected in [
        (tmp_path / "b.txt", ["b\n"]),
        (tmp_path, ["c\n", "d\n", "b\n"]),
        (tmp_path / "**" / "*.txt", ["d\n", "b\n"]),
        (tmp_path / "*" / "d.*", ["d\n"]),
    ]:
        assert read_split(files(path, **own), "train") == expected
        assert read_split(files(path, **own), "test") == ["b\n"]


def test_a_glob_relative_to_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "a\n"})
    monkeypatch.chdir(tmp_path)
    assert read_split(files("*.txt", valid_path="a.txt", test_path="a.txt"), "train") == ["a\n"]


def test_gzip_is_decompressed_and_line_ends_are_kept(tmp_path):
    text = "é\r\nsecond\n\n"
    write(tmp_path, {"a.txt.gz": gzip.compress(text.encode())})
    own = str(tmp_path / "a.txt.gz")
    assert read_split(files(own, valid_path=own, test_path=own), "train") == [text]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab\n"), min_size=1, max_size=300))
def test_few_documents_are_cut_at_line_ends_and_lose_nothing(tmp_path, text):
    path = write(tmp_path, {"a.txt": text}) / "a.txt"
    parts = ["".join(texts) for texts in read(files(path)).values()]
    assert "".join(parts) == text
    for part in parts[:2]:
        assert part == "" or part.endswith("\n")


def test_a_hundred_lines_are_cut_90_5_5(tmp_path):
    path = write(tmp_path, {"a.txt": "line\n" * 100}) / "a.txt"
    assert {split: "".join(texts).count("\n") for split, texts in read(files(path)).items()} == {
        "train": 90,
        "valid": 5,
        "test": 5,
    }


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("own", ["valid", "test"])
def test_a_held_out_split_with_its_own_path_takes_nothing_from_the_training_text(tmp_path, count, own):
    write(tmp_path, {f"train/{i:02}.txt": f"line {i}\n" * 100 for i in range(count)} | {"own.txt": "own\n"})
    got = read(files(tmp_path / "train", **{f"{own}_path": str(tmp_path / "own.txt")}))
    other = "test" if own == "valid" else "valid"
    assert got[own] == ["own\n"]
    lines = sum(text.count("\n") for text in got["train"]), sum(text.count("\n") for text in got[other])
    assert lines == (95 * count, 5 * count)


def test_many_documents_are_split_whole(tmp_path):
    texts = {f"{i}.txt": f"text {i}\n" for i in range(40)}
    got = read(files(write(tmp_path, texts)))
    assert sorted(got["train"] + got["valid"] + got["test"]) == sorted(texts.values())
    assert [len(got[split]) for split in SPLITS] == [36, 2, 2]


def test_documents_are_read_one_at_a_time(tmp_path):
    write(tmp_path, {"a.txt": "a\n" * 100, "b.txt": b"\xff"})
    stream = documents(files(tmp_path), "train")
    assert "".join(next(stream)).startswith("a")
    with pytest.raises(DataError):
        next(stream)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: got an empty file, expected text\. Remove"),
        (
            "a.txt",
            "é\n".encode() + b"\xff",
            r"a\.txt: got byte 0xff at byte offset 3, .* UTF-8 text\. Convert",
        ),
        (
            "a.gz",
            gzip.compress(b"text" * 99, mtime=0)[:-9],
            r"a\.gz: got bytes that do not decompress .* Copy the file again",
        ),
        ("a.gz", b"no gzip", r"a\.gz: got bytes that do not decompress .*Not a gzipped file"),
        ("a.gz", gzip.compress(b"\xff", mtime=0), r"a\.gz: got byte 0xff at byte offset 0"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, message):
    write(tmp_path, {name: content})
    with pytest.raises(DataError, match=message):
        read_split(files(tmp_path), "train")


@pytest.mark.parametrize("path", ["missing.txt", "empty", "*.none"])
def test_a_path_that_matches_nothing_is_refused(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"data\.train_path: got '.*', which matches no file, expected a file"):
        read_split(files(tmp_path / path), "valid")
    with pytest.raises(DataError, match=r"data\.test_path: got '.*', which matches no file"):
        read_split(files(tmp_path / "a.txt", test_path=str(tmp_path / path)), "test")


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A data set of five texts, prepared as array_record; its builder is not registered, as on a user's machine."""
    import numpy as np
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    with tfds.core.registered.skip_registration():

        class TinyTexts(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                text, number = tfds.features.Text(), tfds.features.Scalar(dtype=np.int64)
                features = tfds.features.FeaturesDict({"text": text, "number": number})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, download_manager):
                return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

            def _generate_examples(self, count):
                for i in range(count):
                    yield i, {"text": f"é {count} {i}", "number": i}

    TinyTexts(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def tiny(folder, **more):
    splits = ("train[:60%]", "validation", "train[60%:]")
    values = {"tfds_name": "tiny_texts", "tfds_dir": str(folder), "tfds_splits": splits} | more
    return DataConfig(source="tfds", **values)


def test_tfds_reads_splits_and_slices_without_tensorflow(tfds_folder):
    got = read(tiny(tfds_folder))
    assert sorted(got["train"] + got["test"]) == [f"é 5 {i}" for i in range(5)]
    assert len(got["train"]) == 3 and sorted(got["valid"]) == ["é 2 0", "é 2 1"]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tfds_text": "txt"}, r"data\.tfds_text: got 'txt', expected one of number, text\. Pass --data"),
        ({"tfds_text": "number"}, r"tiny_texts, split .*, feature number: got int.*, expected text"),
        (
            {"tfds_name": "nothing_here"},
            r"got 'nothing_here', .* not found.* tfds build nothing_here --file_format=array_r",
        ),
        ({"tfds_name": "lm1b"}, r"got 'lm1b', .* expected a data set prepared .* tfds build lm1b .*--data\.tfds_dir"),
        ({"tfds_splits": ("nope", "validation", "test")}, r"split 'nope' .*Unknown split 'nope'"),
    ],
)
def test_tfds_errors_say_what_to_do(tfds_folder, change, message):
    with pytest.raises(DataError, match=message):
        next(documents(tiny(tfds_folder, **change), "train"))
