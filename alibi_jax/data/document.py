"""One document of text, read in pieces, so that no file and no line is ever in memory as a whole."""

import codecs
import functools
import gzip
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from alibi_jax.errors import DataError

PIECE_CHARACTERS = 65_536  # of a piece; BPE's tokens depend on it: no token reaches from one piece into the next
CHUNK_BYTES = 65_536  # read from a file at once
UTF16_NULS = 0.25, 0.9  # fraction of NUL characters: a half of ASCII text saved as UTF-16, three quarters of UTF-32
MANY_NULS = 0.01  # fraction of NUL characters that is worth a warning
OTHER_KINDS = (  # the marks of files that are not UTF-8 text: offset, bytes, kind, what to do
    (0, b"\x1f\x8b", "gzip data", "Decompress it; the name of a file that is compressed once may end in .gz"),
    (0, b"PK\x03\x04", "a zip archive", "Unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data", "Decompress it, or compress it with gzip"),
    (0, b"\xfd7zXZ\x00", "xz data", "Decompress it, or compress it with gzip"),
    (4, b"1AY&SY", "bzip2 data", "Decompress it, or compress it with gzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it"),
    (257, b"ustar", "a tar archive", "Unpack it"),
    (0, codecs.BOM_UTF32_LE, "UTF-32 text", "Convert the file (iconv -f UTF-32 -t UTF-8)"),  # begins like UTF-16's
    (0, codecs.BOM_UTF32_BE, "UTF-32 text", "Convert the file (iconv -f UTF-32 -t UTF-8)"),
    (0, codecs.BOM_UTF16_LE, "UTF-16 text", "Convert the file (iconv -f UTF-16 -t UTF-8)"),
    (0, codecs.BOM_UTF16_BE, "UTF-16 text", "Convert the file (iconv -f UTF-16 -t UTF-8)"),
)

logger = logging.getLogger("alibi_jax")


@dataclass(frozen=True)
class Document:
    """A text that can be read again and again: each iteration reads it anew, in pieces of PIECE_CHARACTERS characters.

    The last piece may be shorter. `texts` yields the same text cut anywhere; errors call it `name`.
    """

    name: str
    texts: Callable[[], Iterable[str]]

    def __iter__(self) -> Iterator[str]:
        rest = ""
        for text in self.texts():
            rest += text
            whole = len(rest) - len(rest) % PIECE_CHARACTERS
            yield from (rest[i : i + PIECE_CHARACTERS] for i in range(0, whole, PIECE_CHARACTERS))
            rest = rest[whole:]
        if rest:
            yield rest

    def num_bytes(self) -> int:
        """Returns the number of UTF-8 bytes of the text, counted by reading it."""
        return sum(len(piece) if piece.isascii() else len(piece.encode("utf-8")) for piece in self)

    def between(self, start: int, stop: int) -> "Document":
        """Returns the document of the characters from `start` to `stop`, without `stop`."""
        return Document(self.name, lambda: _between(self, start, stop))


def _between(pieces: Iterable[str], start: int, stop: int) -> Iterator[str]:
    offset = 0
    for piece in pieces:
        yield piece[max(start - offset, 0) : stop - offset]
        offset += len(piece)
        if offset >= stop:
            return


def text_document(name: str, text: str) -> Document:
    """Returns the document of a text that is in memory."""
    return Document(name, lambda: [text])


def file_document(path: Path) -> Document:
    """Returns the document of one UTF-8 file, decompressed when its name ends in .gz, without its byte-order mark.

    DataError, when it is read, for a file that is empty, not UTF-8, damaged, or cannot be read.
    """
    return Document(str(path), lambda: _decoded(path))


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0
    empty = True
    try:
        with _open(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                if offset == 0:
                    _check_head(path, chunk)
                offset += len(chunk)
                text = decoder.decode(chunk)
                empty = empty and not text
                yield text
            decoder.decode(b"", final=True)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: got bytes that do not decompress ({error}), expected a whole gzip file. Copy the file again."
        ) from error
    except UnicodeDecodeError as error:
        place = offset - len(error.object) + error.start
        raise DataError(
            f"{path}: got byte {error.object[error.start]:#04x} at byte offset {place}, which is not UTF-8, "
            "expected UTF-8 text. Convert the file (iconv -t UTF-8) or leave it out."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: got {error.strerror or error}, expected a readable file. Check its permissions."
        ) from error
    if empty:
        raise DataError(f"{path}: got an empty file, expected text. Remove the file or fill it.")


def _check_head(path: Path, head: bytes) -> None:
    """Raises DataError for the first bytes of an archive or of another encoding; warns, once, of many NUL characters."""
    for offset, magic, kind, do in OTHER_KINDS:
        if head.startswith(magic, offset):
            raise DataError(f"{path}: got {kind}, expected UTF-8 text. {do}.")
    nuls = head.count(0) / len(head)
    if UTF16_NULS[0] <= nuls <= UTF16_NULS[1]:
        raise DataError(
            f"{path}: got {nuls:.0%} NUL characters, as UTF-16, UTF-32 and binary files have, expected UTF-8 text. "
            "Convert the file (iconv -f UTF-16LE -t UTF-8) or leave it out."
        )
    if nuls >= MANY_NULS:
        warn_once(f"{path}: {nuls:.0%} of its first {len(head):,} characters are NUL. Is it text?")


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, once in a process however often it is called with the same message."""
    logger.warning(message)
