"""A new run from the parameters of another folder, of a trained run or an imported model: `train --init-from DIR`.

What they were is kept in the new run's init_from.json, so that the run goes on without that folder, and from no other.
"""

import hashlib
import json
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp

from alibi_jax.config import Config, load_config
from alibi_jax.config.recipes import parse_json
from alibi_jax.errors import ConfigError, listed, require
from alibi_jax.model.placement import parameter_shapes
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.exchange import first_host_first, from_first_host
from alibi_jax.run.hosts import is_first
from alibi_jax.run.lock import writing
from alibi_jax.run.origin import Origin
from alibi_jax.run.workdir import saved_steps
from alibi_jax.sharding import placed_shapes
from alibi_jax.storage import Location, in_bucket, write_atomically

RECORD = "init_from.json"

logger = logging.getLogger("alibi_jax")


def initial_params(folder: Location, config: Config, shardings: Any) -> tuple[dict[str, Any], Any]:
    """Returns what init_from.json says of a folder's best parameters, and these, float32, placed as `shardings` say.

    ConfigError for a folder without a checkpoint, and for parameters that are not those of `config`, all of them named.
    CheckpointError for a damaged checkpoint.
    """
    checkpoints, step, source = _open(folder)
    shapes = parameter_shapes(source.model)
    _check_fits(folder, source, shapes, config)
    params = checkpoints.restore(step, params=placed_shapes(shapes, shardings))["params"]
    logger.info("init-from: parameters of step %d of %s", step, folder)
    facts = {"source": _name(folder), "step": step, "checksum": _checksum(folder, step)}
    return facts, jax.jit(_float32, out_shardings=shardings)(params)


def _float32(params: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def check_init_from(workdir: Location, folder: Location | None) -> None:
    """Raises ConfigError where a run that has saved something is to begin from another folder than it did.

    It may have moved: its parameters decide where it has another name. It need not be there any more.
    """
    if folder is None:
        return
    path = workdir / RECORD
    kept = parse_json(path.read_bytes().decode("utf-8", "replace")) if path.exists() else {}
    began = kept.get("source", "parameters of its own")
    if began == _name(folder) or (kept and _checksum(folder, kept["step"]) == kept["checksum"]):
        return
    raise ConfigError(
        f"init_from: got {folder} for the run in {workdir}, which has begun from {began}, expected the same. Leave --init-from "
        "out to go on with the run, or train into another --workdir."
    )


def keep_init_from(workdir: Location, facts: dict[str, Any] | None) -> None:
    """Writes init_from.json for a run that begins; None: it begins from parameters of its own, and there is none."""
    if not is_first():
        return
    path = workdir / RECORD
    with writing(workdir):
        if facts:
            write_atomically(path, json.dumps(facts, indent=2) + "\n")
        elif path.exists():
            logger.warning(
                "init-from: %s is removed: nothing of that run was saved, and this one begins from its seed", path
            )
            path.unlink()


def _open(folder: Location) -> tuple[Checkpoints, int, Config]:
    with first_host_first():
        source = load_config(folder)
        require(
            saved_steps(folder) != [],
            "init_from",
            f"{folder}, which has no checkpoint",
            "the folder of a trained run or an imported model",
            "Train it first, or correct --init-from.",
        )
    checkpoints = Checkpoints(folder, read_only=True, origin=Origin(source, None))  # all hosts open it together
    return checkpoints, int(from_first_host(str(checkpoints.best()))), source


def _named(shapes: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def _check_fits(folder: Location, source: Config, shapes: Any, config: Config) -> None:
    """Raises ConfigError, which names all that differ, unless a folder's parameters are those of a config."""
    theirs, ours = _named(shapes), _named(parameter_shapes(config.model))
    both = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    problems = {
        "missing": [name for name in ours if name not in theirs],
        "not in the config's model": [name for name in theirs if name not in ours],
        "of another shape": [f"{name} {theirs[name]}, expected {ours[name]}" for name in both],
    }
    texts = [f"{what}: {listed(names)}" for what, names in problems.items() if names]
    if not texts:
        return
    do = "Take that folder's own config (train DIR --init-from DIR) and change what holds no parameters."
    if source.model.scan_layers != config.model.scan_layers:
        do = f"Pass --model.{'' if source.model.scan_layers else 'no-'}scan-layers: it decides how layers are stored."
    raise ConfigError(f"init_from: got parameters of {folder} that are {'; '.join(texts)}; expected the model's. {do}")


def _name(folder: Location) -> str:
    return str(folder) if in_bucket(folder) else os.path.abspath(folder)


def _checksum(folder: Location, step: int) -> str:
    """Returns the sha256 of the checksums of a checkpoint's parameters; empty where they cannot be read."""
    try:
        facts = json.loads((folder / "checkpoints" / str(step) / "checksums" / "metadata").read_text())
        return hashlib.sha256(json.dumps(facts["params"], sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return ""
