"""From a foreign checkpoint to a run's folder: its config, its parameters as a checkpoint of step 0, its tokenizer."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alibi_jax.config import Config, DataConfig, ModelConfig, TrainConfig, to_json
from alibi_jax.convert import own
from alibi_jax.convert.families import FAMILIES
from alibi_jax.convert.family import Architecture, Family
from alibi_jax.convert.folder import new_folder, written_aside
from alibi_jax.convert.matching import check_tensors, holders, todays_names
from alibi_jax.convert.parameters import load_parameters
from alibi_jax.convert.source import Opened, read_object
from alibi_jax.convert.stored import Stored
from alibi_jax.data.tokenizer.file import number_of_tokens
from alibi_jax.data.tokenizer.foreign import has_tokenizer
from alibi_jax.errors import ConfigError, require, shown
from alibi_jax.evaluate.sweep import provenance
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.lock import writing
from alibi_jax.run.origin import Origin
from alibi_jax.run.progress import Bar
from alibi_jax.run.workdir import IMPORTED
from alibi_jax.storage import write_atomically

Dtype = Literal["auto", "float32", "bfloat16"]
MB = 10**6
FILE_BYTES = 64 * 2**20  # of a checkpoint's file; Orbax holds several in memory
AT_ONCE = 2**22  # bytes hashed between two updates of the bar

logger = logging.getLogger("alibi_jax")


def import_model(
    family: str,
    path: str | os.PathLike,
    workdir: str | os.PathLike,
    dtype: Dtype = "auto",
    train_length: int | None = None,
) -> Config:
    """Imports a foreign checkpoint into a new folder, `workdir`, and returns its config; on any error nothing is left there.

    family: one of FAMILIES, or "auto". path: a folder of transformers, or what the family reads. dtype: of the parameters;
    "auto": bfloat16 where all tensors are, else float32. train_length: tokens the model was trained on at once; None: as its
    config says. Errors before anything is written: ConfigError (options, a config that is not implemented), WeightsError
    (files that are missing or damaged, tensors that do not fit). While writing: CheckpointError, ConfigError (a full disk).
    """
    source, folder = Path(path), new_folder(workdir, "workdir")
    chosen = _family(family, source)
    opened = chosen.open(source)
    architecture = _architecture(chosen, opened)
    stored = todays_names(chosen, opened.tensors)
    tensors = chosen.tensors(architecture.model)
    check_tensors(tensors, stored, str(source))
    config = _config(architecture, stored, folder, dtype, train_length)
    sizes = [file.stat().st_size for file in opened.files]
    sizes += [stored[tensor.name].num_bytes for tensor in set(holders(tensors, stored).values())]
    with written_aside(folder, "workdir", "import") as aside:
        _write(aside, opened.tokenizer)
        _check_tokenizer(aside, source, config.model)
        with _progress(f"import {chosen.name}", sum(sizes)) as progress:
            files = {str(file): _checksum(file, progress) for file in opened.files}
            params = load_parameters(tensors, stored, config.model, progress)
        facts = {"family": chosen.name, "source": str(source.absolute()), "dtype": config.model.parameter_dtype}
        facts |= {"files": files, "config": opened.fields.values, **provenance()}
        _write(aside, {"config.json": to_json(config), IMPORTED: json.dumps(facts, indent=2)})
        logger.info("import: writing the checkpoint")
        origin = Origin(config, None)
        with contextlib.closing(Checkpoints(aside, origin=origin, file_bytes=FILE_BYTES)) as checkpoints:
            checkpoints.save(0, params, {"step": np.zeros((), np.int32)}, None)
    return config


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes files into the run's folder to be; ConfigError where the disk is full."""
    with writing(folder):
        for name, content in files.items():
            write_atomically(folder / name, content)


def _family(name: str, source: Path) -> Family:
    """Returns the family that is named, or for "auto" the one of config.json's model_type; ConfigError for another model's."""
    names = ", ".join(FAMILIES)
    require(
        name == "auto" or name in FAMILIES, "family", shown(name), f"auto or one of {names}", "Name the model's family."
    )
    config = source / "config.json"
    kind = _model_type(read_object(config)) if config.is_file() else None
    if name != "auto":
        chosen = FAMILIES[name]
        fits = kind is None or kind in chosen.model_types
        types = " or ".join(map(repr, chosen.model_types))
        do = "Import it as its own family, or as `auto`."
        require(fits, f"{config}: model_type", shown(kind), f"{types}, as family {name} has it", do)
        return chosen
    if not config.is_file() and (source.suffix == ".pt" or any(source.glob("*.pt"))):
        return FAMILIES["fairseq"]
    got = f"{source}, which is no folder"
    require(source.is_dir(), "path", got, "a folder with config.json, or a fairseq checkpoint, *.pt", "Check the path.")
    require(
        any(kind in family.model_types for family in FAMILIES.values()),
        f"{config}: model_type",
        shown(kind) if config.is_file() else "no such file",
        f"that of a family which is implemented ({names})",
        "Other models cannot be imported. Name the family where the file does not say it.",
    )
    return next(family for family in FAMILIES.values() if kind in family.model_types)


def _model_type(config: dict[str, Any]) -> Any:
    """Returns what a config.json says of its kind; our own says it by its sections."""
    return config.get("model_type", own.FAMILY.name if isinstance(config.get("model"), dict) else None)


def _architecture(family: Family, opened: Opened) -> Architecture:
    try:
        architecture = family.architecture(opened.fields)
        opened.fields.refuse_rest()
    except ConfigError as error:
        where = opened.fields.where
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    return architecture


def _config(
    architecture: Architecture, stored: dict[str, Stored], folder: Path, dtype: Dtype, train_length: int | None
) -> Config:
    """Returns the config of the run's folder."""
    length = train_length or architecture.train_length
    if length is None:
        raise ConfigError(
            "train_length: got none, and the model's config says none either, expected the tokens that it was trained on at "
            "once. Pass --train-length N."
        )
    if dtype == "auto":  # our own config.json says it
        kept = architecture.model.parameter_dtype == "bfloat16"
        dtype = "bfloat16" if kept or all(tensor.dtype == "bfloat16" for tensor in stored.values()) else "float32"
    model = dataclasses.replace(architecture.model, parameter_dtype=dtype, compute_dtype=dtype, scan_layers=True)
    data = DataConfig(tokenizer="file", tokenizer_path=str(folder))
    return Config(model=model, data=data, train=TrainConfig(train_length=length))


def _check_tokenizer(folder: Path, source: Path, model: ModelConfig) -> None:
    """Raises ConfigError for a tokenizer with more tokens than the model has rows; logs where there is none."""
    if not has_tokenizer(folder):
        text = (
            "import: no tokenizer.json in %s: tokens of text need the model's tokenizer, --data.tokenizer-path FOLDER"
        )
        logger.warning(text, source)
        return
    count = number_of_tokens(folder)
    require(
        count <= model.vocab_size,
        f"{source}: tokenizer",
        f"{count:,} tokens",
        f"at most {model.vocab_size:,}, the rows of the model's embedding",
        "Put the tokenizer of this model there.",
    )


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar in MB, and yields the function that is called with the bytes of each piece of work."""
    done, whole = 0, math.ceil(total / MB)

    def add(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        bar.update(whole if done == total else done // MB, "MB")

    with Bar(label, whole) as bar:
        yield add


def _checksum(file: Path, progress: Callable[[int], None]) -> dict[str, str | int]:
    """Returns the sha256 and the bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while chunk := opened.read(AT_ONCE):
            digest.update(chunk)
            progress(len(chunk))
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}
