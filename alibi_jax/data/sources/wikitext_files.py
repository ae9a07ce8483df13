"""The official files of WikiText-2 and WikiText-103: where they are, that they are whole, and the articles in them."""

import hashlib
import re
import zipfile
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path

from alibi_jax.errors import DataError

SHA256 = {  # of <name>-v1.zip, which holds <name>/wiki.*.tokens
    "wikitext-103": "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
    "wikitext-2": "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
}
FILES = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "wiki.test.tokens"}
BLANK = " \n"
HEADING = re.compile(r" = (?:[^=]|[^=].*[^=]) = \n")  # of level 1; a section's is " = = Section = = "

Folder = Path | zipfile.Path


def find_files(manual: Path, name: str) -> Folder | None:
    """Returns where the .tokens files of `name` are: in its zip, in `manual`/`name`, or in `manual` itself; None: nowhere."""
    if (manual / f"{name}-v1.zip").is_file():
        return open_zip(manual / f"{name}-v1.zip", name)
    folders = [manual / name, manual]
    if manual.resolve().name in SHA256.keys() - {name}:
        folders.pop()  # the files of WikiText-2 are named as those of WikiText-103
    return next((folder for folder in folders if any((folder / file).is_file() for file in FILES.values())), None)


def open_zip(path: Path, name: str) -> zipfile.Path:
    """Returns the folder inside the official zip; DataError unless its sha256 is the published one."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256[name]:
        raise DataError(
            f"{path}: got a file with sha256 {digest[:12]}..., expected {SHA256[name][:12]}..., the official "
            f"{name}-v1.zip. Download it again, or pass the bare .tokens files."
        )
    try:
        return zipfile.Path(path, f"{name}/")
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: got a file that cannot be unzipped ({error}), expected the official {name}-v1.zip. "
            "Download it again, or pass the bare .tokens files."
        ) from error


def require_files(folder: Folder) -> Folder:
    """Returns `folder` where it has all three files; else DataError."""
    missing = [file for file in FILES.values() if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"{folder}: got no {' and no '.join(missing)}, expected {', '.join(FILES.values())}. "
            "Put the missing files beside the others, or the official zip in their place."
        )
    return folder


def checked_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Yields the lines of a file in WikiText's layout, each ' word word ... \\n'; DataError at the first that is not."""
    number = 0
    for number, line in enumerate(file, 1):
        text = _layout(line)
        if text is None:
            short = line if len(line) <= 60 else line[:40] + b" [...] " + line[-20:]
            raise DataError(
                f"{name}, line {number}: got {short!r}, expected WikiText's tokenized layout in UTF-8: each line is "
                "' word word ... \\n', a blank one ' \\n'. This may be the raw or a detokenized version: use the "
                "official .tokens files, or --data.source files for other text."
            )
        yield text
    if number == 0:
        raise DataError(f"{name}: got an empty file, expected WikiText's text. Download it again.")


def _layout(line: bytes) -> str | None:
    """Returns the text of a line in WikiText's layout; None where it is in another."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.startswith(" ") and text.endswith(BLANK) else None


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Yields the articles, cut before every level-1 heading that stands between blank lines; joined, they are the lines.

    Blank lines before the first heading belong to the first article.
    """
    article, before = [], BLANK
    for line, after in pairwise(chain(lines, [""])):
        if before == after == BLANK and HEADING.fullmatch(line) and any(kept != BLANK for kept in article):
            yield "".join(article)
            article = []
        article.append(line)
        before = line
    yield "".join(article)
