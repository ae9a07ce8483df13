"""What every implementation of attention is given beside its arrays, and how its gradient rules are called."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero


class Options(NamedTuple):
    """What is fixed when attention is traced."""

    causal: bool
    dropout_rate: float
    reach_tolerance: float | None  # largest share of a row's softmax mass that may be skipped; None: skip nothing
    interpret: bool = False  # run a Pallas kernel step by step, on any device


def values_and_perturbed(primals: Any) -> tuple[Any, Any]:
    """Of what a custom_vjp with symbolic zeros is given: the values, and whether anything asks for each one's gradient."""

    def is_primal(leaf: Any) -> bool:
        return isinstance(leaf, CustomVJPPrimal)

    return tuple(
        jax.tree.map(lambda leaf, name=name: getattr(leaf, name), primals, is_leaf=is_primal)
        for name in ("value", "perturbed")
    )


def cotangent(gradient: Any) -> jax.Array:
    """The gradient that came, zeros where nobody used the output."""
    return jnp.zeros(gradient.shape, gradient.dtype) if isinstance(gradient, SymbolicZero) else gradient
