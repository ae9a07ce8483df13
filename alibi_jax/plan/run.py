"""The command `plan`: one plan or a search, as text, and as a JSON file on request."""

import logging
from collections.abc import Sequence
from pathlib import Path

from alibi_jax.config import Config
from alibi_jax.errors import require
from alibi_jax.plan.plan import plan
from alibi_jax.plan.reach import share_of
from alibi_jax.plan.report import json_text, search_text, text
from alibi_jax.plan.search import search
from alibi_jax.plan.topology import find_topology
from alibi_jax.run.invocation import recorded_command
from alibi_jax.storage import write_atomically

log = logging.getLogger(__name__)


def plan_run(
    config: Config,
    name: str,
    *,
    slices: int = 1,
    lengths: Sequence[int] = (),
    full: bool = False,
    searches: bool = False,
    batches: Sequence[int] = (),
    tries: int = 8,
    attention_share: float | Path = 1.0,
    json: Path | None = None,
) -> tuple[str, bool]:
    """Returns (the report, whether it fits) of a recipe on the topology `name`; of a search, whether anything fits.

    attention_share: of the blocks of causal attention, those that are visited, or the file that says it (plan/reach.py).
    The plan's mesh is the config's; a search tries all meshes, and adds the whole report of the best plan. json: the file in
    which the plans are kept, too. ConfigError as `find_topology`, `plan` and `search` raise it.
    """
    require(
        json is None or (json.parent.is_dir() and not json.is_dir()),
        "json",
        repr(str(json)),
        "the name of a file in an existing folder",
        "Make the folder, or name another file.",
    )
    require(
        config.model.position == "alibi" or attention_share == 1,
        "attention_share",
        f"{attention_share} for a model with position method {config.model.position}",
        "1: only ALiBi's reach skips blocks",
        "Leave it out.",
    )
    topology, share = find_topology(name, slices), share_of(attention_share)
    if searches:
        plans = search(config, topology, batches, tries, lengths, full, share, log.info)
        report = "\n\n".join([search_text(plans), *(text(best) for best in plans[:1] if best.fits)])
    else:
        plans = [plan(config, topology, lengths, full, share)]
        report = text(plans[0])
    if json is not None:
        write_atomically(json, json_text(plans, config, recorded_command()))
    return report, plans[0].fits
