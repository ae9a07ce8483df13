import errno
import fcntl
import logging
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from alibi_jax.config import DataConfig
from alibi_jax.data.aside import LOCK, move, preparing
from alibi_jax.data.corpus import open_corpus, prepare, verify
from alibi_jax.data.names import corpus_folders
from alibi_jax.errors import DataError

NAME = "files-bytes-0123456789ab"


@pytest.fixture
def data(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a line of text\n" * 4000)
    return DataConfig(source="files", train_path=str(text), directory=str(tmp_path / "corpora"))


def left(directory, *names):
    for name in names:
        (directory / name).mkdir(parents=True)
        (directory / name / "train.bin").write_bytes(b"half")


def entries(directory):
    return sorted(path.name for path in Path(directory).iterdir() if path.name != LOCK)


def test_what_killed_preparations_left_is_removed_and_nothing_else(tmp_path, caplog):
    caplog.set_level(logging.INFO, "alibi_jax")
    others = [".git", ".mine-01234567", NAME, f"{NAME}-0123456789ab", f".{NAME}", ".stdlib-bytes-x-01234567"]
    left(tmp_path, *others, *(f".{NAME}-{i:08x}" for i in range(5)), f".{NAME}-0123456789ab-00000009-old")
    (tmp_path / f".{NAME}-99999999").symlink_to(tmp_path / NAME)
    with preparing(tmp_path):
        assert entries(tmp_path) == sorted([*others, f".{NAME}-99999999"])
    assert caplog.text.count("which a killed preparation left") == 6
    assert (tmp_path / NAME / "train.bin").exists()


def test_nothing_is_removed_while_another_process_prepares(tmp_path):
    left(tmp_path, f".{NAME}-00000001")
    with open(tmp_path / LOCK, "a+") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with preparing(tmp_path):
            assert entries(tmp_path) == [f".{NAME}-00000001"]
    with preparing(tmp_path), preparing(tmp_path):  # two of this process hold it, too
        assert entries(tmp_path) == []


def test_nothing_is_removed_where_there_are_no_locks(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    left(tmp_path, f".{NAME}-00000001")
    monkeypatch.setattr("fcntl.flock", none)
    with preparing(tmp_path):
        assert entries(tmp_path) == [f".{NAME}-00000001"]


def test_what_belongs_to_another_user_stops_nobody(tmp_path, monkeypatch, caplog):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    left(tmp_path, f".{NAME}-00000001", f".{NAME}-0123456789ab-00000009-old")
    (tmp_path / LOCK).touch()
    open_it = os.open
    monkeypatch.setattr("os.open", lambda path, flags, *mode: refused() if flags & os.O_RDWR else open_it(path, flags))
    monkeypatch.setattr("shutil.rmtree", refused)
    monkeypatch.setattr(Path, "rename", refused)
    with preparing(tmp_path):
        assert len(entries(tmp_path)) == 2
    assert caplog.text.count("cannot be repaired: Permission denied") == 2


@pytest.mark.parametrize("text_is_there", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_replacement_killed_between_its_renames_loses_nothing(data, text_is_there, named):
    corpus = prepare(data, quiet=True)
    corpus.folder.rename(corpus.folder.with_name(f".{corpus.folder.name}-01234567-old"))
    if not text_is_there:
        Path(data.train_path).unlink()
    assert open_corpus(data, corpus.fingerprint if named else None).folder == corpus.folder
    assert entries(data.directory) == [corpus.folder.name] and verify(data)


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS])
def test_a_rename_that_fails_leaves_what_was_there(tmp_path, monkeypatch, error):
    left(tmp_path, NAME, "aside")
    rename = Path.rename

    def failing(self, target):
        if self.name == "aside":
            raise OSError(error, os.strerror(error))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match=os.strerror(error)):
        move(tmp_path / "aside", tmp_path / NAME, True)
    assert entries(tmp_path) == ["aside", NAME]


def limited(size):
    """A context in which no file grows past `size` bytes: the kernel refuses, as it does on a full disk."""

    class Limited:
        def __enter__(self):
            self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

        def __exit__(self, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    return Limited()


@pytest.mark.parametrize("tokenizer", ["bytes", "words", "bpe"])
@pytest.mark.parametrize("size", [1, 200, 50_000])
def test_a_write_that_the_disk_refuses_names_the_folder_and_the_way_on(data, tokenizer, size):
    data = replace(data, tokenizer=tokenizer, bpe_vocab_size=260 if tokenizer == "bpe" else 1024)
    message = (
        r"data\.directory: got '.*corpora' \(File too large\), expected .* Free the disk, allow writing there, or pass"
    )
    if (tokenizer, size) in (("words", 50_000), ("bpe", 50_000)):
        size = 2000  # their token files are small
    with limited(size), pytest.raises(DataError, match=message):
        prepare(data, quiet=True)
    assert entries(data.directory) == []
    assert open_corpus(data).facts["splits"]["train"]["documents"] == 1


FULL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]


@pytest.mark.parametrize("error", FULL, ids=[errno.errorcode[error] for error in FULL])
@pytest.mark.parametrize("at", ["write.keep_text", "facts.write_atomically", "aside._sync", "write.file_checksums"])
def test_every_error_of_the_disk_is_reported_alike(data, monkeypatch, error, at):
    def fail(*_, **__):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(f"alibi_jax.data.{at}", fail)
        with pytest.raises(DataError, match=rf"got '.*corpora' \({os.strerror(error)}\), expected a folder"):
            prepare(data, quiet=True)
    assert entries(data.directory) == [] and not corpus_folders(data)


def test_an_error_of_another_file_is_not_laid_to_the_disk(data, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/a/text")

    monkeypatch.setattr("alibi_jax.data.write.write_tokens", fail)
    with pytest.raises(OSError, match=r"'/a/text'"):
        prepare(data, quiet=True)


def test_a_corpus_that_is_there_is_used_where_nothing_can_be_written(data, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "alibi_jax")
    corpus = prepare(data, quiet=True)
    os.utime(data.train_path)
    caplog.clear()

    def refused(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("alibi_jax.data.facts.write_atomically", refused)
    monkeypatch.setattr("alibi_jax.data.corpus.preparing", refused)
    assert open_corpus(data).folder == corpus.folder and not caplog.text
    assert prepare(data).folder == corpus.folder
    assert "the times of the text were not kept" in caplog.text


def test_a_bucket_is_no_folder_of_corpora(data):
    with pytest.raises(DataError, match=r"data\.directory: got 'gs://b/corpora', expected a folder"):
        open_corpus(replace(data, directory="gs://b/corpora"))
    assert not Path("gs:").exists()


def test_a_folder_in_which_no_lock_can_be_made_is_said_to_be_read_only(tmp_path, monkeypatch):
    real = os.open

    def refuses_new(path, flags, *mode):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuses_new)
    with pytest.raises(DataError, match=r"data\.directory: got .* \(Permission denied\)"), preparing(tmp_path):
        pass
