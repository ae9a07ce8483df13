import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alibi_jax.config import DataConfig
from alibi_jax.data import corpus as corpus_module
from alibi_jax.data.corpus import corpus_folder, open_corpus, prepare
from alibi_jax.data.sources import SPLITS, DataError, documents

ROOT = Path(__file__).parents[1]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / f"text/{i}.txt").write_text(f"text {i}\nof café\n" * (i + 1), encoding="utf-8")
    return DataConfig(source="files", train_path=str(tmp_path / "text"), directory=str(tmp_path / "corpora"))


def with_tokenizer(data, name):
    return replace(data, tokenizer=name, **({"bpe_vocab_size": 270} if name == "bpe" else {}))


def entries(data):
    return sorted(path.name for path in Path(data.directory).iterdir())


@pytest.mark.parametrize("name", ["bytes", "words", "bpe"])
def test_a_corpus_holds_every_document_in_order_and_counts_it(data, name):
    data = with_tokenizer(data, name)
    made = prepare(data, quiet=True)
    for split in SPLITS:
        texts = ["".join(document) for document in documents(data, split)]
        expected = np.concatenate([made.tokenizer.encode(text) for text in texts])
        np.testing.assert_array_equal(made.tokens(split), expected)
        facts = made.facts["splits"][split]
        assert facts["tokens"] == len(expected) and facts["documents"] == len(texts)
        assert facts["bytes"] == made.num_bytes(made.tokens(split))
        if name != "words":
            assert facts["bytes"] == sum(len(text.encode()) for text in texts)
    assert made.facts["vocab_size"] == made.tokenizer.vocab_size and made.facts["tokenizer"] == name
    assert made.folder == corpus_folder(data) and made.folder.name.startswith(f"files-{name}-")


def test_tokens_are_a_read_only_map_of_a_little_endian_file(data):
    made = prepare(data, quiet=True)
    tokens = made.tokens("train")
    assert tokens.dtype == "<u2" and not tokens.flags.writeable
    raw = (made.folder / "train.bin").read_bytes()
    assert [int.from_bytes(raw[i : i + 2], "little") for i in range(0, 40, 2)] == tokens[:20].tolist()


def test_a_vocabulary_above_65536_is_kept_in_32_bits(data):
    (Path(data.train_path) / "0.txt").write_text(" ".join(f"w{i}" for i in range(70_000)))
    data = replace(
        data,
        tokenizer="words",
        valid_path=str(Path(data.train_path) / "1.txt"),
        test_path=str(Path(data.train_path) / "2.txt"),
    )
    made = prepare(data, quiet=True)
    assert made.tokens("train").dtype == "<u4" and made.tokens("train").max() > 70_000
    assert "w69999" in made.tokenizer.decode(made.tokens("train"))


def test_opening_prepares_once_and_progress_goes_to_standard_error(data, capsys):
    first = open_corpus(data)
    captured = capsys.readouterr()
    assert "writing train: 36 documents" in captured.err and captured.out == ""
    assert open_corpus(data).fingerprint == first.fingerprint
    assert prepare(data).folder == first.folder
    assert capsys.readouterr().err == ""
    assert entries(data) == [first.folder.name]


def test_every_field_but_the_directory_makes_another_folder(data):
    elsewhere = replace(data, directory="elsewhere")
    assert corpus_folder(elsewhere).name == corpus_folder(data).name
    for change in ({"tokenizer": "bpe", "bpe_vocab_size": 500}, {"test_path": "x"}, {"tokenizer": "words"}):
        assert corpus_folder(replace(data, **change)).name != corpus_folder(data).name


def test_the_fingerprint_knows_the_text_its_boundaries_and_the_tokenizer(data):
    first = prepare(data, quiet=True).fingerprint
    assert prepare(data, force=True, quiet=True).fingerprint == first
    assert prepare(with_tokenizer(data, "words"), quiet=True).fingerprint != first
    one, two = (Path(data.train_path) / name for name in ("10.txt", "11.txt"))  # neighbours in the training text
    both = one.read_text() + two.read_text()
    assert both in "".join("".join(document) for document in documents(data, "train"))
    one.write_text(both[:5])
    two.write_text(both[5:])
    assert prepare(data, quiet=True).fingerprint == first  # what is there is opened
    assert prepare(data, force=True, quiet=True).fingerprint != first
    assert len(entries(data)) == 2


@pytest.mark.parametrize("failing", ["_write_split", "_sync", "_move"])
def test_a_failure_leaves_nothing_behind(data, monkeypatch, failing):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus_module, failing, fail)
        prepare(data, quiet=True)
    assert entries(data) == []
    assert open_corpus(data).facts["splits"]["train"]["documents"] == 36


def run(code, data):
    program = f"from alibi_jax.config import DataConfig\nfrom alibi_jax.data import corpus\ndata = {data!r}\n{code}"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_process_killed_before_the_rename_leaves_nothing_that_opens(data):
    code = "import os\ncorpus._move = lambda *_: os.kill(os.getpid(), 9)\ncorpus.prepare(data, quiet=True)"
    with run(code, data) as process:
        assert process.wait() == -signal.SIGKILL
    assert not corpus_folder(data).exists() and len(entries(data)) == 1
    assert prepare(data, quiet=True).folder == corpus_folder(data)


def test_two_processes_prepare_at_once(data):
    code = "print(corpus.prepare(data, quiet=True).fingerprint)"
    with run(code, data) as one, run(code, data) as two:
        fingerprints = {process.communicate()[0].strip() for process in (one, two)}
    assert fingerprints == {open_corpus(data).fingerprint}
    assert entries(data) == [corpus_folder(data).name]


@pytest.mark.parametrize("force", [False, True])
def test_whoever_finishes_first_wins_the_race(data, monkeypatch, force):
    write, others = corpus_module._write, []

    def overtaken(*arguments):
        monkeypatch.setattr(corpus_module, "_write", write)
        others.append(prepare(data, quiet=True))
        write(*arguments)

    monkeypatch.setattr(corpus_module, "_write", overtaken)
    assert prepare(data, force=force, quiet=True).fingerprint == others[0].fingerprint
    assert entries(data) == [corpus_folder(data).name]


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BREAKAGES = {
    "truncated": (lambda f: os.truncate(f / "test.bin", 7), r"test\.bin: got 7 bytes, expected {size} bytes"),
    "oversized": (lambda f: os.truncate(f / "test.bin", 10**6), r"test\.bin: got 1000000 bytes, expected {size} bytes"),
    "no tokens": (lambda f: (f / "valid.bin").unlink(), r"valid\.bin: got no such file, expected \d+ bytes"),
    "no facts": (lambda f: (f / "corpus.json").unlink(), r"corpus\.json: got a file .*No such file"),
    "half facts": (lambda f: os.truncate(f / "corpus.json", 20), r"corpus\.json: got a file that cannot be read"),
    "format": (lambda f: edit(f / "corpus.json", format=0), r"corpus\.json: got facts of another format"),
    "no tokenizer": (lambda f: (f / "bytes.txt").unlink(), r"got no tokenizer, expected one of bytes\.txt"),
    "vocabulary": (lambda f: edit(f / "corpus.json", vocab_size=99), r"got a tokenizer of 256 tokens, expected 99"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_corpus_that_is_not_whole_is_refused_and_made_again_with_force(data, breakage):
    made = prepare(data, quiet=True)
    size = (made.folder / "test.bin").stat().st_size
    damage, message = BREAKAGES[breakage]
    damage(made.folder)
    with pytest.raises(DataError, match=message.format(size=size) + r".*Prepare the corpus again with --force"):
        open_corpus(data)
    assert prepare(data, force=True, quiet=True).fingerprint == made.fingerprint


@pytest.mark.parametrize("place", [0, -1])
def test_tokens_outside_the_vocabulary_are_refused(data, place, monkeypatch):
    monkeypatch.setattr(corpus_module, "CHECKED_TOKENS", 10)
    path = prepare(data, quiet=True).folder / "train.bin"
    tokens = np.fromfile(path, "<u2")
    tokens[place] = 256
    tokens.tofile(path)
    with pytest.raises(DataError, match=r"train\.bin: got token 256, expected tokens below the vocabulary of 256"):
        open_corpus(data)


def test_an_empty_split_is_refused_before_anything_is_kept(tmp_path):
    (tmp_path / "a.txt").write_text("a single line")
    data = DataConfig(source="files", train_path=str(tmp_path / "a.txt"), directory=str(tmp_path / "corpora"))
    with pytest.raises(DataError, match=r"train split of files .*: got 0 tokens, expected text\. Give more of it"):
        prepare(data, quiet=True)
    assert entries(data) == []


def test_a_directory_that_cannot_be_written_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"data\.directory: got '.*file/corpora' \(Not a directory\), expected a folder"
    ):
        prepare(replace(data, directory=str(tmp_path / "file/corpora")), quiet=True)
