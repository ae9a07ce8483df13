"""A checkpoint's tensors as our parameters, one tensor after the other: in memory are the parameters and the one at hand."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from alibi_jax.config import ModelConfig
from alibi_jax.convert.family import Tensor
from alibi_jax.convert.matching import holders
from alibi_jax.convert.stored import Stored
from alibi_jax.errors import listed
from alibi_jax.model.placement import parameter_shapes

AT_ONCE = 2**22  # numbers that are looked at for NaN together
ALIGNMENT = 64  # bytes; XLA copies arrays that begin elsewhere

logger = logging.getLogger("alibi_jax")


def shapes_by_path(model: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and type of each parameter by its path, such as "layers/attention/query"."""
    return traverse_util.flatten_dict(parameter_shapes(model), sep="/")


def load_parameters(
    tensors: Sequence[Tensor], stored: dict[str, Stored], model: ModelConfig, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Returns the tree of a model's parameters, of model.parameter_dtype and with stacked layers, in the host's memory.

    The tensors have passed `check_tensors`. progress is called with the bytes of each. Logs tensors that were rounded to a
    shorter type, and warns of NaN and infinity, with the tensors' names.
    """
    arrays = {path: _empty(leaf.shape, leaf.dtype) for path, leaf in shapes_by_path(model).items()}
    held, filled = holders(tensors, stored), Counter()
    unsound: dict[str, None] = {}  # in order
    for tensor in dict.fromkeys(held.values()):
        pieces = tensor.split(stored[tensor.name].read())
        for path, piece in zip(tensor.ours, pieces, strict=True):
            if held[path] is tensor:
                name, target = located(arrays, path)
                if target.shape != piece.shape:
                    raise TypeError(f"{path}: {tensor.name} gives {piece.shape}, expected {target.shape}")
                with np.errstate(over="ignore"):  # what becomes infinite is warned of
                    target[...] = piece
                filled[name] += piece.size
                unsound |= {} if _is_finite(target) else {tensor.name: None}
        progress(stored[tensor.name].num_bytes)
    if wrong := [path for path, array in arrays.items() if filled[path] != array.size]:
        raise TypeError(f"the family's tensors do not fill {listed(wrong)}")
    _log_rounded([stored[tensor.name].dtype for tensor in set(held.values())], jnp.dtype(model.parameter_dtype))
    if unsound:
        logger.warning("import: NaN or infinity in %s: losses that depend on them will be NaN", listed(unsound))
    cpu = jax.local_devices(backend="cpu")[0]
    return traverse_util.unflatten_dict(jax.device_put(arrays, cpu, may_alias=True), sep="/")


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array that JAX takes as one of a CPU without a copy, and Orbax, which copies numpy's, saves without one."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(num_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def located(arrays: dict[str, np.ndarray], path: str) -> tuple[str, np.ndarray]:
    """Returns where a parameter of one layer lies, and its array there: layer_3/mlp/up may be layers/mlp/up[3]."""
    layer = re.fullmatch(r"layer_(\d+)/(.+)", path)
    if layer is None or path in arrays:
        return path, arrays[path]
    stacked = f"layers/{layer[2]}"
    return stacked, arrays[stacked][int(layer[1])]


def _is_finite(array: np.ndarray) -> bool:
    flat = array.reshape(-1)
    return all(np.isfinite(flat[i : i + AT_ONCE]).all() for i in range(0, flat.size, AT_ONCE))


def _log_rounded(dtypes: Sequence[str], dtype: np.dtype) -> None:
    """Logs how many tensors had more bits than `dtype` keeps."""
    kept = jnp.finfo(dtype).nmant + 1
    for name, count in sorted(Counter(dtypes).items()):
        bits = jnp.finfo(name).nmant + 1
        if bits > kept:
            text = "import: tensors rounded from %s to %s, %d significant bits to %d: %d"
            logger.info(text, name, dtype.name, bits, kept, count)
