"""The command `plan`: one plan or a search, as text, and as a JSON file where one is asked for."""

import logging
from collections.abc import Sequence
from pathlib import Path

from alibi_jax.config import Config
from alibi_jax.errors import require
from alibi_jax.plan.plan import plan
from alibi_jax.plan.report import json_text, search_text, text
from alibi_jax.plan.search import search
from alibi_jax.plan.topology import topology
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
    json: Path | None = None,
) -> tuple[str, bool]:
    """(the report, whether it fits) of a recipe on the topology `name`; of a search, whether anything fits.

    Its config's mesh is that of the plan; a search tries all, and then shows the best plan whole. ConfigError as `topology`,
    `plan` and `search` raise it.
    """
    require(
        json is None or (json.parent.is_dir() and not json.is_dir()),
        "json",
        repr(str(json)),
        "the name of a file in a folder that is there",
        "Make the folder, or name another file.",
    )
    found = topology(name, slices)
    if searches:
        plans = search(config, found, batches, tries, lengths, full, log.info)
        best = f"\n\n{text(plans[0])}" if plans[0].fits else ""
        said = search_text(plans) + best
    else:
        plans = [plan(config, found, lengths, full)]
        said = text(plans[0])
    if json is not None:
        write_atomically(json, json_text(plans, config, recorded_command()))
    return said, plans[0].fits
