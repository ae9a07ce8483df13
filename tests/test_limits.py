"""Ranges and uses of fields: every number of every section and command is walked, so that a new one cannot lack its range."""

import dataclasses
import math
import re
import time
import typing

import pytest

from alibi_jax.config import Config, from_json
from alibi_jax.config.limits import BELONGS, FILES, RANGES, SOMEBODYS, TFDS
from alibi_jax.errors import ConfigError
from alibi_jax.run.commands import Evaluate, Import, Plan, Prepare, Report, Supervise, Train
from alibi_jax.run.hosts import Hosts

MAKE = {field.name: field.default_factory for field in dataclasses.fields(Config)} | {
    "hosts": Hosts,
    "supervise": lambda **values: Supervise(**({"command": (), "workdir": "run", "last_step": 1} | values)),
    "plan": lambda **values: Plan(Config(), "cpu:8", **values),
    "import": lambda **values: Import("auto", "model", "run", **values),
}
MAY_BE_0 = {
    *(f"model.{place}_dropout" for place in ("adaptive", "embedding", "residual", "attention", "activation")),
    *("optimizer.initial_learning_rate", "optimizer.final_learning_rate", "optimizer.warmup_steps"),
    *("optimizer.momentum", "optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay", "train.seed"),
    *("train.validate_every", "evaluate.max_tokens", "evaluate.memory_limit_gib", "supervise.patience"),
    *("hosts.count", "hosts.index", "supervise.stop_seconds", "supervise.stall_seconds"),
}
MAY_BE_MINUS_1 = {"mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence", "hosts.index"}


def numbers(kind) -> set:
    """int or float, where a field of this type holds them."""
    parts = {kind, *typing.get_args(kind)}
    return parts & {int, float}


def number_fields() -> dict[str, tuple]:
    """section.field -> (type of the number, whether it holds several)."""
    kinds = {name: type(make()) for name, make in MAKE.items()}
    return {
        f"{name}.{field}": (numbers(kind).pop(), typing.get_origin(kind) is tuple)
        for name, section in kinds.items()
        for field, kind in typing.get_type_hints(section).items()
        if numbers(kind)
    }


FIELDS = number_fields()


def refused(path: str, value, **others) -> str:
    """The message with which a value of a field is refused."""
    name, field = path.split(".")
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        MAKE[name](**{field: (value,) if FIELDS[path][1] else value}, **others)
    assert time.perf_counter() - start < 0.5
    return str(caught.value)


def test_every_number_has_a_range_and_no_range_is_left_over():
    assert set(FIELDS) == set(RANGES)


def test_commands_without_a_walk_have_no_numbers():
    for command in (Prepare, Train, Evaluate, Report):
        assert not any(numbers(kind) for kind in typing.get_type_hints(command).values()), command


@pytest.mark.parametrize("path", FIELDS)
def test_numbers_without_sense_are_refused_by_name(path):
    kind, several = FIELDS[path]
    values = [
        10**18,
        10**23,
        10**5000,
        *((math.nan, math.inf, -math.inf, -1e18, 1e300) if kind is float else (-(10**18),)),
    ]
    values += [0] if path not in MAY_BE_0 else []
    values += [-1] if path not in MAY_BE_MINUS_1 else []
    for value in values:
        message = refused(path, kind(value) if kind is float and abs(value) < 1e301 else value)
        named = path in message or (path.startswith("mesh.") and f"{path.split('.')[1]} 0" in message)
        assert named and "expected" in message and len(message) < 1000, message
        assert value not in (0, -1) or several or f"got {value}" in message or "mesh: got" in message, message


@pytest.mark.parametrize("path", FIELDS)
def test_defaults_lie_in_their_ranges(path):
    name, field = path.split(".")
    value = getattr(MAKE[name](), field)
    low, high, _ = RANGES[path]
    assert all(low <= item <= high for item in (value if isinstance(value, tuple) else (value,)) if numbers(type(item)))


@pytest.mark.parametrize(
    "path", [path for path, bounds in RANGES.items() if bounds.is_size and not path.startswith("plan")]
)
def test_sizes_are_refused_with_what_they_would_take(path):
    needed = {"model.vocab_size": {"adaptive_cutoffs": ()}, "model.learned_length": {"position": "learned"}}
    assert re.search(r"which would take \d[\d.e+,]* GiB, expected 1 to", refused(path, 10**18, **needed.get(path, {})))


def test_sizes_that_are_in_range_but_too_large_together_are_refused():
    with pytest.raises(ConfigError, match=r"model: got [\d,]+ parameters, which would take .* GiB in training"):
        MAKE["model"](width=2**20, num_layers=10_000)
    with pytest.raises(ConfigError, match=r"train.batch_size: got 2,147,483,647 sequences of 2,147,483,647 tokens"):
        MAKE["train"](batch_size=2**31 - 1, train_length=2**31 - 1)


def another(value):
    """A value of the same kind that is no field's default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "other"
    if value is None:
        return 1
    if isinstance(value, tuple):
        return tuple(reversed(value)) or (7,)
    return value * 0.9 or 1e-4 if isinstance(value, float) else value + 1


def settings(path: str) -> tuple[str, str, object, object, list]:
    """(section, field, a value that is not its default, a value of the other field that does not go with it, those that do)."""
    name, field = path.split(".")
    kind, built = type(MAKE[name]()), MAKE[name]()
    belongs, choices = BELONGS[path], typing.get_args(typing.get_type_hints(kind)[field])
    default, other = getattr(built, field), getattr(built, belongs.other)
    value = next((choice for choice in choices if isinstance(choice, str) and choice != default), None) or another(
        default
    )
    all_others = typing.get_args(typing.get_type_hints(kind)[belongs.other])
    without = [choice for choice in all_others if isinstance(choice, str)] or [type(other)()]
    with_it = list(belongs.values) or [True if other is False else (7,) if isinstance(other, tuple) else 1]
    return name, field, value, next(each for each in without if not belongs.holds(each)), with_it


@pytest.mark.parametrize("path", BELONGS)
def test_field_of_another_choice_is_refused(path):
    name, field, value, without, with_it = settings(path)
    other = BELONGS[path].other
    with pytest.raises(ConfigError) as caught:
        MAKE[name](**{field: value, other: without})
    message = str(caught.value)
    assert message.startswith(f"{path}: got {value!r} with {name}.{other} {without!r}, expected {name}.{other} "), (
        message
    )
    needs = {FILES: {"train_path": "text"}, TFDS: {"tfds_name": "lm1b"}, SOMEBODYS: {"tokenizer_path": "folder"}}
    needed = needs.get(BELONGS[path], {})
    needed |= {"slope_divisor": 2.0} if field == "slope_scaling" else {}
    for choice in with_it:
        MAKE[name](**{**needed, field: value, other: choice})


def test_config_of_a_finished_run_with_all_fields_at_their_defaults_loads():
    assert from_json("{}") == Config()
