import os
import socket
from pathlib import Path

import pytest

from alibi_jax.data.paths import text_files
from alibi_jax.errors import DataError


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return folder


def names(path):
    actual = text_files(str(path))
    assert all(file.is_file() for _, file in actual)
    return [name for name, _ in actual]


def test_links_are_followed_by_folder_and_glob_alike(tmp_path):
    make(tmp_path / "text", "a.txt", "b/c.txt")
    make(tmp_path / "elsewhere", "d.txt", "e/f.txt")
    (tmp_path / "text/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text/one.txt").symlink_to(tmp_path / "elsewhere/e/f.txt")
    for path in (tmp_path / "text", tmp_path / "text/**", tmp_path / "text/**/*.txt"):
        assert names(path) == ["a.txt", "b/c.txt", "link/d.txt", "one.txt"]
    assert names(tmp_path / "text/*/*.txt") == ["b/c.txt", "link/d.txt"]
    assert names(tmp_path / "text/*/*/*.txt") == ["link/e/f.txt"]
    (tmp_path / "other").symlink_to(tmp_path / "text")
    assert names(tmp_path / "other") == names(tmp_path / "text")


@pytest.mark.parametrize("path", ["", "**", "**/*", "**/*.txt"])
def test_a_loop_of_links_is_gone_through_once(tmp_path, path):
    make(tmp_path, "a.txt", "b/c.txt")
    (tmp_path / "b/up").symlink_to(tmp_path)
    (tmp_path / "b/here").symlink_to(".")
    assert names(tmp_path / path) == ["a.txt", "b/c.txt"]


def test_a_file_of_two_names_is_read_once_by_the_one_without_a_link(tmp_path, caplog):
    make(tmp_path, "b.txt", "c.txt")
    (tmp_path / "a.txt").symlink_to("b.txt")
    (tmp_path / "d.txt").hardlink_to(tmp_path / "c.txt")
    (tmp_path / "e").symlink_to(tmp_path)
    assert names(tmp_path) == ["b.txt", "c.txt"] == names(tmp_path / "*.txt")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/d.txt: the same file as {tmp_path}/c.txt, which is read once",
        f"{tmp_path}/a.txt: the same file as {tmp_path}/b.txt, which is read once",
    ]


@pytest.mark.parametrize("path", ["", "**/*.txt", "*/*.txt"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, path):
    make(tmp_path, "a.txt", "closed/b.txt")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        DataError, match=r"closed: got Permission denied, expected files and folders that can be read\. Check"
    ):
        text_files(str(tmp_path / path))
    assert names(tmp_path / "*.txt") == ["a.txt"]  # needs nothing from it


@pytest.mark.parametrize("path", ["", "*", "**/*.txt"])
@pytest.mark.parametrize("target", ["nowhere", "loop.txt"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, path, target):
    make(tmp_path, "a.txt")
    (tmp_path / "loop.txt").symlink_to(target)
    with pytest.raises(
        DataError, match=r"loop\.txt: got a link that leads nowhere, expected .* repair it or remove it"
    ):
        text_files(str(tmp_path / path))
    (tmp_path / "loop.txt").rename(tmp_path / ".#lock")  # hidden, as an editor's
    assert names(tmp_path / path) == ["a.txt"]


def test_fifos_sockets_and_devices_are_passed_over_by_name(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "a.txt"))
    os.mkfifo("fifo.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        for path in (tmp_path, tmp_path / "*.txt"):
            assert names(path) == ["a.txt"]
        for name in ("fifo.txt", "zero.txt", "socket.txt"):
            assert names(tmp_path / name) == []
    assert sorted(record.message.partition(":")[0] for record in caplog.records) == [
        f"{tmp_path}/{name}.txt" for name in ("fifo", "socket", "zero")
    ]


@pytest.mark.parametrize("folder", ["b[1]", "b[12]/c?", "*", "b**"])
def test_glob_characters_in_the_name_of_what_exists_are_no_pattern(tmp_path, folder):
    make(tmp_path / "text", f"{folder}/a.txt", f"{folder}/d[3].txt", "other/a.txt", "b1/a.txt")
    place = tmp_path / "text" / folder
    assert names(place) == ["a.txt", "d[3].txt"]
    assert names(place / "*.txt") == ["a.txt", "d[3].txt"]
    assert names(place / "d[3].txt") == ["d[3].txt"]
    assert names(place / "[!d]*.txt") == ["a.txt"]


def test_patterns_match_as_the_shells_do(tmp_path):
    make(tmp_path, "a/b/c.txt", "a/b/d.md", "a/e.txt", "f.txt", "A.txt", ".h/i.txt", "a/.j.txt")
    assert names(tmp_path / "**/b/*") == ["a/b/c.txt", "a/b/d.md"]
    assert names(tmp_path / "a/**/*.txt") == ["b/c.txt", "e.txt"]
    assert names(tmp_path / "**/a/**") == ["a/b/c.txt", "a/b/d.md", "a/e.txt"]
    assert names(tmp_path / "**/e.txt/**") == []
    assert names(tmp_path / "[a-f].t?t") == ["f.txt"]
    assert names(tmp_path / "*/nothing") == []


def test_a_name_that_is_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("a\n")
    make(tmp_path, "b.txt")
    assert names(tmp_path) == ["b.txt", os.fsdecode(b"caf\xe9.txt")]


def test_a_tilde_is_the_home_folder_where_no_such_name_is(tmp_path, monkeypatch):
    make(tmp_path / "home", "text/a.txt")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert names("~/text") == ["a.txt"] == names("~/text/*.txt")
    make(tmp_path, "~/text/b.txt")
    assert names("~/text") == ["b.txt"]


@pytest.mark.parametrize("path", ["a" * 300, "a/" * 5000, "nul\0"], ids=["long name", "long path", "NUL"])
def test_a_path_that_cannot_be_is_refused(path):
    with pytest.raises(DataError, match=r"got .*(too long|null).*, expected files and folders that can be read"):
        text_files(path)


def test_deep_folders(tmp_path):
    make(tmp_path, "d/" * 400 + "a.txt")
    assert names(tmp_path) == ["d/" * 400 + "a.txt"] == names(tmp_path / "**/a.txt")
