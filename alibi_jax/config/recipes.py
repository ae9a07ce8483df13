"""Reads files of configs: recipes, which are programs with get_config(), and JSON. Whatever is wrong is one ConfigError.

The message names the file, the line if it is known, and what to do; a traceback through this library would help nobody.
"""

import difflib
import inspect
import json
import re
import runpy
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alibi_jax.errors import ConfigError, require, shown
from alibi_jax.storage import Location

LONGEST_INTEGER = 40  # digits; the largest field has 10
LONGEST_REASON = 500  # characters of an error that a recipe raised


def recipes_folder() -> Path:
    """Returns the folder of the recipes: inside the package where it is installed, beside it in a checkout.

    Beside an installed package another project may have a folder of that name: it is not read without a pyproject.toml.
    """
    package = Path(__file__).parents[1]
    beside = package.parent / "configs"
    in_checkout = not (package / "configs").is_dir() and (package.parent / "pyproject.toml").is_file()
    return beside if in_checkout else package / "configs"


def recipe_names() -> list[str]:
    """Returns the names by which recipes are called, such as "quickstart"."""
    return sorted(path.stem for path in recipes_folder().glob("*.py"))


def named_recipe(name: str) -> Path:
    """Returns the path of a recipe called by its name; ConfigError, with the nearest name, where there is none."""
    names = recipe_names()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    require(
        name in names,
        "config",
        f"{shown(name)}, which does not exist and is no recipe's name",
        f"a .py recipe, a .json, a run's folder, or one of {', '.join(names)}",
        f"Did you mean {near[0]!r}?" if near else "Check the path.",
    )
    return recipes_folder() / f"{name}.py"


def run_recipe(path: Location, fields: Iterable[str]) -> Any:
    """Returns what get_config() of a recipe returns; ConfigError for any error in it. fields: names that may be meant."""
    make = _guarded(path, fields, lambda: runpy.run_path(str(path))).get("get_config")
    require(
        callable(make),
        str(path),
        "no get_config" if make is None else f"get_config as {type(make).__name__}",
        "a function get_config() -> Config",
        "Define it.",
    )
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise ConfigError(
            f"{path}: got a get_config that cannot be called without arguments ({error}), expected get_config() -> Config. "
            "Give its arguments defaults."
        ) from None
    return _guarded(path, fields, make)


def _guarded(path: Location, fields: Iterable[str], call: Any) -> Any:
    try:
        return call()
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno or 1}"
        raise ConfigError(f"{where}: got {error.msg}, expected Python in UTF-8. Correct that line.") from None
    except (Exception, SystemExit) as error:  # a recipe is the user's program and may raise anything
        raise ConfigError(_reason(path, fields, error)) from None


def _reason(path: Location, fields: Iterable[str], error: BaseException) -> str:
    """Returns the message for an error: the recipe's line, and what was raised there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    if isinstance(error, ConfigError):
        return f"{where}: {error}"
    text = str(error)
    text = text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
    unknown = re.search(r"unexpected keyword argument '(\w+)'", text)
    near = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.0) if unknown else []
    do = f"Did you mean {near[0]!r}?" if near else "Correct the recipe."
    return f"{where}: got {type(error).__name__}: {text}, expected a recipe whose get_config() returns a Config. {do}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; ConfigError for a key that stands twice, of which one would be dropped silently."""
    values = dict(pairs)
    if len(values) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ConfigError(f"config: got the key {key!r} {count} times in one object, expected it once. Remove one.")
    return values


def _integer(text: str) -> int:
    digits = len(text)
    require(digits <= LONGEST_INTEGER, "config", f"a number of {digits:,} digits", "fewer", "Correct the number.")
    return int(text)


def _constant(text: str) -> float:
    raise ConfigError(f"config: got {text}, which is not JSON, expected a finite number. Correct the number.")


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; ConfigError where it is not JSON, or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"config: got text that is not JSON ({error}), expected an object; recipes in Python are named .py. Correct the "
            "file."
        ) from error
    except RecursionError:
        raise ConfigError(
            "config: got JSON nested too deep to read, expected sections of fields. Correct it."
        ) from None
