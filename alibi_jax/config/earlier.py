"""Fields of the model as earlier versions wrote them, in a run's config.json and in its checkpoints."""

from typing import Any

from alibi_jax.config.model import BIASED

EARLIER: dict[str, dict[Any, dict[str, Any]]] = {  # field -> what it was -> the same today
    "use_biases": {True: {"biases": BIASED}, False: {"biases": ()}},
    "scale_embedding": {True: {"embedding_multiplier": "sqrt_width"}, False: {"embedding_multiplier": 1.0}},
    "activation": {"gelu": {"activation": "gelu_tanh"}},
}


def of_today(model: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a model, those of earlier versions as today's; one that stands beside its successor stays."""
    fields: dict[str, Any] = {}
    for name, value in model.items():
        meanings = EARLIER.get(name, {})
        today = meanings.get(value) if isinstance(value, bool | str) else None
        known = today is not None and not (today.keys() - {name}) & model.keys()
        fields |= today if known else {name: value}
    return fields
