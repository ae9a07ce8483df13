"""The examples of a data set that tensorflow-datasets has prepared, read without TensorFlow."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from alibi_jax.config import DataConfig
from alibi_jax.errors import DataError

BATCH_RECORDS = 100  # of a Parquet file that are read at once; tensorflow-datasets writes as many a row group


def make_builder(data: DataConfig) -> Any:
    """Returns the library's builder of a data set. ValueError where what describes the data set cannot be read."""
    import tensorflow_datasets as tfds  # half a second, and only this source needs it
    from google.protobuf import json_format

    try:
        return tfds.builder(data.tfds_name, data_dir=data.tfds_dir or None, try_gcs=False)
    except json_format.ParseError as error:
        raise ValueError(f"dataset_info.json is damaged: {error}") from error


def first_line(error: Exception | str) -> str:
    """Returns the first line of an error's message, which may be very long."""
    return str(error).partition("\n")[0][:300]


def is_parquet(builder: Any) -> bool:
    """Returns whether a data set is there as Parquet and not as array_record."""
    return {kind.value for kind in builder.info.available_file_formats()} & {"array_record", "parquet"} == {"parquet"}


def texts(data: DataConfig, builder: Any, split: str) -> Iterator[tuple[str, str]]:
    """Yields (what errors call it, text) of each example of a split; DataError where the files are damaged or gone."""
    for number, example in enumerate(_read(data, builder, split)):
        name = f"{data.tfds_name}, split {split}, example {number}, feature {data.tfds_text}"
        yield name, _decode(example[data.tfds_text], name)


def _read(data: DataConfig, builder: Any, split: str) -> Iterator[dict[str, Any]]:
    from google.protobuf import message  # as late as tensorflow_datasets

    try:
        yield from _examples(builder, split)
    except DataError:
        raise
    except (RuntimeError, ValueError, OSError, message.DecodeError) as error:  # RuntimeError: array_record's
        raise DataError(
            f"data.tfds_name: got {data.tfds_name!r}, split {split!r}, whose files cannot be read "
            f"({first_line(error)}), expected whole ones in {builder.data_path}. Remove that folder and prepare the data "
            "set again."
        ) from error


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    if not is_parquet(builder):
        yield from builder.as_data_source(split=split)
        return
    for file in builder.info.splits[split].file_instructions:
        records = _parquet_records(str(file.filename), file.examples_in_shard)
        yield from map(builder.info.features.deserialize_example_np, islice(records, file.skip, file.skip + file.take))


def _parquet_records(file: str, expected: int) -> Iterator[bytes]:
    """Yields the records of one Parquet file, some at a time: tensorflow-datasets reads all files whole, whatever the slice."""
    from pyarrow import parquet  # as late as tensorflow_datasets

    with parquet.ParquetFile(file) as table:
        if table.metadata.num_rows != expected:  # tensorflow-datasets 4.9.10 loses some past the first 100
            raise DataError(
                f"{file}: got {table.metadata.num_rows} examples, expected the {expected} that dataset_info.json counts. "
                "Prepare the data set again with --file_format=array_record."
            )
        for batch in table.iter_batches(BATCH_RECORDS):
            yield from batch.column(0).to_pylist()


def _decode(value: Any, name: str) -> str:
    if value is None:  # what array_record reads of a file that was cut
        raise DataError(f"{name}: got an example without text, expected whole files. Prepare the data set again.")
    if not isinstance(value, bytes):
        raise DataError(f"{name}: got {type(value).__name__}, expected text. Choose another --data.tfds_text.")
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: got bytes that are not UTF-8 at offset {error.start}, expected UTF-8 text. Prepare it again."
        ) from error
