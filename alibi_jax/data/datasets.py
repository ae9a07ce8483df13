"""Data sets that tensorflow-datasets has prepared, read without TensorFlow: which examples, and their text."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from alibi_jax.config import DataConfig
from alibi_jax.data.document import Document, text_document, warn_once
from alibi_jax.errors import DataError

Ranges = list[tuple[str, int, int]]  # file of records, first one, end
BATCH_RECORDS = 100  # of a Parquet file that are read at once; tensorflow-datasets writes as many a row group


def dataset_documents(data: DataConfig, place: int) -> Iterator[Document]:
    """The texts of `data.tfds_splits[place]`, one document an example, which is held whole.

    DataError for a data set that cannot be read or lacks examples, and where one example is in training and held out.
    """
    builder, ranges = _open(data)
    _check_overlaps(data, ranges)
    _check_feature(data, builder)
    split = data.tfds_splits[place]
    for number, example in enumerate(_read(data, builder, split)):
        where = f"{data.tfds_name}, split {split}, example {number}, feature {data.tfds_text}"
        yield text_document(where, _decode(example[data.tfds_text], where))


def make_builder(data: DataConfig) -> Any:
    """The library's builder of a data set. ValueError where what describes the data set cannot be read."""
    import tensorflow_datasets as tfds  # half a second, and only this source needs it
    from google.protobuf import json_format

    try:
        return tfds.builder(data.tfds_name, data_dir=data.tfds_dir or None, try_gcs=False)
    except json_format.ParseError as error:
        raise ValueError(f"dataset_info.json is damaged: {error}") from error


def _open(data: DataConfig) -> tuple[Any, list[Ranges]]:
    """The builder of a data set that is prepared, and the records of each of the three splits."""
    folder = data.tfds_dir or "the library's own folder"
    split = data.tfds_splits[0]
    try:
        builder = make_builder(data)
        if not _is_parquet(builder):
            builder.as_data_source(split=split)
        ranges = []
        for split in data.tfds_splits:
            ranges.append(_ranges(builder, split))
    except (ValueError, AssertionError, NotImplementedError, OSError) as error:
        raise DataError(
            f"data.tfds_name: got {data.tfds_name!r}, split {split!r} in {folder} ({_first_line(error)}), expected a data set "
            "prepared for random access. Prepare it once, on a machine with TensorFlow if its builder needs it: "
            f"tfds build {data.tfds_name} --file_format=array_record --data_dir=D. Then pass --data.tfds_dir D."
        ) from error
    return builder, ranges


def _is_parquet(builder: Any) -> bool:
    return {kind.value for kind in builder.info.available_file_formats()} & {"array_record", "parquet"} == {"parquet"}


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
            "Pass --data.tfds_text NAME."
        )


def _read(data: DataConfig, builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split; DataError where the libraries that read its files find them damaged or gone."""
    from google.protobuf import message

    try:
        yield from _examples(builder, split)
    except DataError:
        raise
    except (RuntimeError, ValueError, OSError, message.DecodeError) as error:  # RuntimeError: array_record's
        raise DataError(
            f"data.tfds_name: got {data.tfds_name!r}, split {split!r}, whose files cannot be read "
            f"({_first_line(error)}), expected whole ones in {builder.data_path}. Remove that folder and prepare the data "
            "set again."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    if not _is_parquet(builder):
        yield from builder.as_data_source(split=split)
        return
    for file in builder.info.splits[split].file_instructions:
        records = _parquet_records(str(file.filename), file.examples_in_shard)
        yield from map(builder.info.features.deserialize_example_np, islice(records, file.skip, file.skip + file.take))


def _parquet_records(file: str, expected: int) -> Iterator[bytes]:
    """The records of one Parquet file, some at a time: tensorflow-datasets would read all files whole, whatever the slice."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        if table.metadata.num_rows != expected:  # tensorflow-datasets 4.9.10 loses some past the first 100
            raise DataError(
                f"{file}: got {table.metadata.num_rows} examples, expected the {expected} that dataset_info.json counts. "
                "Prepare the data set again with --file_format=array_record."
            )
        for batch in table.iter_batches(BATCH_RECORDS):
            yield from batch.column(0).to_pylist()


def _decode(value: Any, where: str) -> str:
    if value is None:  # what array_record reads of a file that was cut
        raise DataError(f"{where}: got an example without text, expected whole files. Prepare the data set again.")
    if not isinstance(value, bytes):
        raise DataError(f"{where}: got {type(value).__name__}, expected text. Choose another --data.tfds_text.")
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: got bytes that are not UTF-8 at offset {error.start}, expected UTF-8 text. Prepare it again."
        ) from error
