"""How foreign checkpoints order the elements of a parameter: rows of torch's Linear, of a Conv1D, fused queries, keys, values.

Ours are [*inputs, *outputs], such as [E, H, D] for queries and [H, D, E] for attention's output. A bias has no inputs. Every
layout goes both ways and only reorders.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from alibi_jax.convert.family import Tensor

Shape = tuple[int, ...]


def same(name: str, path: str, shape: Shape, *, tied: bool = False) -> Tensor:
    """Returns a tensor that is the parameter as it is, such as an embedding table or the scale of a norm."""
    return Tensor(name, shape, (path,), lambda array: (array,), lambda arrays: arrays[0], tied)


def constant(name: str, numbers: np.ndarray) -> Tensor:
    """Returns a tensor that holds no parameter, but numbers that the model computes itself: others are refused."""
    return Tensor(name, numbers.shape, (), lambda array: (), lambda arrays: numbers, tied=True, constant=numbers)


def norm(name: str, path: str, *shape: int, bias: bool = True) -> list[Tensor]:
    """Returns the weight of a norm and, where it has one, its bias; ours may have several dimensions, such as [H, D]."""
    scale = linear(f"{name}.weight", f"{path}/scale", (), shape)
    return [scale, linear(f"{name}.bias", f"{path}/bias", (), shape)] if bias else [scale]


def linear(name: str, path: str, inputs: Shape, outputs: Shape, *, in_out: bool = False) -> Tensor:
    """Returns the weight of a torch Linear, [outputs, inputs], or with in_out of a Conv1D, [inputs, outputs]; or a bias."""
    return blocks(name, (path,), inputs, (outputs,), in_out=in_out)


def affine(name: str, path: str, inputs: Shape, outputs: Shape, *, in_out: bool = False) -> list[Tensor]:
    """Returns the weight of a Linear, or with in_out of a Conv1D, and its bias."""
    bias = linear(f"{name}.bias", f"{path}_bias", (), outputs)
    return [linear(f"{name}.weight", path, inputs, outputs, in_out=in_out), bias]


def blocks(name: str, paths: Sequence[str], inputs: Shape, outputs: Sequence[Shape], *, in_out: bool = False) -> Tensor:
    """Returns the weight of a Linear, or its bias, whose outputs are those of several parameters one after the other.

    Such as [queries | keys | values] or [gate | up].
    """
    sizes = [math.prod(shape) for shape in outputs]
    cuts = list(itertools.accumulate(sizes))[:-1]

    def split(array: np.ndarray) -> list[np.ndarray]:
        rows = (array.T if in_out else array).reshape(sum(sizes), -1)
        pieces = zip(np.split(rows, cuts), outputs, strict=True)
        return [piece.T.reshape(*inputs, *shape) for piece, shape in pieces]

    def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.concatenate([_rows(array, inputs) for array in arrays])
        return (rows.T if in_out else rows).reshape(shape)

    shape = _shape(sum(sizes), inputs, in_out)
    return Tensor(name, shape, tuple(paths), split, join)


def interleaved(name: str, paths: Sequence[str], inputs: Shape, heads: int, head_width: int) -> Tensor:
    """Returns the weight of a Linear, or its bias, whose rows go by head: [heads, parameters, head width]."""
    order = heads, len(paths), head_width

    def split(array: np.ndarray) -> list[np.ndarray]:
        rows = array.reshape(*order, -1)
        pieces = (rows[:, i].reshape(heads * head_width, -1) for i in range(len(paths)))
        return [piece.T.reshape(*inputs, heads, head_width) for piece in pieces]

    def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
        pieces = [_rows(array, inputs).reshape(heads, 1, head_width, -1) for array in arrays]
        return np.concatenate(pieces, axis=1).reshape(shape)

    shape = _shape(math.prod(order), inputs, False)
    return Tensor(name, shape, tuple(paths), split, join)


def _rows(array: np.ndarray, inputs: Shape) -> np.ndarray:
    return array.reshape(math.prod(inputs), -1).T


def _shape(outputs: int, inputs: Shape, in_out: bool) -> Shape:
    both = (outputs, math.prod(inputs)) if inputs else (outputs,)
    return both[::-1] if in_out else both
