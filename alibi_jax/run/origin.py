"""Which run a checkpoint is of: its config, its text and its step stand in it, beside the checksums."""

import json
from typing import Any, NamedTuple

from alibi_jax.config import Config, differing_fields, from_json, to_json
from alibi_jax.errors import ConfigError
from alibi_jax.storage import Location

# Sections of the config that may differ: those that a run may change when it goes on, and where the text is kept, for the
# fingerprint says which text it is.
MAY_DIFFER = ("mesh", "evaluate", "data")


class Origin(NamedTuple):
    """A run's config, as resolved, and the fingerprint of its text and tokenizer; None: of any text."""

    config: Config
    corpus: str | None


def origin_item(origin: Origin, step: int) -> dict[str, Any]:
    """What a checkpoint of a step keeps of its origin, as JSON."""
    return {"step": step, "corpus": origin.corpus, "config": json.loads(to_json(origin.config))}


def read_origin(checkpoint: Location) -> tuple[int, Origin] | None:
    """(step, origin) as they stand in a checkpoint's folder, None in one that was made before they were kept.

    OSError or ValueError where they cannot be read.
    """
    item = json.loads((checkpoint / "checksums" / "metadata").read_text())
    if not isinstance(item, dict):
        raise ValueError(f"checksums: got {type(item).__name__}, expected a JSON object")
    if "origin" not in item:
        return None
    match item["origin"]:
        case {"step": int(step), "corpus": str(corpus), "config": dict(config)}:
            return step, Origin(from_json(json.dumps(config)), corpus)
    raise ValueError("origin: got another JSON value, expected an object with a step, a corpus and a config")


def check_origin(checkpoint: Location, kept: Origin, own: Origin) -> None:
    """ConfigError where a checkpoint is of another run than `own`: the fields that differ are named, or the text."""
    differing = differing_fields(kept.config, own.config, MAY_DIFFER)
    if own.corpus is not None and kept.corpus != own.corpus:
        differing.append(f"text and tokenizer of fingerprint {kept.corpus[:12]} -> {own.corpus[:12]}")
    if differing:
        raise ConfigError(
            f"checkpoints: got {checkpoint}, which is of another run (checkpoint -> this run): {'; '.join(differing)}; "
            "expected one of this run. If config.json was edited, put it back as it was; if the checkpoint is another run's, "
            "move its folder away."
        )
