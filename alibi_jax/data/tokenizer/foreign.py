"""The files of a tokenizer that somebody else made, such as those beside a model's weights.

tokenizer.json is the `tokenizers` library's; the files beside it say which token ends a document. A vocabulary.txt has a word a
line.
"""

import hashlib
import json
from typing import Any

from alibi_jax.config.sections import TOKENIZER_FILES
from alibi_jax.errors import DataError, shown
from alibi_jax.storage import Location, locate

TOKENIZER, VOCABULARY = TOKENIZER_FILES
BY_NAME = ("tokenizer_config.json", "special_tokens_map.json")  # eos_token: a token, or an object with its content
BY_ID = ("generation_config.json", "config.json")  # eos_token_id: a number, or several


def tokenizer_file(path: str | Location) -> Location:
    """Returns the file of a tokenizer: `path`, or in that folder a tokenizer.json or vocabulary.txt. DataError without one."""
    path = locate(path)
    candidates = [path / name for name in TOKENIZER_FILES] if path.is_dir() else [path]
    for file in candidates:
        if file.is_file():
            return file
    got = "a folder with neither" if path.is_dir() else "which does not exist"
    raise DataError(
        f"data.tokenizer_path: got {shown(str(path))}, {got}, expected {TOKENIZER} or {VOCABULARY}, or a folder with one. "
        f"Correct --data.tokenizer-path; transformers saves most other tokenizers as {TOKENIZER}, too."
    )


def has_tokenizer(folder: Location) -> bool:
    """Returns whether a folder has a tokenizer.json or a vocabulary.txt."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def is_vocabulary(file: Location) -> bool:
    """Returns whether a tokenizer's file is a list of words rather than the JSON of the `tokenizers` library."""
    return file.suffix != ".json"


def read_bytes(file: Location) -> bytes:
    """Returns the content of a file; DataError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: got {error.strerror}, expected a readable file. Check its permissions.") from error


def read_object(file: Location) -> dict[str, Any]:
    """Returns the JSON object of a file; DataError where it is none."""
    try:
        values = json.loads(read_bytes(file).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: got a file that is not JSON ({error}), expected an object. Copy it again.") from error
    if not isinstance(values, dict):
        raise DataError(f"{file}: got JSON of type {type(values).__name__}, expected an object. Copy it again.")
    return values


def end_token(folder: Location) -> str | int | None:
    """Returns the token that ends a document, or its id, from the first file that has it; None where none has."""
    for name in BY_NAME:
        token = read_object(folder / name).get("eos_token") if (folder / name).is_file() else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    for name in BY_ID:
        number = read_object(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        number = next(iter(number), None) if isinstance(number, list) else number
        if isinstance(number, int):
            return number
    return None


def digest(path: str | Location) -> str:
    """Returns the sha256 of a tokenizer's file: two of the same content divide text alike, wherever they are."""
    return hashlib.sha256(read_bytes(tokenizer_file(path))).hexdigest()


def foreign_files(folder: Location) -> dict[str, bytes]:
    """Returns name -> content of what a copy of a folder's tokenizer consists of; empty where it has no tokenizer.json.

    The copy needs no other file: what ends a document by the folder's config.json alone, a generation_config.json says.
    """
    if not (folder / TOKENIZER).is_file():
        return {}
    names = [name for name in (TOKENIZER, *BY_NAME, BY_ID[0]) if (folder / name).is_file()]
    files = {name: read_bytes(folder / name) for name in names}
    end = end_token(folder)
    if isinstance(end, int):
        files[BY_ID[0]] = json.dumps({"eos_token_id": end}).encode()
    return files


def exported_files(library: str, start: str, end: str) -> dict[str, str]:
    """Returns name -> content of the files by which transformers loads a tokenizer of the `tokenizers` library.

    start, end: the tokens that start a stream and end a document.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }
    return {TOKENIZER: library, BY_NAME[0]: json.dumps(settings, indent=2, ensure_ascii=False)}
