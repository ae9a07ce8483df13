"""alibi_jax: train short, test long. Position methods, attention and an extrapolation evaluation in JAX and Flax.

A public name is imported when it is first used (PEP 562): `from alibi_jax import attend` loads attention alone, and not what
trains, stores and evaluates (Flax, Orbax, Grain, TensorStore); and a command handles Ctrl-C before JAX is loaded.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from alibi_jax.attention import attend
    from alibi_jax.config import Config, ModelConfig, load_config
    from alibi_jax.evaluate.nats import token_nats
    from alibi_jax.evaluate.run import evaluate_run
    from alibi_jax.evaluate.sweep import sweep
    from alibi_jax.model import TransformerLM
    from alibi_jax.positions import BucketBias, LinearBias, alibi_slopes
    from alibi_jax.train import train

__version__ = "0.1.0"
__all__ = [
    "BucketBias",
    "Config",
    "LinearBias",
    "ModelConfig",
    "TransformerLM",
    "alibi_slopes",
    "attend",
    "evaluate_run",
    "load_config",
    "sweep",
    "token_nats",
    "train",
]

_MODULES = {  # public name -> its module; `train` is below
    "BucketBias": "alibi_jax.positions",
    "Config": "alibi_jax.config",
    "LinearBias": "alibi_jax.positions",
    "ModelConfig": "alibi_jax.config",
    "TransformerLM": "alibi_jax.model",
    "alibi_slopes": "alibi_jax.positions",
    "attend": "alibi_jax.attention",
    "evaluate_run": "alibi_jax.evaluate.run",
    "load_config": "alibi_jax.config",
    "sweep": "alibi_jax.evaluate.sweep",
    "token_nats": "alibi_jax.evaluate.nats",
}


class _Package(types.ModuleType):
    """The package, in which `train` is the function: Python binds the name to the module when that is imported."""

    @property
    def train(self) -> Any:
        """Returns the function `alibi_jax.train.train`."""
        return importlib.import_module("alibi_jax.train").train

    @train.setter
    def train(self, module: types.ModuleType) -> None:
        """Ignores the module."""


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Returns a public name, imported from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Returns the public names, imported or not."""
    return [*__all__, "__version__"]
