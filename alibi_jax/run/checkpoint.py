"""The checkpoints of a run (Orbax: asynchronous, whole or absent)."""

import contextlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from alibi_jax.config import Config
from alibi_jax.errors import CheckpointError, HostsError, require
from alibi_jax.run.checksums import checksums
from alibi_jax.run.coordinator import missing_at_barrier
from alibi_jax.run.exchange import first_host_first, from_first_host
from alibi_jax.run.hosts import several
from alibi_jax.run.lock import only_run
from alibi_jax.run.origin import Origin, check_origin, origin_item, read_origin
from alibi_jax.run.workdir import check_shared, new_mark, open_workdir, saved_steps
from alibi_jax.storage import Location, in_bucket

# Orbax globs the path, TensorStore takes a backslash for a slash; neither takes bytes that are not UTF-8, or NUL
NO_PATH = re.compile(r"[*?\[\\\x00-\x1f\x7f\ud800-\udfff]")
LONGEST_PATH = 3_800  # bytes; Linux takes 4,095, and what is below takes some 200
WRITTEN = (  # by Orbax, last or near it; without them a checkpoint cannot be opened
    *(f"{item}/{name}" for item in ("params", "optimizer") for name in ("_METADATA", "manifest.ocdbt")),
    "checksums/metadata",
)
RAISED = (OSError, ValueError, KeyError, RuntimeError)  # by Orbax and TensorStore, for what is on the disk


def missing_files(folder: Location, step: int) -> list[str]:
    """Returns the files that a checkpoint lacks and cannot be opened without; in a bucket its last object stands for all."""
    if in_bucket(folder):
        return [] if step in saved_steps(folder.parent) else ["the step"]
    return [name for name in WRITTEN if not (folder / str(step) / name).exists()]


def is_whole(workdir: Location, step: int) -> bool:
    """Returns whether a step's checkpoint has its files and was saved at that step, without opening it."""
    folder = workdir / "checkpoints"
    try:
        kept = read_origin(folder / str(step))
        return not missing_files(folder, step) and (kept is None or kept[0] == step)
    except (OSError, ValueError, RecursionError):
        return False


class _Explained(contextlib.AbstractContextManager):
    """Raises what Orbax raises for a damaged or foreign checkpoint or a full disk as a CheckpointError."""

    def __init__(self, verb: Literal["open", "read", "write"], folder: Location, step: int | None = None) -> None:
        self.verb, self.folder, self.step = verb, folder, step

    def __exit__(self, kind: type | None, error: BaseException | None, _: TracebackType | None) -> None:
        # Orbax 0.12 raises the bare class for a truncated array; a class of its own is a programming error and passes
        if kind is Exception or (kind is not None and issubclass(kind, RAISED)):
            if missing := missing_at_barrier(str(error)):
                raise missing from error
            raise self.error(next(iter(str(error).strip().splitlines()), kind.__name__)) from error

    def error(self, reason: str, way_on: str = "") -> CheckpointError:
        reason = reason.partition(" [")[0]  # from there on TensorStore gives its whole specification
        reason = reason if len(reason) <= 400 else f"{reason[:200]} ... {reason[-200:]}"
        steps = saved_steps(self.folder.parent)
        what = self.verb if self.step is None else f"{self.verb} step {self.step}"
        return CheckpointError(
            f"checkpoints: could not {what} in {self.folder}: {reason}. Expected a whole checkpoint of this config and "
            f"room on the disk. Steps on the disk: {', '.join(map(str, steps)) or 'none'}. {way_on or self._way_on(steps)}"
        )

    def _way_on(self, steps: list[int]) -> str:
        others = [step for step in steps if step != self.step]
        goes_on = f"it goes on from step {others[-1]}" if others else "it begins anew"
        if self.verb == "write":
            return f"If the disk is full, free it; then run the same command again: {goes_on}."
        if self.step is None:
            return "If one is damaged, remove its folder, then run the same command again."
        remove = shlex.join(["rm", "-r", str(self.folder / str(self.step))])
        return f"If it is damaged, remove its folder ({remove}), then run the same command again: {goes_on}."


def _loss(metrics: dict[str, float]) -> float:
    return metrics["validation_nats"]


def _check_loss(metrics: Any) -> None:
    """Raises ValueError for a validation loss by which Orbax could not sort."""
    loss = metrics.get("validation_nats") if isinstance(metrics, dict) else metrics
    if type(loss) not in (int, float) or not -math.inf < loss < math.inf:
        got = loss if isinstance(loss, float) else f"JSON of type {type(loss).__name__}"
        raise ValueError(f"validation_nats: got {got} in metrics/metrics, expected a finite number")


def check_path(workdir: Location) -> Location:
    """Returns the folder of a run's checkpoints; ConfigError where what Orbax writes there could not be read back."""
    folder = workdir / "checkpoints"
    folder = folder if in_bucket(folder) else folder.absolute()
    bad = sorted(set(NO_PATH.findall(str(folder))))
    require(
        not bad,
        "workdir",
        f"{str(folder.parent)!r}, with {' '.join(map(repr, bad))}",
        "a path without * ? [ \\, control characters and bytes that are not UTF-8: checkpoints written there could "
        "not be read back",
        "Choose another --workdir, or rename the folder.",
    )
    require(
        len(os.fsencode(str(folder))) <= LONGEST_PATH,
        "workdir",
        f"a path of {len(os.fsencode(str(folder))):,} bytes",
        f"at most {LONGEST_PATH:,}: files are written below it",
        "Choose a shorter --workdir.",
    )
    return folder


class Checkpoints:
    """The checkpoints of one run: the latest `max_to_keep` and the best by validation loss.

    A state is saved as two items, "params" and "optimizer" (everything else), so that evaluation reads the parameters alone,
    and a third, the checksums of both, which also says of which run it is: `origin`. With one, a checkpoint of another run
    is refused (ConfigError); None: of any.

    Two options save memory. file_bytes: when Orbax begins another file, as it holds what it writes of one; None: at 2 GiB.
    largest: bytes of the largest parameter; reading holds little more than that beside the parameters. None: up to 96 GB.
    """

    def __init__(
        self,
        workdir: Location,
        max_to_keep: int = 1,
        read_only: bool = False,
        origin: Origin | None = None,
        file_bytes: int | None = None,
        largest: int | None = None,
    ) -> None:
        self.folder, self.origin, self.file_bytes = check_path(workdir), origin, file_bytes
        self.started: int | None = None  # a step whose save was begun and has not been looked at
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"checkpoints: got none in {self.folder}, expected a trained run. Train it first.")
        self._check_metrics()
        best = BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_loss,
            best_mode="min",
            preservation_policy=AnyPreservationPolicy([LatestN(max_to_keep), best]),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        handlers = None
        if largest is not None:
            params = ocp.StandardCheckpointHandler(restore_concurrent_gb=largest // 10**9 + 1)  # it has to be above it
            handlers = ocp.handlers.create_default_handler_registry(
                params=params, checksums=ocp.JsonCheckpointHandler()
            )
        with _Explained("open", self.folder):
            self.manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=handlers)

    def _check_metrics(self) -> None:
        """Raises CheckpointError for a validation loss that cannot be read: Orbax reads all of them and names none."""
        for path in self.folder.glob("*/metrics/metrics"):
            if not path.parents[1].name.isdecimal():  # half-written, and another host may be removing it
                continue
            with _Explained("read", self.folder, int(path.parents[1].name)):
                _check_loss(json.loads(path.read_text()))

    def latest(self) -> int | None:
        """Returns the newest step saved, None if there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """Returns the saved step with the lowest validation loss, the latest if none was validated."""
        best = self.manager.best_step()
        return self.latest() if best is None else best

    def save(self, step: int, params: Any, optimizer: Any, validation_nats: float | None) -> None:
        """Starts an asynchronous save of a step; CheckpointError if this or the last one could not be written."""
        self.wait()
        facts: dict[str, Any] = {"params": checksums(params), "optimizer": checksums(optimizer)}
        if self.origin:
            facts["origin"] = origin_item(self.origin, step)
        items = ocp.args.Composite(
            params=self._save_args(params),
            optimizer=ocp.args.StandardSave(optimizer),
            checksums=ocp.args.JsonSave(facts),
        )
        metrics = None if validation_nats is None else {"validation_nats": validation_nats}
        with _Explained("write", self.folder, step):
            self.manager.save(step, args=items, metrics=metrics, force=True)
        self.started = step

    def _save_args(self, tree: Any) -> ocp.args.CheckpointArgs:
        if self.file_bytes is None:
            return ocp.args.StandardSave(tree)
        return ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=self.file_bytes)

    def check(self, step: int) -> None:
        """Raises CheckpointError for a checkpoint that lacks files or is of another step than its folder's name says,
        ConfigError for one of another run."""
        explained = _Explained("read", self.folder, step)
        missing = missing_files(self.folder, step)
        if missing:
            raise explained.error(f"got no {', '.join(missing)}")
        with explained:
            kept = read_origin(self.folder / str(step))
        if kept and kept[0] != step:
            raise explained.error(
                f"it was saved at step {kept[0]}, and its folder was renamed",
                f"Name the folder {kept[0]} again, or move it away; then run the same command again.",
            )
        if kept and self.origin:
            check_origin(self.folder / str(step), kept[1], self.origin)

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """Returns the items asked for, shaped, typed and sharded as their ShapeDtypeStructs: restore(step, params=...)."""
        self.check(step)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        explained = _Explained("read", self.folder, step)
        with explained:
            restored = self.manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore(), **items))
        for name in abstract:
            saved = restored["checksums"][name]
            damaged = [array for array, bits in checksums(restored[name]).items() if saved.get(array) != bits]
            if damaged:
                raise explained.error(f"{name}: {', '.join(damaged)} is not what was saved")
        return {name: restored[name] for name in abstract}

    def wait(self) -> None:
        """Waits until the save that was started is on the disk and can be opened; CheckpointError if it is not."""
        step, self.started = self.started, None
        with _Explained("write", self.folder, step):
            self.manager.wait_until_finished()
        # other hosts than the first may see what is new late
        missing = missing_files(self.folder, step) if step is not None and jax.process_index() == 0 else []
        if missing:
            raise _Explained("write", self.folder, step).error(f"{', '.join(missing)} is not there after the save")

    def close(self) -> None:
        """Waits for the save that was started, and ends Orbax's threads; CheckpointError if it failed."""
        try:
            self.wait()
        finally:
            with _Explained("write", self.folder):
                self.manager.close()


@contextlib.contextmanager
def open_run(workdir: Location, config: Config, fingerprint: str) -> Iterator[Checkpoints]:
    """Holds a run's folder for this run alone, its config.json written or checked, and yields its checkpoints.

    fingerprint: of the corpus. ConfigError where the folder holds another run or is not one for all hosts, HeldError where
    another process is at work in it, HostsError where hosts see different checkpoints there.
    """
    mark = from_first_host(new_mark(workdir))
    with contextlib.ExitStack() as held:
        with first_host_first():
            held.enter_context(only_run(workdir))
            if several():
                check_shared(workdir, mark)
            open_workdir(workdir, config, fingerprint)
        checkpoints = Checkpoints(workdir, config.train.max_to_keep, origin=Origin(config, fingerprint))
        held.enter_context(contextlib.closing(checkpoints))
        latest = str(checkpoints.latest())
        first_hosts = from_first_host(latest)
        if latest != first_hosts:  # a shared folder may show new files late
            raise HostsError(
                f"hosts: got {latest} as the last checkpoint, expected {first_hosts}, which the first host sees. The run's "
                "folder has to be shared by all hosts; if it is, run the same command again once it has caught up."
            )
        yield checkpoints
