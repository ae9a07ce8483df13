"""What a family of foreign checkpoints is: the model that its config describes, and the tensors that hold our parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alibi_jax.config import Config, ModelConfig
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.source import Opened, open_folder


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a foreign checkpoint, and the parameters of ours that it holds.

    `split` returns the parameters' arrays, `join` the tensor again, to the bit where both only reorder elements. A tied tensor
    is a second copy of what another one holds: files may lack it, and one that differs is refused. So may they a constant one,
    which holds no parameter but what the model computes itself.
    """

    name: str  # in the foreign checkpoint, without the family's prefix
    shape: tuple[int, ...]
    ours: tuple[str, ...]  # paths, such as "layer_0/attention/query"
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]
    tied: bool = False
    constant: np.ndarray | None = None


class Architecture(NamedTuple):
    """What a foreign config says: our config of the model, with vocab_size, and the longest input it was trained on."""

    model: ModelConfig
    train_length: int | None  # tokens; None: the config does not say


@dataclasses.dataclass(frozen=True)
class Family:
    """Checkpoints that share their names and their order of elements."""

    name: str  # on the command line
    model_types: tuple[str, ...]  # of config.json, by which `auto` knows it
    architecture: Callable[[Fields], Architecture]
    # all that a checkpoint of this model holds, one layer after the other
    tensors: Callable[[ModelConfig], list[Tensor]]
    prefix: str = ""  # of every name in files of the whole model; those of the base model alone lack it
    open: Callable[[Path], Opened] = open_folder  # its files; WeightsError for broken ones
    harmless: str = r"(?!)"  # pattern of further tensors, which hold no parameter
    renamed: Callable[[str], str] = str  # from the names of earlier versions of the family to today's
    # config.json of an export of a run, whose model may be another one than it says; None: the family is not exported
    config: Callable[[Config], dict[str, Any]] | None = None

    def full_name(self, tensor: Tensor) -> str:
        """Returns a tensor's name in files of the whole model; the head alone stands outside the base model."""
        return tensor.name if tensor.name.startswith("lm_head.") else f"{self.prefix}{tensor.name}"
