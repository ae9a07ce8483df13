"""A tensor as it lies in a file: its name there is known, its numbers are read when they are used."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from alibi_jax.errors import WeightsError

LFS = b"version https://git-lfs"  # what a clone without Git LFS has in place of a large file


class Stored(NamedTuple):
    """A tensor in a file. `read` maps it into memory: the system loads its pages as they are used, and may drop them again."""

    path: Path
    dtype: str  # numpy's name, or the file's where numpy has none
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of its numbers, whose type numpy has to know."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize  # jax's, for bfloat16


def mapped(path: Path, offset: int, dtype: np.dtype, count: int) -> np.ndarray:
    """Returns `count` numbers of a file from a byte on, flat and read-only; the file has to be long enough."""
    if not count:  # the system maps no empty stretch
        return np.empty(0, dtype)
    raw = np.memmap(path, np.uint8, "r", offset, (count * dtype.itemsize,))
    return np.asarray(raw).view(dtype)  # numpy's memmap itself does not know types such as bfloat16


def check_weights_file(path: Path) -> None:
    """Raises WeightsError for a file of tensors that is missing, or that Git LFS or a download has not fetched."""
    if not path.is_file():
        raise WeightsError(f"{path}: got no such file, expected one of tensors. Download it again.")
    with path.open("rb") as file:
        begin = file.read(len(LFS))
    if begin == LFS:
        raise WeightsError(
            f"{path}: got a pointer of Git LFS, expected the file itself. Run `git lfs pull` in its folder."
        )
    if not begin:
        raise WeightsError(f"{path}: got an empty file, expected tensors. Download it again.")
