"""The number of parameters of a model, from its config."""

import math
from typing import TYPE_CHECKING

from alibi_jax.positions.methods import POSITIONS

if TYPE_CHECKING:
    from alibi_jax.config.model import ModelConfig

STATE = 16  # bytes of a parameter in training: itself, its gradient and two moments, float32


def parameter_count(model: "ModelConfig") -> int:
    """Returns the number of parameters; without embedding and softmax where the vocabulary is not known."""
    layers = model.num_layers * (matrices(model) + _biases(model) + _norms(model))
    norms = (model.final_norm + model.embedding_norm) * _norm(model, model.width)
    return layers + norms + _position(model) + (_vocabulary(model) if model.vocab_size else 0)


def matrices(model: "ModelConfig") -> int:
    """Returns the number of parameters of a layer's matrices, each of which a token is multiplied by once."""
    queries_and_out, keys_and_values = 2 * model.width, 2 * model.kv_heads * model.head_width
    return model.width * (queries_and_out + keys_and_values + (2 + model.gated_mlp) * model.mlp_width)


def _biases(model: "ModelConfig") -> int:
    """Returns the number of biases of a layer's matrices."""
    sizes = {
        "qkv": model.width + 2 * model.kv_heads * model.head_width,
        "out": model.width,
        "up": (1 + model.gated_mlp) * model.mlp_width,
        "down": model.width,
    }
    return sum(sizes[name] for name in model.biases)


def _norms(model: "ModelConfig") -> int:
    """Returns the number of parameters of a layer's norms."""
    keys = model.kv_heads * model.head_width
    of_qk = {"none": 0, "head": 2 * model.head_width, "channels": model.width + keys}
    return _norm(model, 2 * model.width + of_qk[model.qk_norm])


def _norm(model: "ModelConfig", channels: int) -> int:
    return channels * (2 if model.norm == "layer" and model.norm_biases else 1)


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
