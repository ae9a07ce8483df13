"""Where a run's numbers go: metrics.jsonl and TensorBoard."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from alibi_jax.atomic import write_atomically
from alibi_jax.config import ModelConfig
from alibi_jax.model.flops import peak_flops, train_flops_per_token


class MetricsLog:
    """metrics.jsonl and TensorBoard events in a run's folder, written by the first host only.

    Lines past `step` (left by a run that was killed after its last checkpoint) are dropped, so that a resumed run's file
    reads as if it had never stopped.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self.writes = jax.process_index() == 0
        if not self.writes:
            return
        path = workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_atomically(path, "".join(line + "\n" for line in kept))
        self.file = path.open("a", buffering=1)
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step": ..., name: value ...}; the same values to TensorBoard."""
        if not self.writes:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writes:
            self.file.close()
            self.board.close()


class Speed:
    """Tokens/s, achieved FLOP/s and, where the device's peak is known, MFU (Chowdhery et al. 2022) since the last reading."""

    def __init__(self, model: ModelConfig, length: int, tokens_per_step: int) -> None:
        self.flops_per_token = train_flops_per_token(model, length)
        self.tokens_per_step = tokens_per_step
        peak = peak_flops(jax.devices()[0].device_kind)
        self.peak = peak * jax.device_count() if peak else None
        self.steps, self.since = 0, time.perf_counter()

    def reading(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        tokens = self.steps * self.tokens_per_step / elapsed
        self.restart()
        values = {"tokens_per_second": tokens, "flops_per_second": tokens * self.flops_per_token}
        return values | ({"mfu": values["flops_per_second"] / self.peak} if self.peak else {})

    def restart(self) -> None:
        """Leaves out what was done since (validation, saving)."""
        self.steps, self.since = 0, time.perf_counter()
