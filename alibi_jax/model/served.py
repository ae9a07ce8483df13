"""Whether the configured attention can serve a model on these devices, checked before any work is done."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from alibi_jax.config import ModelConfig
from alibi_jax.errors import ConfigError, LengthError
from alibi_jax.model.transformer import TransformerLM
from alibi_jax.sharding import num_shards


def check_served(field: str, config: ModelConfig, lengths: Iterable[int], trained: bool) -> None:
    """Raises ConfigError, naming `field`, where config.attention cannot serve an input of one of these lengths, in tokens.

    trained: gradients are needed too. One layer is traced; nothing is computed or allocated. "auto" serves everything. Called
    inside `jax.set_mesh(mesh)`.
    """
    if config.attention == "auto":
        return
    model = TransformerLM(dataclasses.replace(config, num_layers=1, vocab_size=config.vocab_size or 256))

    def loss(params: dict, tokens: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)} if trained else None
        return model.apply({"params": params}, tokens, tokens, train=trained, rngs=rngs, method="nats").sum()

    for length in dict.fromkeys(lengths):
        tokens = jax.ShapeDtypeStruct((num_shards(jax.sharding.get_mesh(), "batch"), length), jnp.int32)
        try:
            params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
            jax.eval_shape(jax.grad(loss) if trained else loss, params, tokens)
        except LengthError:
            continue  # the position method's own limit, which a sweep records
        except NotImplementedError as error:
            raise ConfigError(
                f"{field}: got {config.attention!r} at length {length} ({error}), expected an implementation that serves this "
                f"model here. Pass --{field} auto."
            ) from error
