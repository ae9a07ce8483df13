"""Which of the prepared corpora is that of the configured text, and the lines of the log that say so."""

import logging
from pathlib import Path

from alibi_jax.config import DataConfig
from alibi_jax.data.names import corpus_folders, earlier_name
from alibi_jax.data.text import difference, keep_text, kept_text, places, read_text, same_entries
from alibi_jax.errors import DataError

logger = logging.getLogger("alibi_jax")


def find_corpus(data: DataConfig) -> Path | None:
    """Returns the folder of the corpus that was prepared from the text as it is now; None where there is none."""
    folders = corpus_folders(data)
    if not folders:
        return None
    try:
        now = read_text(data)
    except DataError as error:
        return _without_text(data, folders, error)
    failed = None
    for folder in folders:
        try:
            if not difference(kept_text(folder), now):
                return folder
        except DataError as error:
            failed = error
    if failed:
        raise failed
    return None


def _without_text(data: DataConfig, folders: list[Path], error: DataError) -> Path:
    """Returns the one corpus of a text that is no longer there, if it was at this very place; else raises the error."""
    if len(folders) > 1 or kept_text(folders[0]).places != places(data):
        raise error
    logger.warning("corpus: %s is used, though its text could not be compared: %s", folders[0], error)
    return folders[0]


def log_change(data: DataConfig, folder: Path) -> None:
    """Logs whether the text has changed since the corpus was prepared that a run was begun with."""
    try:
        kept = kept_text(folder)
        if not kept.files:
            logger.info("corpus: %s is used, whose text an earlier version did not keep: it is not compared", folder)
            return
        same = same_entries(kept, read_text(data))
    except DataError as error:
        logger.warning(
            "corpus: %s, which the run was begun with, could not be compared with its text: %s", folder, error
        )
        return
    if not same:
        logger.warning("corpus: %s is used, which the run was begun with; its text was edited or touched since", folder)


def log_others(data: DataConfig) -> None:
    """Logs why each corpus that is there is not the one of this text, before another is prepared."""
    earlier = Path(data.directory) / earlier_name(data)
    if earlier.exists():
        logger.info(
            "corpus: %s is of an earlier version, without checksums: its text is prepared again; then it may be removed",
            earlier,
        )
    for folder in corpus_folders(data):
        kept = kept_text(folder)
        if not kept.files:  # taken over: it may well be of this text
            continue
        change = difference(kept, read_text(data))
        logger.info(
            "corpus: %s is of another text (%s): this one is prepared, too; runs of the other need it", folder, change
        )


def keep_times(data: DataConfig, folder: Path) -> None:
    """Keeps where the text is and its times, where only these changed: its content need not be read at every opening."""
    try:
        now = read_text(data)
        if same_entries(kept_text(folder), now):
            return
        keep_text(folder, now)
    except (DataError, OSError) as error:
        logger.info("corpus: the times of the text were not kept in %s: %s", folder, error)
