"""The language models whose position methods are compared."""

from alibi_jax.model.transformer import TransformerLM

__all__ = ["TransformerLM"]
