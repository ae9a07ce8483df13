"""A run's folder: its config, its lock on one model, and its checkpoints (Orbax: asynchronous, whole or absent)."""

import tempfile
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from alibi_jax.atomic import write_atomically
from alibi_jax.config import Config, ConfigError, differing_fields, from_json, to_json

MAY_DIFFER = ("mesh", "evaluate")  # sections of the config that a run may change when it goes on


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; what was saved before is untouched."""


def open_workdir(workdir: Path, config: Config, fingerprint: str) -> None:
    """Makes the run's folder and writes config.json and corpus.txt, or checks those that are there.

    fingerprint: of the corpus. ConfigError where the folder cannot be written, holds a run of another config (the fields
    are named) or of another text; sections in MAY_DIFFER may change, for a checkpoint restores onto any mesh.
    """
    texts = {"config.json": to_json(config), "corpus.txt": fingerprint}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
        for name, text in texts.items():
            if not (workdir / name).exists():
                write_atomically(workdir / name, text)
    except OSError as error:
        raise ConfigError(
            f"workdir: got {workdir}, which cannot be written ({error.strerror}), expected a writable folder. "
            "Choose another --workdir or free the disk."
        ) from error
    differing = differing_fields(from_json((workdir / "config.json").read_text()), config, MAY_DIFFER)
    if (workdir / "corpus.txt").read_text() != fingerprint:
        differing.append("the corpus's fingerprint (its text was changed and prepared again)")
    if differing:
        raise ConfigError(
            f"workdir: got a config that differs from the run in {workdir}: {'; '.join(differing)}; expected the same. "
            "Train into another --workdir, or repeat the run's own config."
        )


def _loss(metrics: dict[str, float]) -> float:
    return metrics["validation_nats"]


class Checkpoints:
    """The checkpoints of one run: the latest `max_to_keep` and the best by validation loss.

    A state is saved as two items, "params" and "optimizer" (everything else), so that evaluation reads the parameters alone.
    """

    def __init__(self, workdir: Path, max_to_keep: int = 1, read_only: bool = False) -> None:
        self.folder = (workdir / "checkpoints").absolute()
        best = BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_loss,
            best_mode="min",
            preservation_policy=AnyPreservationPolicy([LatestN(max_to_keep), best]),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"checkpoints: got none in {self.folder}, expected a trained run. Train it first.")
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """The newest step saved, None if there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the lowest validation loss; the latest if none was validated."""
        best = self.manager.best_step()
        return self.latest() if best is None else best

    def save(self, step: int, params: Any, optimizer: Any, validation_nats: float | None) -> None:
        """Starts an asynchronous save of a step; CheckpointError if this or the last one could not be written."""
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), optimizer=ocp.args.StandardSave(optimizer))
        metrics = None if validation_nats is None else {"validation_nats": validation_nats}
        self._or_error(lambda: self.manager.save(step, args=items, metrics=metrics, force=True), "write")

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """The items asked for, shaped, typed and sharded as the ShapeDtypeStructs given: restore(step, params=...)."""
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._or_error(
            lambda: self.manager.restore(step, args=ocp.args.Composite(**items)), f"read step {step}"
        )
        return {name: restored[name] for name in abstract}

    def wait(self) -> None:
        """Until what was started is on the disk; CheckpointError if it could not be written."""
        self._or_error(self.manager.wait_until_finished, "write")

    def close(self) -> None:
        self._or_error(self.manager.close, "write")

    def _or_error(self, action: Any, what: str) -> Any:
        try:
            return action()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            steps = ", ".join(map(str, self.manager.all_steps())) or "none"
            reason = str(error).strip().splitlines()[0][:400]
            raise CheckpointError(
                f"checkpoints: could not {what} in {self.folder}: {reason}. Expected a whole checkpoint of this config and "
                f"room on the disk. Steps on the disk: {steps}. If one is damaged, remove its folder to go on from the one "
                "before; if the disk is full, free it; then run the same command again."
            ) from error
