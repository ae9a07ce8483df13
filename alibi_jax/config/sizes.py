"""The number of parameters of a model, from its config."""

import math
from typing import TYPE_CHECKING

from alibi_jax.positions.methods import POSITIONS

if TYPE_CHECKING:
    from alibi_jax.config.model import ModelConfig

STATE = 16  # bytes of a parameter in training: itself, its gradient and two moments, float32


def parameter_count(model: "ModelConfig") -> int:
    """Returns the number of parameters; without embedding and softmax where the vocabulary is not known."""
    width, biases = model.width, model.use_biases
    attention = 4 * width**2 + biases * 4 * width
    mlp = 2 * width * model.mlp_width + biases * (model.mlp_width + width)
    layers = model.num_layers * (attention + mlp + 2 * 2 * width)  # two norms of scale and bias
    return layers + 2 * width * model.final_norm + _position(model) + (_vocabulary(model) if model.vocab_size else 0)


def _position(model: "ModelConfig") -> int:
    parameters = POSITIONS[model.position].from_config(model).parameters()
    return sum(math.prod(parameter.shape) for parameter in parameters.values())


def _vocabulary(model: "ModelConfig") -> int:
    """Returns the number of parameters of the embedding and the softmax, over all clusters."""
    tables = sum(cluster.size * cluster.width for cluster in model.clusters)
    if not model.adaptive_cutoffs:
        return tables if model.tied_embedding else 2 * tables
    head, *tails = (cluster.width * model.width for cluster in model.clusters)
    projections = head + sum(tails) + (0 if model.tied_projections else sum(tails))
    return (tables if model.tied_embedding else 2 * tables) + projections + len(tails) * model.width
