"""A model's files as transformers writes them: config.json, and tensors in safetensors or .bin files, whole or in shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from alibi_jax.convert.fields import Fields
from alibi_jax.convert.pickled import load_pickled, tensors_of
from alibi_jax.convert.stored import Stored, check_weights_file, mapped
from alibi_jax.data.tokenizer.foreign import foreign_files
from alibi_jax.errors import WeightsError, listed, shown

DTYPES = {  # of safetensors
    "BF16": jnp.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "BOOL": np.dtype(np.bool_),
    **{
        f"{kind}{bits}": np.dtype(f"{name}{bits}")
        for kind, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}


class Opened(NamedTuple):
    """A foreign checkpoint before a tensor is read."""

    fields: Fields  # its config
    tensors: dict[str, Stored]
    files: list[Path]  # all that were read
    tokenizer: dict[str, bytes]  # files of its tokenizer for the run's folder, by name


def open_folder(folder: Path) -> Opened:
    """Returns the checkpoint in a folder of transformers; WeightsError where a file is missing or broken."""
    if not folder.is_dir():
        raise WeightsError(
            f"{folder}: got no folder, expected one with config.json and model.safetensors, as transformers writes it. "
            "Check the path."
        )
    config = folder / "config.json"
    fields = Fields(read_object(config), str(config))
    for index, single, load in (
        ("model.safetensors.index.json", "model.safetensors", safetensors_of),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", bin_of),
    ):
        if (folder / index).exists():
            tensors, files = _sharded(folder / index, load), [folder / index]
        elif (folder / single).exists():
            tensors, files = load(folder / single), []
        else:
            continue
        files = [config, *files, *sorted({tensor.path for tensor in tensors.values()})]
        tokenizer = foreign_files(folder)
        files += [folder / name for name in tokenizer if (folder / name).is_file()]
        return Opened(fields, tensors, files, tokenizer)
    there = listed(sorted(path.name for path in folder.iterdir()))
    raise WeightsError(
        f"{folder}: got no tensors (there are: {there}), expected model.safetensors or pytorch_model.bin, or several of them "
        "with an index. Download them."
    )


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file; WeightsError where there is no file, or it holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise WeightsError(f"{path}: got no such file, expected the model's. Download it.") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: got text that is not JSON ({error}), expected an object. Download it again."
        ) from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: got {type(value).__name__}, expected a JSON object. Download it again.")
    return value


def _sharded(index: Path, load: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    """Returns the tensors of all shards that an index names."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise WeightsError(
            f"{index}: got {shown(places)} as weight_map, expected an object from tensors to names of files beside the index. "
            "Download it again."
        )
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(f"{index}: got no {listed(missing)}, expected all {len(names)} shards. Download them.")
    shards = {name: load(index.parent / name) for name in names}
    lacking = [f"{tensor} ({name})" for tensor, name in places.items() if tensor not in shards[name]]
    if lacking:
        raise WeightsError(
            f"{index}: got shards without tensors that the index says they hold: {listed(lacking)}; expected index and shards "
            "of one model. Download both again."
        )
    extra = {tensor: stored for shard in shards.values() for tensor, stored in shard.items()}
    return extra | {tensor: shards[name][tensor] for tensor, name in places.items()}


def safetensors_of(path: Path) -> dict[str, Stored]:
    """Returns the tensors of a .safetensors file; WeightsError where its header does not fit its bytes."""
    import safetensors  # nothing else needs it

    check_weights_file(path)
    try:
        with safetensors.safe_open(path, "numpy"):  # checks the whole header against the length of the file
            pass
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: got a damaged file ({error}), expected safetensors. Download it again.") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _in_safetensors(path, 8 + length, entry) for name, entry in header.items()}


def _in_safetensors(path: Path, start: int, entry: dict[str, Any]) -> Stored:
    dtype, shape, (begin, end) = DTYPES.get(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]

    def read() -> np.ndarray:
        return mapped(path, start + begin, dtype, (end - begin) // dtype.itemsize).reshape(shape)

    return Stored(path, dtype.name if dtype else entry["dtype"], shape, read)


def bin_of(path: Path) -> dict[str, Stored]:
    """Returns the tensors of a .bin file, the pickle of one dict; WeightsError for anything else."""
    return tensors_of(load_pickled(path), path)
