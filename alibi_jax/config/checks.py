"""Frozen values that check themselves when they are created; errors say what was got, what is expected and what to do."""

import dataclasses
import types
import typing
from typing import Any, ClassVar, Literal

from alibi_jax.config.limits import BELONGS, RANGES
from alibi_jax.errors import ConfigError, require, shown

GIB = 2**30
LONGEST_TEXT = 200  # characters of a value in a message
LARGEST = 2**54  # bytes: 16 million GiB, more than any computer can address

UNIONS = types.UnionType, typing.Union  # int | None is of the first kind, float | Literal["x"] of the second


def _kind_name(kind: Any) -> str:
    """Returns a field's type as messages show it: the values of a Literal, the types of a union."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in UNIONS:
        return " | ".join(map(_kind_name, arguments))
    return "None" if kind is types.NoneType else str(kind) if origin else kind.__name__


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in UNIONS:
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _numbers(value: Any) -> list[float]:
    """Returns the numbers of a field: one, several, or none."""
    items = value if isinstance(value, tuple) else (value,)
    return [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]


def gib(number: int) -> str:
    """Returns a number of bytes as text in GiB, three digits."""
    whole = number // GIB
    return (
        f"{number / GIB:,.3g} GiB"
        if whole < 10**15
        else f"{whole:.3e} GiB"
        if whole < 10**300
        else "10^300 GiB or more"
    )


def check_values(section: Any, name: str) -> None:
    """Raises ConfigError where a number of a dataclass is out of its range, or a field is set that has no effect (limits.py).

    Sizes that are too large are checked last, and the error says how much memory the section would take (`memory()`).
    """
    fields = [field for field in dataclasses.fields(section) if _numbers(getattr(section, field.name))]
    for is_size in (False, True):
        for field in fields:
            for value in _numbers(getattr(section, field.name)):
                bounds = RANGES[f"{name}.{field.name}"]
                if value > bounds.high and bounds.is_size:
                    if is_size:
                        raise _too_large(section, f"{name}.{field.name}", value)
                elif not bounds.low <= value <= bounds.high:
                    do = "Raise it." if value < bounds.low else "Lower it." if value > bounds.high else "Pass a number."
                    raise ConfigError(f"{name}.{field.name}: got {shown(value)}, expected {bounds}. {do}")
    _check_used(section, name)


def _too_large(section: Any, path: str, value: int) -> ConfigError:
    taken = f", which would take {gib(section.memory())}" if hasattr(section, "memory") else ""
    return ConfigError(f"{path}: got {shown(value)}{taken}, expected {RANGES[path]}. Lower it.")


def _check_used(section: Any, name: str) -> None:
    """Raises ConfigError for a field that is not at its default although, by the values of the others, it has no effect."""
    for field in dataclasses.fields(section):
        belongs = BELONGS.get(f"{name}.{field.name}")
        value = getattr(section, field.name)
        if belongs is None or value == field.default or belongs.holds(getattr(section, belongs.other)):
            continue
        other = f"{name}.{belongs.other}"
        held = getattr(section, belongs.other)
        wanted = " or ".join(map(repr, belongs.values))
        raise ConfigError(
            f"{name}.{field.name}: got {shown(value)} with {other} {held!r}, expected {other} "
            f"{wanted or f'other than {held!r}'}: otherwise it has no effect. Set {other}, or set {name}.{field.name} to "
            f"its default, {field.default!r}."
        )


def without_unused(kind: type["Section"], values: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a section that have an effect by the values of the others; the rest get their defaults."""
    known = {field.name: field.default for field in dataclasses.fields(kind)} | values
    belonging = {name: BELONGS.get(f"{kind.section}.{name}") for name in values}
    return {
        name: value
        for name, value in values.items()
        if belonging[name] is None or belonging[name].holds(known[belonging[name].other])
    }


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a config: checks each field's type, range and use; subclasses add the checks between fields."""

    section: ClassVar[str] = ""  # its name in the config, before the field's

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            kind, value = hints[field.name], getattr(self, field.name)
            path = f"{self.section}.{field.name}".lstrip(".")
            require(_fits(value, kind), path, shown(value), _kind_name(kind), f"Set {path} to a value of that kind.")
        check_values(self, self.section)
        self.check()

    def check(self) -> None:
        """Raises ConfigError where fields do not fit together; overridden in subclasses."""
