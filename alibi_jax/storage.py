"""Files in a folder or in a bucket of Google Cloud Storage. A file is whole or absent in both."""

import errno
import importlib.util
import io
import os
import re
import secrets
import time
from pathlib import Path

import numpy as np
from etils import epath

from alibi_jax.errors import require, shown

Location = Path | epath.Path  # of a file or a folder; an epath.Path is in a bucket
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # the errors of a file system without locks
REWRITE_EVERY = 60.0  # seconds between two writes of a growing object; Cloud Storage takes one a second at most


def locate(path: str | os.PathLike) -> Location:
    """Returns the file or folder of a path: a pathlib.Path, or an epath.Path for gs://BUCKET/... (package gcsfs, extra "gcs").

    ConfigError for other stores: Orbax writes arrays to files and to Cloud Storage only.
    """
    text = os.fspath(path)
    require(text.strip() != "" and "\0" not in text, "path", repr(text), "the name of a file or folder", "Name one.")
    longest = max(len(name.encode(errors="surrogatepass")) for name in text.split("/"))
    require(longest < 256, "path", shown(text), "names of at most 255 bytes, as disks have them", "Shorten it.")
    address = re.match(r"([a-z][a-z0-9+]+):/(/?)", text)
    if not address:
        return Path(path)
    require(
        address[1] == "gs" and bool(address[2]),
        "path",
        text,
        "a folder or gs://BUCKET/FOLDER, as text (pathlib drops a slash); checkpoints are written nowhere else",
        "Use one of these, or mount the store as a file system that can rename folders.",
    )
    has = importlib.util.find_spec("gcsfs") is not None
    require(has, "path", text, "the package gcsfs for gs://", "Install it: pip install -e '.[gcs]'.")
    return epath.Path(text)


def in_bucket(path: Location) -> bool:
    """Returns whether a location is in a bucket, where a file can neither grow nor be renamed nor locked."""
    return "://" in os.fspath(path)


def write_atomically(path: Location, content: str | bytes) -> None:
    """Writes a file aside, flushes it to the disk and renames it; text as UTF-8. A write that fails leaves nothing behind.

    In a bucket an object appears once it is whole, without any of this.
    """
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        path.write_bytes(data)
        return
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def remove_partial(folder: Location) -> None:
    """Removes what killed writes left in a folder; for the only process that writes there."""
    if not in_bucket(folder):
        for aside in folder.glob(".*.partial"):
            aside.unlink(missing_ok=True)


def save_array(path: Location, array: np.ndarray) -> None:
    """Writes an array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue())


class _Appended:
    """A growing file on a disk: every write is there at once, or raises."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)
        self.close = self.file.close

    def write(self, data: bytes) -> None:
        if self.file.write(data) < len(data):  # a full disk takes only the beginning
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Does nothing: no data waits."""


class _Rewritten:
    """A growing object in a bucket: in memory, and written whole once a minute and by `flush`."""

    def __init__(self, path: epath.Path, content: bytes) -> None:
        self.path = path
        self.content = bytearray(content)
        self.written = len(content)
        self.since = time.monotonic()

    def write(self, data: bytes) -> None:
        self.content += data
        if time.monotonic() - self.since > REWRITE_EVERY:
            self.flush()

    def flush(self) -> None:
        if len(self.content) > self.written:
            self.path.write_bytes(bytes(self.content))
            self.written = len(self.content)
            self.since = time.monotonic()

    def close(self) -> None:
        self.flush()


def growing_file(path: Location, content: bytes) -> _Appended | _Rewritten:
    """Returns a file that begins with `content` and takes more: write(data), flush(), close()."""
    write_atomically(path, content)
    return _Rewritten(path, content) if in_bucket(path) else _Appended(path)
