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
from alibi_jax.data.corpus import open_corpus, prepare, summary, verify
from alibi_jax.data.facts import read_facts, write_facts
from alibi_jax.data.names import corpus_folder, corpus_folders
from alibi_jax.data.sources import documents
from alibi_jax.data.splits import SPLITS
from alibi_jax.errors import DataError

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
    return sorted(path.name for path in Path(data.directory).iterdir() if path.name != ".lock")


@pytest.mark.parametrize("name", ["bytes", "words", "bpe"])
@pytest.mark.versions
def test_a_corpus_holds_every_document_in_order_and_counts_it(data, name):
    data = with_tokenizer(data, name)
    corpus = prepare(data, quiet=True)
    for split in SPLITS:
        texts = ["".join(document) for document in documents(data, split)]
        expected = np.concatenate([corpus.tokenizer.encode(text) for text in texts])
        np.testing.assert_array_equal(corpus.tokens(split), expected)
        facts = corpus.facts["splits"][split]
        assert facts["tokens"] == len(expected) and facts["documents"] == len(texts)
        assert facts["bytes"] == corpus.num_bytes(split)
        if name != "words":
            assert facts["bytes"] == sum(len(text.encode()) for text in texts)
    assert corpus.facts["vocab_size"] == corpus.tokenizer.vocab_size and corpus.facts["tokenizer"] == name
    assert corpus.folder == corpus_folder(data, corpus.fingerprint) and corpus.folder.name.startswith(f"files-{name}-")


def test_unknown_words_count_the_bytes_they_were_written_with(tmp_path):
    texts = {"train": "a <unk> b\n" * 9, "valid": "a café <unk> x\n\nlonger b <unk>", "test": "a\n"}
    for split, text in texts.items():
        (tmp_path / split).write_text(text, encoding="utf-8")
    paths = {f"{split}_path": str(tmp_path / split) for split in SPLITS}
    corpus = prepare(DataConfig("files", **paths, tokenizer="words", directory=str(tmp_path / "corpora")), quiet=True)
    words = "a café <unk> x \n \n longer b <unk> \n".split(" ")
    tokens = corpus.tokens("valid")
    assert len(tokens) == len(words) == 10
    for count in range(11):
        written = "".join(f" {word}" for word in words[:count])
        assert corpus.num_bytes("valid", count) == len(written.encode()), count
        assert corpus.num_unknown("valid", count) == len({"café", "x", "longer"} & set(words[:count]))
    facts = corpus.facts["splits"]
    assert facts["valid"]["bytes"] == corpus.num_bytes("valid") and facts["valid"]["unknown"] == 3
    assert facts["train"]["unknown"] == facts["test"]["unknown"] == 0
    assert corpus.tokenizer.decode(corpus.tokens("train")) == " a <unk> b \n" * 9, "a written <unk> is text"
    assert facts["train"]["bytes"] == len(" a <unk> b \n") * 9
    assert "valid 10 tokens (30.00% unknown words), test 2 tokens; vocabulary 4" in summary(corpus)


def test_tokens_are_a_read_only_map_of_a_little_endian_file(data):
    corpus = prepare(data, quiet=True)
    tokens = corpus.tokens("train")
    assert tokens.dtype == "<u2" and not tokens.flags.writeable
    raw = (corpus.folder / "train.bin").read_bytes()
    assert [int.from_bytes(raw[i : i + 2], "little") for i in range(0, 40, 2)] == tokens[:20].tolist()


def test_a_vocabulary_above_65536_is_kept_in_32_bits(data):
    (Path(data.train_path) / "0.txt").write_text(" ".join(f"w{i}" for i in range(70_000)))
    data = replace(
        data,
        tokenizer="words",
        valid_path=str(Path(data.train_path) / "1.txt"),
        test_path=str(Path(data.train_path) / "2.txt"),
    )
    corpus = prepare(data, quiet=True)
    assert corpus.tokens("train").dtype == "<u4" and corpus.tokens("train").max() > 70_000
    assert "w69999" in corpus.tokenizer.decode(corpus.tokens("train"))


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
    assert corpus_folder(elsewhere, "f").name == corpus_folder(data, "f").name
    for change in ({"tokenizer": "bpe", "bpe_vocab_size": 500}, {"test_path": "x"}, {"tokenizer": "words"}):
        assert corpus_folder(replace(data, **change), "f").name != corpus_folder(data, "f").name


def test_the_fingerprint_knows_the_text_its_boundaries_and_the_tokenizer(data):
    first = prepare(data, quiet=True).fingerprint
    assert prepare(data, force=True, quiet=True).fingerprint == first
    assert prepare(with_tokenizer(data, "words"), quiet=True).fingerprint != first
    one, two = (Path(data.train_path) / name for name in ("10.txt", "11.txt"))  # neighbours in the training text
    both = one.read_text() + two.read_text()
    assert both in "".join("".join(document) for document in documents(data, "train"))
    one.write_text(both[:5])
    two.write_text(both[5:])
    assert prepare(data, quiet=True).fingerprint != first
    assert len(entries(data)) == 3


@pytest.mark.parametrize("failing", ["write.write_tokens", "write.keep_text", "aside._sync", "corpus.move"])
def test_a_failure_leaves_nothing_behind(data, monkeypatch, failing):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"alibi_jax.data.{failing}", fail)
        prepare(data, quiet=True)
    assert entries(data) == []
    assert open_corpus(data).facts["splits"]["train"]["documents"] == 36


def run(code, data):
    program = f"from alibi_jax.config import DataConfig\nfrom alibi_jax.data import corpus\ndata = {data!r}\n{code}"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_process_killed_before_the_rename_leaves_nothing_that_opens(data):
    code = "import os\ncorpus.move = lambda *_: os.kill(os.getpid(), 9)\ncorpus.prepare(data, quiet=True)"
    with run(code, data) as process:
        assert process.wait() == -signal.SIGKILL
    (left,) = entries(data)
    assert left.startswith(".files-bytes-") and not corpus_folders(data)
    corpus = prepare(data, quiet=True)
    assert entries(data) == [corpus.folder.name], "what a killed preparation left is removed by the next"


def test_two_processes_prepare_at_once(data):
    code = "print(corpus.prepare(data, quiet=True).fingerprint)"
    with run(code, data) as one, run(code, data) as two:
        fingerprints = {process.communicate()[0].strip() for process in (one, two)}
    assert fingerprints == {open_corpus(data).fingerprint}
    assert entries(data) == [open_corpus(data).folder.name]


@pytest.mark.parametrize("force", [False, True])
def test_whoever_finishes_first_wins_the_race(data, monkeypatch, force):
    write, others = corpus_module.write_corpus, []

    def overtaken(*arguments):
        monkeypatch.setattr(corpus_module, "write_corpus", write)
        others.append(prepare(data, quiet=True))
        return write(*arguments)

    monkeypatch.setattr(corpus_module, "write_corpus", overtaken)
    assert prepare(data, force=force, quiet=True).fingerprint == others[0].fingerprint
    assert entries(data) == [others[0].folder.name]


def edit(path, **changes):
    """Facts changed by hand: their checksum is no longer theirs."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge(folder, change):
    """Facts changed by somebody who sets the checksum right as well."""
    facts = read_facts(folder / "corpus.json", 2)
    change(facts)
    write_facts(folder / "corpus.json", facts)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def swap(path, line):
    """Two neighbouring lines exchanged: the same size."""
    lines = path.read_text().split("\n")
    lines[line], lines[line + 1] = lines[line + 1], lines[line]
    path.write_text("\n".join(lines))


def in_place_of(path):
    path.unlink()
    path.mkdir()


UNREADABLE = r"corpus\.json: got a file that cannot be read"
BREAKAGES = {
    "truncated": (lambda f: os.truncate(f / "test.bin", 7), r"test\.bin: got 7 bytes, expected {size} bytes"),
    "oversized": (lambda f: os.truncate(f / "test.bin", 10**6), r"test\.bin: got 1000000 bytes, expected {size} bytes"),
    "zeroed": (lambda f: zero(f / "test.bin"), r"test\.bin: got other content"),
    "first bit": (lambda f: flip(f / "valid.bin", 0), r"valid\.bin: got other content .* than was written there"),
    "last bit": (lambda f: flip(f / "train.bin", -1), r"train\.bin: got other content in bytes 0 to 4,194,304"),
    "no tokens": (lambda f: (f / "valid.bin").unlink(), r"valid\.bin: got no such file, expected \d+ bytes"),
    "a folder": (
        lambda f: in_place_of(f / "valid.bin"),
        r"valid\.bin: got a file that cannot be read \(Is a directory",
    ),
    "no facts": (lambda f: (f / "corpus.json").unlink(), r"corpus\.json: got a file .*No such file"),
    "facts in a folder": (lambda f: in_place_of(f / "corpus.json"), UNREADABLE),
    "half facts": (lambda f: os.truncate(f / "corpus.json", 20), UNREADABLE),
    "a mark": (lambda f: (f / "corpus.json").write_text("{}", "utf-8-sig"), UNREADABLE),
    "not UTF-8": (lambda f: (f / "corpus.json").write_bytes(b"\xff"), UNREADABLE),
    "too deep": (lambda f: (f / "corpus.json").write_text("[" * 10**5), UNREADABLE),
    "a huge number": (lambda f: (f / "corpus.json").write_text("9" * 5000), UNREADABLE),
    "a list": (lambda f: (f / "corpus.json").write_text("[NaN]"), r"corpus\.json: got facts of another format"),
    "format": (lambda f: edit(f / "corpus.json", format=0), r"corpus\.json: got facts of another format"),
    "edited": (lambda f: edit(f / "corpus.json", dtype="<f2"), r"corpus\.json: got facts that were changed since"),
    "no text": (lambda f: (f / "text.json").unlink(), r"text\.json: got a file .*No such file"),
    "edited text": (lambda f: edit(f / "text.json", files=[]), r"text\.json: got facts that were changed since"),
    "no tokenizer": (lambda f: (f / "bytes.txt").unlink(), r"bytes\.txt: got no such file"),
    "dtype": (lambda f: forge(f, lambda c: c.update(dtype="<f2")), r"got tokens '<f2' of a vocabulary of 256"),
    "vocabulary": (
        lambda f: forge(f, lambda c: c.update(vocab_size=99)),
        r"got a bytes tokenizer of 256 .*, expected .* 99",
    ),
    "no splits": (lambda f: forge(f, lambda c: c.update(splits={})), r"got splits of other names or kinds"),
    "a number": (lambda f: forge(f, lambda c: c.update(fingerprint=1)), r"got facts of other names or kinds"),
    "another": (lambda f: forge(f, lambda c: c.update(fingerprint="0" * 64)), r"got a fingerprint that is not that of"),
    "a string": (lambda f: forge(f, lambda c: c["splits"]["test"].update(tokens="9")), r"got splits of other names"),
    "negative": (lambda f: forge(f, lambda c: c["splits"]["test"].update(bytes=-9)), r"got a split without"),
    "more": (lambda f: forge(f, lambda c: c["splits"]["test"].update(tokens=10**30)), r"got test\.bin of {size} bytes"),
    "no files": (lambda f: forge(f, lambda c: c.update(files={})), r"got files of other names or kinds, expected size"),
    "no sums": (lambda f: forge(f, lambda c: c["files"]["test.bin"].update(crc32=[])), r"got files of other names or"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_corpus_that_is_not_whole_is_refused_and_made_again_with_force(data, breakage):
    corpus = prepare(data, quiet=True)
    size = (corpus.folder / "test.bin").stat().st_size
    damage, message = BREAKAGES[breakage]
    damage(corpus.folder)
    for open_it in (open_corpus, verify):
        with pytest.raises(
            DataError, match=message.replace("{size}", str(size)) + r".*Prepare the corpus again with --force"
        ):
            open_it(data)
    assert prepare(data, force=True, quiet=True).fingerprint == corpus.fingerprint
    assert verify(data)[0].fingerprint == corpus.fingerprint and entries(data) == [corpus.folder.name]


@pytest.mark.parametrize(("name", "file"), [("words", "vocabulary.txt"), ("bpe", "tokenizer.json")])
def test_a_tokenizer_edited_at_equal_size_is_refused(data, name, file):
    data = with_tokenizer(data, name)
    swap(prepare(data, quiet=True).folder / file, 2)
    with pytest.raises(DataError, match=rf"{file}: got other content .*Prepare the corpus again with --force"):
        open_corpus(data)


def test_a_large_file_is_sampled_when_opened_and_read_in_full_to_verify(data, monkeypatch):
    monkeypatch.setattr("alibi_jax.data.facts.BLOCK", 16)
    monkeypatch.setattr("alibi_jax.data.facts.OPENED_BLOCKS", 3)
    corpus = prepare(data, quiet=True)
    flip(corpus.folder / "train.bin", 17)  # in the second block
    open_corpus(data)
    with pytest.raises(DataError, match=r"train\.bin: got other content in bytes 16 to 32"):
        verify(data)
    for at in (0, -1):
        flip(corpus.folder / "train.bin", at)
        with pytest.raises(DataError, match=r"train\.bin: got other content"):
            open_corpus(data)
        flip(corpus.folder / "train.bin", at)


def test_nothing_to_verify_is_said(data):
    with pytest.raises(
        DataError, match=r"data\.directory: got no corpus files-bytes-.* expected one to verify\. Prepare"
    ):
        verify(data)


def test_an_empty_split_is_refused_before_anything_is_kept(tmp_path):
    (tmp_path / "a.txt").write_text("a single line")
    data = DataConfig(source="files", train_path=str(tmp_path / "a.txt"), directory=str(tmp_path / "corpora"))
    with pytest.raises(DataError, match=r"valid split of files .*: got 0 tokens, expected text\. Give more of it"):
        prepare(data, quiet=True)
    assert entries(data) == []


def test_a_directory_that_cannot_be_written_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"data\.directory: got '.*file/corpora' \(Not a directory\), expected a folder"
    ):
        prepare(replace(data, directory=str(tmp_path / "file/corpora")), quiet=True)
