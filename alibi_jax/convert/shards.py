"""Parameters as a family's tensors in safetensors files: one, or shards with an index."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alibi_jax.config import ModelConfig
from alibi_jax.convert.family import Family, Tensor
from alibi_jax.convert.parameters import located
from alibi_jax.convert.source import DTYPES
from alibi_jax.storage import write_atomically

SHARD_BYTES = 2 * 10**9
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(folder: Path, family: Family, model: ModelConfig, arrays: dict[str, np.ndarray]) -> None:
    """Writes the parameters by their paths as model.safetensors, or as shards of at most SHARD_BYTES and their index."""
    shards = _shards([tensor for tensor in family.tensors(model) if not tensor.tied], arrays)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    places = {}
    for name, tensors in zip(names, shards, strict=True):
        _write_safetensors(folder / name, {family.full_name(tensor): tensor for tensor in tensors}, arrays)
        places |= dict.fromkeys(map(family.full_name, tensors), name)
    if len(shards) > 1:
        size = sum(_num_bytes(tensor, arrays) for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_atomically(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _write_safetensors(path: Path, tensors: dict[str, Tensor], arrays: dict[str, np.ndarray]) -> None:
    """Writes a file with one tensor in memory at a time; the library's writer would hold all of them three times."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + _num_bytes(tensor, arrays)
        header[name] = {"dtype": NAMES[_dtype(tensor, arrays)], "shape": tensor.shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            joined = tensor.join([located(arrays, path)[1] for path in tensor.ours])
            file.write(np.ascontiguousarray(joined).reshape(-1).view(np.uint8))
        file.flush()
        os.fsync(file.fileno())


def _dtype(tensor: Tensor, arrays: dict[str, np.ndarray]) -> np.dtype:
    return located(arrays, tensor.ours[0])[1].dtype


def _num_bytes(tensor: Tensor, arrays: dict[str, np.ndarray]) -> int:
    return _dtype(tensor, arrays).itemsize * math.prod(tensor.shape)


def _shards(tensors: Sequence[Tensor], arrays: dict[str, np.ndarray]) -> list[list[Tensor]]:
    """Returns the tensors of each file: at most SHARD_BYTES, unless one alone has more. The widest numbers come first."""
    shards, room = [], 0
    for tensor in sorted(tensors, key=lambda tensor: -_dtype(tensor, arrays).itemsize):
        size = _num_bytes(tensor, arrays)
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= size
    return shards
