"""From a run's folder to a folder of transformers: its config.json, parameters in safetensors files, its tokenizer."""

import dataclasses
import json
import logging
import math
import os
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import traverse_util

from alibi_jax.config import Config, MeshConfig, ModelConfig, load_config
from alibi_jax.convert import bloom, mpt, own
from alibi_jax.convert.family import Family
from alibi_jax.convert.fields import Fields
from alibi_jax.convert.folder import new_folder, written_aside
from alibi_jax.convert.shards import write_tensors
from alibi_jax.data.names import folder_of_run
from alibi_jax.data.tokenizer import load_tokenizer
from alibi_jax.data.tokenizer.file import library_model
from alibi_jax.data.tokenizer.foreign import foreign_files
from alibi_jax.errors import ConfigError, require
from alibi_jax.evaluate.run import load_params
from alibi_jax.run.lock import writing
from alibi_jax.run.workdir import IMPORTED, trained_on
from alibi_jax.sharding import make_mesh
from alibi_jax.storage import Location, locate, write_atomically

Format = Literal["bloom", "mpt", "safetensors"]
FORMATS: dict[Format, Family] = {"bloom": bloom.FAMILY, "mpt": mpt.FAMILY, "safetensors": own.FAMILY}
# fields of ModelConfig that change nothing that parameters compute without dropout, beyond rounding
ANY = {
    *("attention", "compute_dtype", "parameter_dtype", "scan_layers", "remat", "remat_saves", "logits_mib"),
    *(f"{place}_dropout" for place in ("embedding", "residual", "attention", "activation", "adaptive")),
}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")

logger = logging.getLogger("alibi_jax")


def export_run(
    workdir: str | os.PathLike, format: Format, out: str | os.PathLike, which: Literal["best", "last"] = "best"
) -> Path:
    """Writes the model of a run's folder as a new folder, `out`, and returns it; on any error nothing is left there.

    format: whose names and config.json; "safetensors": our own, for any model. which: the best or the last checkpoint. Errors
    before anything is written: ConfigError (a model that the format cannot hold, an `out` that is there), CheckpointError.
    """
    workdir, folder = locate(workdir), new_folder(out, "out")
    require(workdir.is_dir(), "workdir", f"{workdir}, which is no folder", "the folder of a run", "Name that folder.")
    config, family = load_config(workdir), FORMATS[format]
    values = family.config(config)
    check_fits(format, config.model, values)
    files = _tokenizer_files(workdir, config)
    if family is not own.FAMILY:
        values |= _token_ids(workdir, files)
    arrays = _parameters(workdir, config, which)
    with written_aside(folder, "out", "export") as aside, writing(folder, "out"):
        write_tensors(aside, family, config.model, arrays)
        for name, content in {"config.json": json.dumps(values, indent=2) + "\n", **files}.items():
            write_atomically(aside / name, content)
    return folder


def check_fits(format: Format, model: ModelConfig, values: dict[str, Any]) -> None:
    """Raises ConfigError, which names all fields at once, unless a config.json says all that the model computes."""
    read = FORMATS[format].architecture(Fields(values, "config.json")).model
    if model.num_kv_heads == model.num_heads:
        model = dataclasses.replace(model, num_kv_heads=None)  # as many in both
    names = [field.name for field in dataclasses.fields(model) if field.name not in ANY]
    pairs = [(name, getattr(model, name), getattr(read, name)) for name in names]
    wrong = [f"model.{name}: got {got!r}, needed {needed!r}" for name, got, needed in pairs if not _same(got, needed)]
    if wrong:
        raise ConfigError(
            f"export: {'; '.join(wrong)}, as format {format} has them. Choose --format safetensors, which holds every model, "
            "or train one with these fields."
        )


def _same(got: Any, needed: Any) -> bool:
    numbers = all(type(value) in (int, float) for value in (got, needed))
    return math.isclose(got, needed, rel_tol=1e-12) if numbers else got == needed


def _tokenizer_files(workdir: Location, config: Config) -> dict[str, str | bytes]:
    """Returns name -> content of the tokenizer's files: those that were imported, or those of the corpus trained on."""
    if (workdir / IMPORTED).exists():
        return foreign_files(workdir)
    if config.data.tokenizer in ("bytes", "words"):
        return {}  # transformers has neither
    folder = folder_of_run(config.data, trained_on(workdir))
    if not folder.exists():
        logger.warning("export: without a tokenizer: the corpus that the run was trained on, %s, is not there", folder)
        return {}
    return load_tokenizer(folder).exported()


def _token_ids(workdir: Location, files: dict[str, str | bytes]) -> dict[str, Any]:
    """Returns the ids of special tokens, for config.json: as they were imported, else as the tokenizer's files name them.

    transformers would take those that are not there from its own models.
    """
    imported = json.loads((workdir / IMPORTED).read_text())["config"] if (workdir / IMPORTED).exists() else {}
    return {name: imported.get(name, _token_id(name.removesuffix("_id"), files)) for name in IDS}


def _token_id(kind: str, files: dict[str, str | bytes]) -> int | None:
    token = json.loads(files.get("tokenizer_config.json", "{}")).get(kind)
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        return None
    library = files["tokenizer.json"]
    return library_model(library if isinstance(library, str) else library.decode()).token_to_id(token)


def _parameters(workdir: Location, config: Config, which: Literal["best", "last"]) -> dict[str, np.ndarray]:
    """Returns the parameters of a checkpoint by their paths."""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        _, params = load_params(workdir, config, which)
    return {path: np.asarray(array) for path, array in traverse_util.flatten_dict(params, sep="/").items()}
