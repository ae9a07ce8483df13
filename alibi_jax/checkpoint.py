"""The checkpoints of a run (Orbax: asynchronous, whole or absent)."""

import contextlib
import json
import math
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from alibi_jax.storage import Location, in_bucket
from alibi_jax.workdir import saved_steps

RAISED = (OSError, ValueError, KeyError, RuntimeError)  # by Orbax and TensorStore, for what is on the disk


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; what was saved before is untouched."""


class _Explained(contextlib.AbstractContextManager):
    """What Orbax raises for a damaged or foreign checkpoint or a full disk, as a CheckpointError."""

    def __init__(self, what: str, folder: Location) -> None:
        self.what, self.folder = what, folder

    def __exit__(self, kind: type | None, error: BaseException | None, _: TracebackType | None) -> None:
        # Orbax 0.12 raises the bare class for a truncated array; a class of its own is a programming error and passes
        if kind is Exception or (kind is not None and issubclass(kind, RAISED)):
            raise self.error(next(iter(str(error).strip().splitlines()), kind.__name__)) from error

    def error(self, reason: str) -> CheckpointError:
        reason = reason.partition(" [")[0]  # from there on TensorStore gives its whole specification
        reason = reason if len(reason) <= 400 else f"{reason[:200]} ... {reason[-200:]}"
        steps = saved_steps(self.folder.parent)
        return CheckpointError(
            f"checkpoints: could not {self.what} in {self.folder}: {reason}. Expected a whole checkpoint of this config and "
            f"room on the disk. Steps on the disk: {', '.join(map(str, steps)) or 'none'}. If one is damaged, remove its "
            "folder to go on from the one before; if the disk is full, free it; then run the same command again."
        )


def _bits_sum(x: jax.Array) -> jax.Array:
    """Sum of an array's words, each times an odd number of its place, mod 2^32: one wrong bit changes it, a mesh does not."""
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    strides = [math.prod(x.shape[axis + 1 :]) % 2**32 for axis in range(x.ndim)]
    places = [
        jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride) for axis, stride in enumerate(strides)
    ]
    return (words * (2 * sum(places, jnp.uint32(0)) + 1)).sum(dtype=jnp.uint32)


@jax.jit
def _bits_sums(tree: Any) -> Any:
    return jax.tree.map(_bits_sum, tree)


def checksums(tree: Any) -> dict[str, int]:
    """Name of each array -> a checksum of its bits. Orbax has none of its own for the values in its data files."""
    sums = jax.tree_util.tree_leaves_with_path(jax.device_get(_bits_sums(tree)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(value) for path, value in sums}


def _loss(metrics: dict[str, float]) -> float:
    return metrics["validation_nats"]


class Checkpoints:
    """The checkpoints of one run: the latest `max_to_keep` and the best by validation loss.

    A state is saved as two items, "params" and "optimizer" (everything else), so that evaluation reads the parameters alone,
    and a third, the checksums of both.
    """

    def __init__(self, workdir: Location, max_to_keep: int = 1, read_only: bool = False) -> None:
        folder = workdir / "checkpoints"
        self.folder = folder if in_bucket(folder) else folder.absolute()
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
        with _Explained("open what is", self.folder):
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    def _check_metrics(self) -> None:
        """Orbax reads every step's validation loss when it opens a folder, and does not say which one it could not read."""
        for path in self.folder.glob("*/metrics/metrics"):
            if not path.parents[1].name.isdecimal():  # half-written, and another host may be removing it
                continue
            with _Explained(f"read step {path.parents[1].name}", self.folder):
                _loss(json.loads(path.read_text()))

    def latest(self) -> int | None:
        """The newest step saved, None if there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the lowest validation loss; the latest if none was validated."""
        best = self.manager.best_step()
        return self.latest() if best is None else best

    def save(self, step: int, params: Any, optimizer: Any, validation_nats: float | None) -> None:
        """Starts an asynchronous save of a step; CheckpointError if this or the last one could not be written."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            checksums=ocp.args.JsonSave({"params": checksums(params), "optimizer": checksums(optimizer)}),
        )
        metrics = None if validation_nats is None else {"validation_nats": validation_nats}
        with _Explained(f"write step {step}", self.folder):
            self.manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """The items asked for, shaped, typed and sharded as the ShapeDtypeStructs given: restore(step, params=...)."""
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        explained = _Explained(f"read step {step}", self.folder)
        with explained:
            restored = self.manager.restore(step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore(), **items))
        for name in abstract:
            saved, found = restored["checksums"][name], checksums(restored[name])
            damaged = [array for array in found if saved.get(array) != found[array]]
            if damaged:
                raise explained.error(f"{name}: {', '.join(damaged)} is not what was saved")
        return {name: restored[name] for name in abstract}

    def wait(self) -> None:
        """Until what was started is on the disk; CheckpointError if it could not be written."""
        with _Explained("write", self.folder):
            self.manager.wait_until_finished()

    def close(self) -> None:
        with _Explained("write", self.folder):
            self.manager.close()
