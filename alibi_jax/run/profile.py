"""Watches a run while it trains: a trace of some steps, and compilations that should not happen."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from alibi_jax.errors import require

log = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
    """Returns the steps of "10-12", counted from 1; none of "". ConfigError for anything else."""
    if not text:
        return range(0)
    match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", text)
    ordered = match is not None and 1 <= int(match[1]) <= int(match[2])
    require(ordered, "profile", repr(text), "first-last, steps counted from 1, such as 10-12", "Write it so.")
    return range(int(match[1]), int(match[2]) + 1)


class Trace:
    """A profile of some steps, for TensorBoard's Profile page (tensorboard-plugin-profile), one file a host.

    folder: where TensorBoard looks; the trace goes into its plugins/profile.
    """

    def __init__(self, steps: range, folder: Any) -> None:
        self.steps, self.folder, self.running = steps, folder, False
        self.traced: list[int] = []

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Traces the dispatch of one step, where it is one of the steps."""
        if step in self.steps and not self.running:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        if not self.running:
            yield
            return
        self.traced.append(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after(self, step: int, results: Any) -> None:
        """Writes the trace once the last of the steps is dispatched and computed."""
        if self.running and step >= self.steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes what has been traced, also of a run that ends early; says so where nothing was."""
        if self.steps and not self.traced:
            log.warning("profile: none of the steps %d to %d was taken here", self.steps[0], self.steps[-1])
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            log.info("profile: steps %d to %d are in %s/plugins/profile", self.traced[0], self.traced[-1], self.folder)


def _signature(arguments: dict[str, Any]) -> dict[str, str]:
    """Returns by the name of each array what a compilation depends on: its type, shape and place."""
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.aval.str_short()} {leaf.sharding}"
        for path, leaf in leaves
    }


def compilation_check(function: Callable, *names: str) -> Callable[..., None]:
    """Returns check(*arguments), called after each call of a jitted function: where that compiled it again, the log says which
    argument changed.

    names: of the arguments. A second compilation costs minutes on a pod, and on every host.
    """
    compiled = function._cache_size()
    first: dict[str, str] = {}

    def check(*arguments: Any) -> None:
        nonlocal compiled
        if function._cache_size() == compiled:
            return
        compiled = function._cache_size()
        now = _signature(dict(zip(names, arguments, strict=True)))
        if first:
            changed = [
                f"{name}: {first.get(name, 'nothing')} -> {now[name]}" for name in now if first.get(name) != now[name]
            ]
            log.warning("compiled again: %s", "; ".join(changed) or "no argument changed, but a setting of JAX did")
        first.update(now)

    return check
