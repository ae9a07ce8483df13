"""The run that a checkpoint belongs to: config, text and step are saved in it, beside the checksums."""

import json
from typing import Any, NamedTuple

from alibi_jax.config import Config, differing_fields, from_json, to_json
from alibi_jax.errors import ConfigError
from alibi_jax.storage import Location

# Of its config, what a run may change when it goes on: sections, and fields that change no result beyond rounding.
MAY_CHANGE = ("mesh", "evaluate", "model.remat", "model.remat_saves")
KEPT_ELSEWHERE = ("data",)  # where the text is kept may differ: the fingerprint says which text it is


class Origin(NamedTuple):
    """A run's config, as resolved, and the fingerprint of its text and tokenizer; None: any text."""

    config: Config
    corpus: str | None


def origin_item(origin: Origin, step: int) -> dict[str, Any]:
    """Returns the origin that is saved with the checkpoint of a step, as a JSON object."""
    return {"step": step, "corpus": origin.corpus, "config": json.loads(to_json(origin.config))}


def read_origin(checkpoint: Location) -> tuple[int, Origin] | None:
    """Returns (step, origin) from a checkpoint's folder, None for one of a version that did not save them.

    OSError or ValueError where they cannot be read.
    """
    item = json.loads((checkpoint / "checksums" / "metadata").read_text())
    if not isinstance(item, dict):
        raise ValueError(f"checksums: got {type(item).__name__}, expected a JSON object")
    if "origin" not in item:
        return None
    match item["origin"]:
        case {"step": int(step), "corpus": str() | None as corpus, "config": dict(config)}:
            return step, Origin(from_json(json.dumps(config)), corpus)
    raise ValueError("origin: got another JSON value, expected an object with a step, a corpus and a config")


def check_origin(checkpoint: Location, kept: Origin, own: Origin) -> None:
    """Raises ConfigError, which names the fields that differ or the text, where a checkpoint is of another run than `own`."""
    differing = differing_fields(kept.config, own.config, (*MAY_CHANGE, *KEPT_ELSEWHERE))
    if None not in (kept.corpus, own.corpus) and kept.corpus != own.corpus:
        differing.append(f"text and tokenizer of fingerprint {kept.corpus[:12]} -> {own.corpus[:12]}")
    if differing:
        raise ConfigError(
            f"checkpoints: got {checkpoint}, which belongs to another run (checkpoint -> this run): {'; '.join(differing)}; "
            "expected one of this run. If config.json was edited, put it back as it was; if the checkpoint is another run's, "
            "move its folder away."
        )
