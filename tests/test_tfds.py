import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alibi_jax.config import DataConfig
from alibi_jax.data.document import warn_once
from alibi_jax.data.sources import documents
from alibi_jax.data.splits import SPLITS
from alibi_jax.data.text import read_text
from alibi_jax.errors import DataError


def read_split(data, split):
    return ["".join(document) for document in documents(data, split)]


def read(data):
    return {split: read_split(data, split) for split in SPLITS}


def build(folder, file_format, texts, **sizes):
    """A data set prepared in a folder; its builder is not registered, as on a user's machine."""
    with tfds.core.registered.skip_registration():

        class TinyTexts(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                text, number = tfds.features.Text(), tfds.features.Scalar(dtype=np.int64)
                features = tfds.features.FeaturesDict({"text": text, "number": number})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, download_manager):
                return {split: self._generate_examples(split, count) for split, count in sizes.items()}

            def _generate_examples(self, split, count):
                for i in range(count):
                    yield i, {"text": texts(split, i), "number": i}

    TinyTexts(data_dir=folder, file_format=file_format).download_and_prepare()
    return folder


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    counts = {"train": 5, "validation": 2}
    return build(folder, "array_record", lambda split, i: f"é {counts[split]} {i}", **counts)


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def ninety(request, tmp_path_factory):
    """90 texts for training, 10 for testing, in each of the formats."""
    folder = tmp_path_factory.mktemp(request.param)
    return build(folder, request.param, lambda split, i: f"{split} {i}", train=90, test=10)


def tiny(folder, **more):
    splits = ("train[:60%]", "validation", "train[60%:]")
    values = {"tfds_name": "tiny_texts", "tfds_dir": str(folder), "tfds_splits": splits} | more
    return DataConfig(source="tfds", **values)


@pytest.mark.versions
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


@pytest.mark.parametrize(
    "splits",
    [
        ("train[:80%]", "train[80%:90%]", "train[90%:]"),
        ("train[:40]", "train[40:-10]", "train[-10:]"),
        ("train[10:20]+train[30:40]", "test[:5]", "test[5:]"),
        ("train", "test[:50%]", "test[50%:]"),
    ],
    ids=["percent", "numbers", "sums", "whole"],
)
def test_slices_are_those_of_the_whole_in_every_format(ninety, splits):
    whole = {
        split: read_split(tiny(ninety, tfds_splits=(split, "train[:0]", "train[:0]")), "train")
        for split in ("train", "test")
    }
    assert sorted(whole["train"]) == sorted(f"train {i}" for i in range(90))
    expected = {
        "train[:80%]": whole["train"][:72],
        "train[80%:90%]": whole["train"][72:81],
        "train[90%:]": whole["train"][81:],
        "train[:40]": whole["train"][:40],
        "train[40:-10]": whole["train"][40:80],
        "train[-10:]": whole["train"][80:],
        "train[10:20]+train[30:40]": whole["train"][10:20] + whole["train"][30:40],
        "test[:5]": whole["test"][:5],
        "test[5:]": whole["test"][5:],
        "train": whole["train"],
        "test[:50%]": whole["test"][:5],
        "test[50%:]": whole["test"][5:],
    }
    got = read(tiny(ninety, tfds_splits=splits))
    assert got == {split: expected[asked] for split, asked in zip(SPLITS, splits, strict=True)}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            ("train", "train", "train"),
            r"got 'train' for training and 'train' held out, which have 90 examples in common",
        ),
        (("train[:90%]", "train[80%:]", "test"), r"'train\[80%:\]' held out, which have 9 examples in common"),
        (("train+test", "train[:0]", "test[3:]"), r"'test\[3:\]' held out, which have 7 examples"),
        (("all", "test", "test"), r"'test' held out, which have 10 examples"),
        (("train[:300]", "test", "test"), r"split 'train\[:300\]' .*incompatible with 90 examples"),
        (("train", "test", "valid"), r"split 'valid' .*Unknown split 'valid'"),
        (("train", "test", "test[a:b]"), r"split 'test\[a:b\]' .*Error parsing split"),
    ],
    ids=["the same", "slices", "sum", "all", "past the end", "unknown", "no slice"],
)
@pytest.mark.parametrize("split", SPLITS)
def test_splits_that_overlap_with_training_or_are_not_there_are_refused(ninety, splits, message, split):
    with pytest.raises(DataError, match=message):
        next(documents(tiny(ninety, tfds_splits=splits), split))


def test_the_same_examples_for_validation_and_testing_are_said_once(ninety, caplog):
    warn_once.cache_clear()
    read(tiny(ninety, tfds_splits=("train", "test[:6]", "test[2:]")))
    messages = [record.message for record in caplog.records]
    assert messages == [
        "data.tfds_splits: 'test[:6]' for validation and 'test[2:]' for testing have 4 examples in common"
    ]


def test_a_byte_order_mark_is_no_text(tmp_path):
    folder = build(tmp_path, "array_record", lambda split, i: f"\ufeffword {i}", train=3, validation=1, test=1)
    assert sorted(read_split(tiny(folder, tfds_splits=("train", "validation", "test")), "train")) == [
        f"word {i}" for i in range(3)
    ]


def test_a_parquet_file_that_lacks_examples_is_refused(tmp_path):
    """As those that tensorflow-datasets 4.9.10 writes of more than 100 examples a file."""
    folder = build(tmp_path / "more", "parquet", lambda split, i: f"{split} {i}", train=9, validation=1, test=1)
    fewer = build(tmp_path / "fewer", "parquet", lambda split, i: f"{split} {i}", train=4, validation=1, test=1)
    for path in folder.rglob("*train.parquet*"):
        path.write_bytes(next(fewer.rglob(path.name)).read_bytes())
    with pytest.raises(
        DataError, match=r"train\.parquet.*: got 4 examples, expected the 9 that dataset_info\.json counts"
    ):
        read_split(tiny(folder, tfds_splits=("train", "validation", "test")), "train")


DAMAGES = {
    "cut": lambda content: content[:-50],
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "other": lambda content: content.replace(b"text", b"\xff\xfe\xfd\xfc"),
}


@pytest.fixture
def damaged(ninety, tmp_path):
    """A copy of the data set, and its file of training examples."""
    folder = shutil.copytree(ninety, tmp_path / "copy")
    return folder, next(folder.rglob("*-train.*-of-*"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_of_a_data_set_are_named(damaged, damage):
    folder, file = damaged
    content = file.read_bytes()
    file.write_bytes(DAMAGES[damage](content))
    assert file.read_bytes() != content
    with pytest.raises(DataError, match=r"tiny_texts.*[Pp]repare the data set again"):
        read_split(tiny(folder, tfds_splits=("train", "test[:5]", "test[5:]")), "train")


def test_a_file_of_a_data_set_that_is_gone_and_a_damaged_description_are_named(damaged):
    folder, file = damaged
    data = tiny(folder, tfds_splits=("train", "test[:5]", "test[5:]"))
    file.unlink()
    with pytest.raises(DataError, match=r"split 'train', whose files cannot be read \(.*No such file"):
        read_split(data, "train")
    facts = file.with_name("dataset_info.json")
    facts.write_text(facts.read_text()[:100])
    for read_it in (lambda: read_split(data, "train"), lambda: read_text(data)):
        with pytest.raises(DataError, match=r"dataset_info\.json is damaged"):
            read_it()
