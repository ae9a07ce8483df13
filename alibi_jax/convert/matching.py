"""A checkpoint's tensors beside those that its model has: whatever does not fit is one error that names all."""

import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from alibi_jax.convert.family import Family, Tensor
from alibi_jax.convert.stored import Stored
from alibi_jax.errors import WeightsError, listed

FLOATS = ("float16", "bfloat16", "float32", "float64")


def todays_names(family: Family, stored: dict[str, Stored]) -> dict[str, Stored]:
    """Returns the tensors by the family's names of today, without its prefix and without those that hold no parameter.

    WeightsError for two that would have the same name.
    """
    renamed: dict[str, str] = {}
    for name in stored:
        short = family.renamed(name.removeprefix(family.prefix))
        if short in renamed:
            raise WeightsError(
                f"{stored[name].path}: got tensors {renamed[short]} and {name}, expected one of them: both are the "
                f"{family.name} model's {short}. Remove one."
            )
        if not re.fullmatch(family.harmless, short):
            renamed[short] = name
    return {short: stored[name] for short, name in renamed.items()}


def holders(tensors: Sequence[Tensor], stored: dict[str, Stored]) -> dict[str, Tensor]:
    """Returns the tensor that is there for each parameter: its own, or else one that is tied to it."""
    there = [tensor for tensor in tensors if tensor.name in stored]
    chosen: dict[str, Tensor] = {}
    for tensor in sorted(there, key=lambda tensor: tensor.tied):
        for path in tensor.ours:
            chosen.setdefault(path, tensor)
    return chosen


def check_tensors(tensors: Sequence[Tensor], stored: dict[str, Stored], where: str) -> None:
    """Raises WeightsError for tensors that are unknown, missing, of another shape or type, or unlike what they are tied to."""
    expected = {tensor.name: tensor for tensor in tensors}
    held = holders(tensors, stored)
    fitting = {name for name in stored if name in expected and stored[name].shape == expected[name].shape}
    floating = {name for name in fitting if stored[name].dtype in FLOATS}
    problems = {
        "unknown": [name for name in stored if name not in expected],
        "missing": [tensor.name for tensor in tensors if not tensor.tied and not held.keys() >= set(tensor.ours)],
        "of another shape": [
            f"{name} {list(stored[name].shape)} in place of {list(expected[name].shape)}"
            for name in stored
            if name in expected and name not in fitting
        ],
        "of another type than " + ", ".join(FLOATS): [f"{name} {stored[name].dtype}" for name in fitting - floating],
        "unlike the tensor it is tied to": [
            f"{tensor.name} and {held[path].name}"
            for tensor in tensors
            if tensor.name in floating
            for path in tensor.ours
            if held[path].name in floating and held[path] is not tensor and not _same(tensor, held[path], path, stored)
        ],
        "unlike what the model computes": [
            tensor.name
            for tensor in tensors
            if tensor.name in floating and tensor.constant is not None and not _rounds_to(tensor, stored[tensor.name])
        ],
    }
    wrong = "; ".join(f"{what}: {listed(sorted(names))}" for what, names in problems.items() if names)
    if wrong:
        raise WeightsError(
            f"{where}: got tensors that are {wrong}; expected the {len(tensors)} tensors of the model that its config "
            "describes. Check that config and tensors are of one model, and that the download is whole."
        )


def _same(one: Tensor, other: Tensor, path: str, stored: dict[str, Stored]) -> bool:
    """Returns whether two tensors hold the same bits of one parameter."""
    mine, theirs = (_piece(tensor, path, stored) for tensor in (one, other))
    return mine.dtype == theirs.dtype and all(
        np.array_equal(left.view(np.uint8), right.view(np.uint8))
        for left, right in zip(map(np.ascontiguousarray, mine), map(np.ascontiguousarray, theirs), strict=True)
    )


def _rounds_to(tensor: Tensor, stored: Stored) -> bool:
    """Returns whether a constant tensor's numbers are right to two units in the last place of their type."""
    tolerance = 2 * float(jnp.finfo(stored.dtype).eps)
    return np.allclose(stored.read().astype(np.float32), tensor.constant, rtol=tolerance, atol=0)


def _piece(tensor: Tensor, path: str, stored: dict[str, Stored]) -> np.ndarray:
    return tensor.split(stored[tensor.name].read())[tensor.ours.index(path)]
