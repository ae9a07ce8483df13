"""The config of a run as one frozen, typed value: checked when it is created, written to and read from JSON.

`load_config(path, overrides)` reads a recipe (`configs/*.py`, by path or name), a `config.json`, or a run's folder; overrides
are the command line's `--section.field value`. Every check says what it got, what it expected, and what to do.
"""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alibi_jax.config.checks import Section, without_unused
from alibi_jax.config.earlier import of_today
from alibi_jax.config.model import Attention, Cluster, ModelConfig, PositionName
from alibi_jax.config.recipes import named_recipe, parse_json, run_recipe
from alibi_jax.config.sections import (
    TOKENIZER_FILES,
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    parse_stride,
)
from alibi_jax.errors import ConfigError, require, shown
from alibi_jax.positions.methods import POSITIONS
from alibi_jax.storage import Location, locate

__all__ = [
    "Attention",
    "Cluster",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PositionName",
    "TrainConfig",
    "differing_fields",
    "from_json",
    "load_config",
    "parse_stride",
    "replace",
    "require",
    "to_json",
]


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """A run: its model, data, optimizer, training, evaluation and device mesh."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def check(self) -> None:
        """Raises ConfigError where sections do not fit together."""
        lengths = {self.train.train_length, *self.train.validate_lengths}
        longest = POSITIONS[self.model.position].from_config(self.model).longest()
        self.evaluate.check_strides(self.train.train_length)
        require(
            self.model.causal,
            "model.causal",
            False,
            "True: a run trains and evaluates on the next token, which a model that is not causal reads in its input",
            "Set it to True; in a program of your own, TransformerLM serves it.",
        )
        require(
            longest is None or max(lengths) <= longest,
            "train.train_length",
            max(lengths),
            f"at most {longest}, the longest input of position {self.model.position!r}",
            "Train shorter, or enlarge the position method's table.",
        )
        require(
            self.optimizer.warmup_steps <= self.train.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"at most train.steps, {self.train.steps}",
            "Shorten the warm-up or train longer.",
        )


def replace(config: Config, section: str, **changes: Any) -> Config:
    """Returns the config with fields of one section changed, and checked again.

    Fields that belong to a choice that is changed, such as model.bias_max to position "alibi", get their defaults.
    """
    before = getattr(config, section)
    values = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)} | changes
    return dataclasses.replace(config, **{section: type(before)(**(without_unused(type(before), values) | changes))})


def to_json(config: Config) -> str:
    """Returns the config as indented JSON, which `from_json` reads."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def _section_from_dict(kind: type, name: str, values: Any, of_run: bool) -> Any:
    require(isinstance(values, dict), name, type(values).__name__, "a JSON object", f"Correct {name}.")
    values = of_today(values) if kind is ModelConfig else values
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            path = f"{name}.{key}" if name != "config" else key
            expected = f"expected one of {', '.join(known)}. Did you mean {near!r}?"
            raise ConfigError(f"{path}: got an unknown key, {expected}")
    hints = typing.get_type_hints(kind)
    fields = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            value = _section_from_dict(hints[key], key, value, of_run)
        fields[key] = tuple(value) if isinstance(value, list) else value
    return kind(**(without_unused(kind, fields) if of_run else fields))


def from_json(text: str, *, of_run: bool = False) -> Config:
    """Returns the config of a JSON text; fields that it lacks get their defaults. ConfigError for anything unknown.

    of_run: a run wrote it, perhaps of an earlier version that allowed fields without effect; these get their defaults.
    """
    return _section_from_dict(Config, "config", parse_json(text), of_run)


def _field_names() -> list[str]:
    """Returns the names of the sections and of all their fields."""
    sections = dataclasses.fields(Config)
    return [section.name for section in sections] + [
        field.name for section in sections for field in dataclasses.fields(section.default_factory)
    ]


def _file(path: Location) -> Location:
    """Returns the file that a path names, which may be a run's folder or, where nothing is there, a recipe's name."""
    if re.fullmatch(r"[\w-]+", str(path)) and not path.exists():
        return named_recipe(str(path))
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        what = f"{path}, which does not exist" if file is path else f"{path}, a folder without config.json"
    else:
        what = f"{path}, which is no file"
    require(file.is_file(), "config", what, "a .py recipe, a .json, or a run's folder", "Check the path.")
    return file


def _read(path: Location) -> Config:
    try:
        file = _file(path)
        if file.suffix == ".py":
            config = run_recipe(file, _field_names())
            require(
                isinstance(config, Config),
                str(file),
                f"{type(config).__name__} from get_config()",
                "a Config",
                "Return alibi_jax.config.Config(...).",
            )
            return config
        text = file.read_bytes().decode("utf-8-sig")  # editors of Windows begin a file with a byte-order mark
    except OSError as error:
        raise ConfigError(
            f"config: got {shown(str(path))}, which cannot be read ({error.strerror or error}), expected a .py recipe, a "
            ".json, or a run's folder. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: got {error}, expected JSON in UTF-8. Correct the file.") from error
    try:
        config = from_json(text, of_run=file is not path)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return _with_own_tokenizer(config, path)


def _with_own_tokenizer(config: Config, path: Location) -> Config:
    """Returns a folder's config with the tokenizer's file that lies there, as an imported model's does: it may have moved."""
    if config.data.tokenizer != "file" or not any((path / name).is_file() for name in TOKENIZER_FILES):
        return config
    return replace(config, "data", tokenizer_path=str(path))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the config of a recipe (.py with `get_config`, or its name), a .json, or a run's folder, with overrides.

    overrides: such as ("--model.position", "rotary"). ConfigError for a bad config; a bad override exits with status 2 and
    a message that names the nearest option.
    """
    config = _read(locate(path))
    if not overrides:
        return config
    import tyro  # the command line only

    return tyro.cli(Config, default=config, args=list(overrides))


def differing_fields(one: Config, other: Config, ignore: Sequence[str] = ()) -> list[str]:
    """Returns the fields in which two configs differ, as "section.field: here -> there"; `ignore` names sections, or fields
    as section.field."""
    left, right = dataclasses.asdict(one), dataclasses.asdict(other)
    return [
        f"{section}.{field}: {left[section][field]} -> {right[section][field]}"
        for section in left
        if section not in ignore
        for field in left[section]
        if f"{section}.{field}" not in ignore and left[section][field] != right[section][field]
    ]
