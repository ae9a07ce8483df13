"""A model of this library as an exported folder: the run's config.json, and its parameters under their own names."""

import dataclasses
import json
from typing import Any

from alibi_jax.config import Config, ModelConfig, from_json, to_json
from alibi_jax.convert.family import Architecture, Family, Tensor
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.layouts import same
from alibi_jax.convert.parameters import shapes_by_path


def architecture(fields: Fields) -> Architecture:
    """Returns the model that a run's config.json describes."""
    config = from_json(json.dumps(fields.values), of_run=True)
    fields.ignore(*fields.values)
    return Architecture(config.model, config.train.train_length)


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns one tensor for each parameter, with the name that it has where layers are not stacked."""
    shapes = shapes_by_path(dataclasses.replace(model, scan_layers=False))
    return [same(path, path, leaf.shape) for path, leaf in shapes.items()]


def config(run: Config) -> dict[str, Any]:
    """Returns the run's own config."""
    return json.loads(to_json(run))


FAMILY = Family("alibi_jax", ("alibi_jax",), architecture, tensors, config=config)
