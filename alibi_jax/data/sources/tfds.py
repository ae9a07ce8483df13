"""Data sets of tensorflow-datasets: which examples of one that is prepared make a split. TensorFlow is never imported."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document, text_document, warn_once
from alibi_jax.data.sources.base import Source
from alibi_jax.data.sources.examples import first_line, is_parquet, make_builder, texts
from alibi_jax.data.splits import SPLITS, Split
from alibi_jax.errors import DataError

Ranges = list[tuple[str, int, int]]  # file of records, first one, end


def _wikitext(data: DataConfig) -> ModuleType | None:
    """Returns the module that prepares WikiText where that is the data set; DataError for another with a manual folder."""
    if data.tfds_name.partition("/")[0] == "wikitext":
        from alibi_jax.data.sources import wikitext  # half a second: its builder's class needs tensorflow_datasets

        return wikitext
    if data.tfds_manual_dir:
        raise DataError(
            f"data.tfds_manual_dir: got {data.tfds_manual_dir!r} with data.tfds_name {data.tfds_name!r}, expected "
            "wikitext/wikitext-103 or wikitext/wikitext-2: others are prepared beforehand. Leave it out."
        )
    return None


def _documents(data: DataConfig, split: Split) -> Iterator[Document]:
    """Yields one document an example, which is held whole; prepares WikiText where it is not there.

    DataError for a data set that cannot be read or lacks examples, and where one example is in training and held out.
    """
    if wikitext := _wikitext(data):
        wikitext.prepare(data)
    builder, ranges = _open(data)
    _check_overlaps(data, ranges)
    _check_feature(data, builder)
    for name, text in texts(data, builder, data.tfds_splits[SPLITS.index(split)]):
        yield text_document(name, text)


def _open(data: DataConfig) -> tuple[Any, list[Ranges]]:
    """Returns the builder of a data set that is prepared, and the records of each of the three splits."""
    folder = data.tfds_dir or "the library's own folder"
    split = data.tfds_splits[0]
    try:
        builder = make_builder(data)
        if not is_parquet(builder):
            builder.as_data_source(split=split)
        ranges = []
        for split in data.tfds_splits:
            ranges.append(_ranges(builder, split))
    except (ValueError, AssertionError, NotImplementedError, OSError) as error:
        raise DataError(
            f"data.tfds_name: got {data.tfds_name!r}, split {split!r} in {folder} ({first_line(error)}), expected a data set "
            "prepared for random access. Prepare it once, on a machine with TensorFlow if its builder needs it: "
            f"tfds build {data.tfds_name} --file_format=array_record --data_dir=D. Then pass --data.tfds_dir D."
        ) from error
    return builder, ranges


def _ranges(builder: Any, split: str) -> Ranges:
    return [
        (str(file.filename), file.skip, file.skip + file.take) for file in builder.info.splits[split].file_instructions
    ]


def _check_overlaps(data: DataConfig, ranges: list[Ranges]) -> None:
    train, valid, test = data.tfds_splits
    for name, held_out in ((valid, ranges[1]), (test, ranges[2])):
        if shared := _num_shared(ranges[0], held_out):
            raise DataError(
                f"data.tfds_splits: got {train!r} for training and {name!r} held out, which have {shared} examples in common, "
                "expected none. Choose slices that do not overlap, such as train[:90%] and train[90%:]."
            )
    if shared := _num_shared(ranges[1], ranges[2]):
        warn_once(
            f"data.tfds_splits: {valid!r} for validation and {test!r} for testing have {shared} examples in common"
        )


def _num_shared(one: Ranges, other: Ranges) -> int:
    by_file = {}
    for file, start, stop in other:
        by_file.setdefault(file, []).append((start, stop))
    return sum(
        max(0, min(stop, end) - max(start, begin)) for file, start, stop in one for begin, end in by_file.get(file, ())
    )


def _check_feature(data: DataConfig, builder: Any) -> None:
    features = sorted(builder.info.features)
    if data.tfds_text not in features:
        raise DataError(
            f"data.tfds_text: got {data.tfds_text!r}, expected one of {', '.join(features)}. "
            "Pass --data.tfds-text NAME."
        )


def _files(data: DataConfig) -> list[tuple[str, Path]]:
    """Returns the files of records; the .json beside them describe them, and tensorflow-datasets may write those anew."""
    wikitext = _wikitext(data)  # before the builder is made: its class registers itself
    try:
        folder = Path(make_builder(data).data_path)
    except (ValueError, AssertionError, NotImplementedError, OSError) as error:
        raise _not_prepared(data, first_line(error)) from error
    files = sorted(path for path in folder.glob("*") if path.is_file() and path.suffix != ".json")
    if not files:
        raise _not_prepared(data, f"nothing in {folder}")
    if wikitext and data.tfds_manual_dir:
        wikitext.warn_of_newer_files(data)
    return [(f"{data.tfds_name}/{file.name}", file) for file in files]


def _not_prepared(data: DataConfig, reason: str) -> DataError:
    return DataError(
        f"data.tfds_name: got {data.tfds_name!r} ({reason}), expected a prepared data set. Pass --data.tfds-dir FOLDER."
    )


def _describe(data: DataConfig) -> str:
    return f"tfds {data.tfds_name} {' '.join(data.tfds_splits)}"


TFDS = Source(_documents, _files, _describe, paths=("tfds_dir",), choices=("tfds_name", "tfds_text", "tfds_splits"))
