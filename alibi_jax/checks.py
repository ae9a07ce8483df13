"""Values that check themselves when made, with errors that say got / expected / what to do."""

import dataclasses
import types
import typing
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says got / expected / what to do."""


def require(condition: bool, field: str, got: Any, expected: str, do: str) -> None:
    """Raise ConfigError with the three parts of every message here unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{field}: got {got}, expected {expected}. {do}")


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is types.UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


@dataclasses.dataclass(frozen=True)
class Section:
    """Checks every field's type; subclasses add the checks between fields."""

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            expected = " | ".join(map(repr, typing.get_args(kind))) if typing.get_origin(kind) is Literal else None
            expected = expected or getattr(kind, "__name__", str(kind))
            require(_fits(value, kind), name, repr(value), expected, f"Set {name} to a value of that kind.")
        self.check()

    def check(self) -> None:
        """Overridden with the section's own checks."""

    def require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(value > 0, name, value, "more than 0", f"Raise {name}.")

    def require_share(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(0 <= value < 1, name, value, "at least 0 and below 1", f"Set {name} to a share such as 0.1.")
