"""WikiText-2 and WikiText-103 (Merity et al. 2016, https://arxiv.org/abs/1609.07843) for tensorflow-datasets.

The builder runs without TensorFlow. One example is one article; the examples of a split, joined in order, are the
official .tokens file byte for byte. Importing this module registers "wikitext" with tensorflow-datasets.
"""

import contextlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import tensorflow_datasets as tfds

from alibi_jax.config import DataConfig
from alibi_jax.data.document import warn_once
from alibi_jax.data.sources.wikitext_files import (
    FILES,
    SHA256,
    Folder,
    articles,
    checked_lines,
    find_files,
    open_zip,
    require_files,
)
from alibi_jax.errors import DataError

URL = "https://s3.amazonaws.com/research.metamind.io/wikitext"
SECONDS = 20.0  # for the server to answer: tensorflow-datasets itself tries for minutes before it gives up


class Wikitext(tfds.core.GeneratorBasedBuilder):
    """The data sets `wikitext/wikitext-2` and `wikitext/wikitext-103`: {"text": one article} in the file's order.

    The official zip or the bare .tokens files are read from tfds's manual folder, the zip first; where it has neither,
    the zip is downloaded. DataError for files that are missing, damaged or of another layout.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SHA256]  # noqa: RUF012 (tfds's own type)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "wikitext-103-v1.zip or wikitext-2-v1.zip, or the three .tokens files in it."

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        name = self.builder_config.name
        try:
            folder = find_files(Path(dl_manager.manual_dir), name)
        except AssertionError:  # tfds's word for a manual folder that is missing or empty
            folder = None
        folder = require_files(folder or _download(dl_manager, name))
        return {split: self._generate_examples(folder / file) for split, file in FILES.items()}

    def _generate_examples(self, path: Folder) -> Iterator[tuple[int, dict[str, str]]]:
        with path.open("rb") as file:
            for number, article in enumerate(articles(checked_lines(file, str(path)))):
                yield number, {"text": article}


def _config_name(data: DataConfig) -> str:
    return data.tfds_name.removeprefix("wikitext/").removesuffix(f":{Wikitext.VERSION}")


def prepare(data: DataConfig) -> None:
    """Prepares `data.tfds_name` as array_record in `data.tfds_dir` unless it is there; DataError where it cannot be.

    What is there is left as it is, wherever it came from. tfds writes aside and renames, so it is always whole.
    """
    name = _config_name(data)
    if name not in SHA256:
        raise DataError(
            f"data.tfds_name: got {data.tfds_name!r}, expected {' or '.join(f'wikitext/{known}' for known in SHA256)}"
            f" (version {Wikitext.VERSION}). Pass --data.tfds-name wikitext/wikitext-103."
        )
    builder = Wikitext(config=name, data_dir=data.tfds_dir or None)
    if builder.data_path.exists():
        return
    try:
        _prepare(builder, data.tfds_manual_dir)
    except OSError as error:
        if not builder.data_path.exists():  # else another process was first, with the same text
            raise DataError(
                f"data.tfds_name: got {data.tfds_name!r}, which cannot be prepared in {builder.data_dir} ({error}), "
                "expected readable files and a folder that can be written. Check permissions and free space."
            ) from error


def _prepare(builder: Wikitext, manual: str) -> None:
    name = builder.builder_config.name
    if manual and find_files(Path(manual), name) is None:
        raise DataError(
            f"data.tfds_manual_dir: got {manual!r}, which has neither {name}-v1.zip nor {', '.join(FILES.values())}, "
            f"expected one or the other, the files there or in {name}/. Put them there or name another folder."
        )
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=manual or None, try_download_gcs=False)
    with contextlib.redirect_stdout(sys.stderr):  # where tfds prints its progress
        builder.download_and_prepare(download_config=config, file_format="array_record")


def warn_of_newer_files(data: DataConfig) -> None:
    """Warns, once, of files in `data.tfds_manual_dir` that were written after the data set was prepared: it stays as it was."""
    name = _config_name(data)
    prepared = Path(Wikitext(config=name, data_dir=data.tfds_dir or None).data_path)
    manual = Path(data.tfds_manual_dir)
    paths = [
        manual / f"{name}-v1.zip",
        *(folder / file for folder in (manual / name, manual) for file in FILES.values()),
    ]
    newer = [path for path in paths if path.is_file() and path.stat().st_mtime > prepared.stat().st_mtime]
    if newer:
        warn_once(
            f"data.tfds_manual_dir: {newer[0]} was written after {prepared} was prepared, which is read as it was then. "
            "If its text has changed, remove that folder: it is prepared again."
        )


def _download(dl_manager: tfds.download.DownloadManager, name: str) -> zipfile.Path:
    url = f"{URL}/{name}-v1.zip"
    try:
        with requests.get(url, stream=True, timeout=SECONDS) as answer:
            answer.raise_for_status()
        path = Path(dl_manager.download(url))
    except (OSError, tfds.download.DownloadError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise DataError(
            f"wikitext/{name}: got no file from {url} ({reason}), expected {name}-v1.zip. Put the zip, or the three "
            ".tokens files, in a folder and pass --data.tfds-manual-dir FOLDER."
        ) from error
    try:
        return open_zip(path, name)
    except DataError:
        for kept in (path, path.with_name(f"{path.name}.INFO")):  # or tfds would take it for whole the next time
            kept.unlink(missing_ok=True)
        raise
