import ast
import gzip
import hashlib
import json.decoder
import os
import pydoc_data.topics
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alibi_jax.config import DataConfig
from alibi_jax.data import document as document_module
from alibi_jax.data.sources import documents, splits_cut_from_training
from alibi_jax.data.splits import SPLITS, log_sizes, split_names
from alibi_jax.errors import DataError


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


def held_out(tmp_path):
    """A file of its own for validation and one for testing."""
    write(tmp_path / "own", {"valid.txt": "valid\n", "test.txt": "test\n"})
    return {f"{split}_path": str(tmp_path / f"own/{split}.txt") for split in ("valid", "test")}


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
    texts = {"b.txt": "b\n", "a/c.md": "c\n", "a/d.txt": "d\n", ".hidden/e.txt": "e\n", "a/.f": "f\n"}
    text = write(tmp_path / "text", texts)
    own = held_out(tmp_path)
    for path, expected in [
        (text / "b.txt", ["b\n"]),
        (text, ["c\n", "d\n", "b\n"]),
        (text / "**" / "*.txt", ["d\n", "b\n"]),
        (text / "*" / "d.*", ["d\n"]),
    ]:
        assert read_split(files(path, **own), "train") == expected
        assert read_split(files(path, **own), "test") == ["test\n"]


def test_a_glob_relative_to_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "a\n"})
    monkeypatch.chdir(tmp_path)
    assert read_split(files("*.txt", **held_out(tmp_path)), "train") == ["a\n"]


@pytest.mark.versions
def test_gzip_is_decompressed_and_line_ends_are_kept(tmp_path):
    text = "é\r\nsecond\n\n"
    write(tmp_path, {"a.txt.gz": gzip.compress(text.encode())})
    own = str(tmp_path / "a.txt.gz")
    assert read_split(files(own, **held_out(tmp_path)), "train") == [text]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab\n"), min_size=1, max_size=300))
def test_few_documents_are_cut_at_line_ends_where_each_split_has_some_and_lose_nothing(tmp_path, text):
    path = write(tmp_path, {"a.txt": text}) / "a.txt"
    parts = ["".join(texts) for texts in read(files(path)).values()]
    assert "".join(parts) == text
    first, second = (text.rfind("\n", 0, round(len(text) * goal)) + 1 for goal in (0.9, 0.95))
    if 0 < first < second < len(text):
        assert parts == [text[:first], text[first:second], text[second:]]


@pytest.mark.parametrize(
    ("texts", "sizes"),
    [
        (["word " * 80], (360, 20, 20)),
        (["a" * 599 + "\n"] * 4, (2160, 120, 120)),
        (["a" * 39], (35, 2, 2)),
    ],
    ids=["one line", "four lines", "one word"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_few_lines_are_cut_rather_than_leave_a_split_empty(tmp_path, texts, sizes, count):
    write(tmp_path, {f"{i}.txt": "".join(texts) for i in range(count)})
    got = {split: sum(map(len, texts)) for split, texts in read(files(tmp_path)).items()}
    assert got == {split: count * size for split, size in zip(SPLITS, sizes, strict=True)}


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
    names = [f"{i}.txt" for i in range(20)]
    _, second, *_ = sorted(name for name, split in split_names(names).items() if split == "train")
    write(tmp_path, dict.fromkeys(names, "a\n") | {second: b"\xff"})
    stream = documents(files(tmp_path), "train")
    assert "".join(next(stream)).startswith("a")
    with pytest.raises(DataError):
        "".join(next(stream))


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


@pytest.mark.parametrize("name", ["d.txt", "link.txt", "hard.txt", "folder/../d.txt", "d*.txt"])
@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_file_that_is_held_out_is_not_trained_on_whatever_its_name(tmp_path, caplog, name, count, split):
    text = write(tmp_path / "text", {f"{i}.txt": f"line {i}\n" * 40 for i in range(count)} | {"d.txt": "digits\n" * 40})
    (tmp_path / "folder").mkdir()
    (tmp_path / "text" / "folder").mkdir()
    if name in ("link.txt", "hard.txt"):
        (text.parent / name).symlink_to(text / "d.txt") if name == "link.txt" else (text.parent / name).hardlink_to(
            text / "d.txt"
        )
        path = text.parent / name
    else:
        path = text / name
    got = read(files(text, **{f"{split}_path": str(path)}))
    assert got[split] == ["digits\n" * 40]
    assert not any("digits" in document for other in SPLITS if other != split for document in got[other])
    assert sum(document.count("\n") for texts in got.values() for document in texts) == 40 * (count + 1)
    assert [record.message for record in caplog.records] == [
        f"data.train_path: 1 of {count + 1} files in {text} are held out by data.valid_path or data.test_path and not "
        "trained on, such as d.txt"
    ]


def test_a_held_out_folder_within_the_training_folder_is_not_trained_on(tmp_path):
    text = write(tmp_path, {f"{name}/{i}.txt": f"{name} {i}\n" for name in ("train", "held") for i in range(3)})
    got = read(files(text, valid_path=str(text / "held"), test_path=str(text / "held/0.txt")))
    assert got["train"] == [f"train {i}\n" for i in range(3)]
    assert got["valid"] == [f"held {i}\n" for i in range(3)]


def test_a_text_that_is_all_held_out_is_refused(tmp_path):
    text = write(tmp_path, {"a.txt": "a\n", "b.txt": "b\n"})
    with pytest.raises(DataError, match=r"data\.train_path: got '.*', whose files are all in data\.valid_path or"):
        read_split(files(text, valid_path=str(text)), "train")


def test_the_same_text_for_validation_and_testing_is_said_once(tmp_path, caplog):
    own = held_out(tmp_path)
    text = write(tmp_path / "text", {"a.txt": "a\n"})
    read(files(text, **own | {"test_path": own["valid_path"]}))
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "data.test_path: 1 files are those of data.valid_path, too"
    ]


CHARACTERS = {
    "words": "word " * 20_000,
    "no spaces": "字" * 50_000,
    "a line near": "字" * 44_000 + "\n" + "字" * 6_000,
    "a line far": "字" * 20_000 + "\n" + "字" * 29_999,
}


@pytest.mark.parametrize("kind", CHARACTERS)
@pytest.mark.parametrize("piece", [65_536, 999])
def test_a_text_of_long_lines_is_cut_near_the_twentieths(tmp_path, monkeypatch, kind, piece):
    monkeypatch.setattr(document_module, "PIECE_CHARACTERS", piece)
    text = CHARACTERS[kind]
    got = {split: "".join(texts) for split, texts in read(files(write(tmp_path, {"a.txt": text}) / "a.txt")).items()}
    assert "".join(got.values()) == text
    lengths = {split: len(part) for split, part in got.items()}
    if kind == "a line near":
        assert lengths == {"train": 44_001, "valid": 3_500, "test": 2_500}
    else:
        assert lengths == {
            split: round(len(text) * part) for split, part in zip(SPLITS, (0.9, 0.05, 0.05), strict=True)
        }
    assert kind != "words" or got["train"].endswith("word ")


def test_a_file_of_one_line_beside_another_is_cut_like_it(tmp_path):
    write(tmp_path, {"a.txt": "line\n" * 1_200, "b.txt": "word " * 80_000})
    got = {split: sum(map(len, texts)) for split, texts in read(files(tmp_path)).items()}
    assert got == {"train": 5_400 + 360_000, "valid": 300 + 20_000, "test": 300 + 20_000}


@pytest.mark.parametrize(
    ("sizes", "more", "level"),
    [
        ((90, 5, 5), {}, "INFO"),
        ((80, 18, 2), {}, "INFO"),
        ((90, 1, 9), {}, "WARNING"),
        ((50, 5, 45), {}, "WARNING"),
        ((90, 5, 45), {"test_path": "own"}, "INFO"),
        ((90, 1, 45), {"test_path": "own"}, "WARNING"),
    ],
    ids=["a twentieth", "within 4 times", "small", "large", "of its own", "small beside one of its own"],
)
def test_sizes_of_splits_are_logged_and_warned_of_when_far_from_a_twentieth(caplog, sizes, more, level):
    caplog.set_level("INFO", "alibi_jax")
    log_sizes(dict(zip(SPLITS, sizes, strict=True)), splits_cut_from_training(files("text", **more)))
    (record,) = caplog.records
    assert record.levelname == level
    assert record.message.startswith(f"text: train {sizes[0]}, valid {sizes[1]}, test {sizes[2]} bytes")


def test_a_folder_of_the_standard_library_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path, {f"module_{i}.py": "pass\n" for i in range(20)})
    (tmp_path / "broken.py").symlink_to("nowhere")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert len(read_split(DataConfig(), "train")) == 18

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"got Permission denied, expected a folder that can be read"):
        read_split(DataConfig(), "train")
