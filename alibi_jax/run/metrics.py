"""The metrics of a run, written to metrics.jsonl and for TensorBoard, and its speed."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from alibi_jax.config import ModelConfig
from alibi_jax.errors import MetricsError
from alibi_jax.model.flops import peak_flops, train_flops_per_token
from alibi_jax.storage import Location, growing_file


@contextlib.contextmanager
def _explained(workdir: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MetricsError(
            f"metrics: could not write in {workdir}: {error.strerror or error}, expected a writable folder and room on the "
            "disk. Free the disk, then run the same command again; it goes on from the last checkpoint."
        ) from error


def _lines(path: Location, step: int) -> list[str]:
    """Returns the lines of metrics.jsonl up to a step, without a line that a kill cut short."""
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    try:
        return [line for line in whole if json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MetricsError(
            f"metrics: got a line in {path} that cannot be read ({error}), expected a JSON object with a step on each. "
            "Correct the line, or move the file away: the run goes on without it."
        ) from error


def _events(events: list[dict[str, Any]]) -> bytes:
    """Returns events as TensorBoard reads them: TFRecords of length, data, and a checksum of each."""
    from tensorboardX.proto.event_pb2 import Event  # here, for the package imports PyTorch where there is one
    from tensorboardX.record_writer import masked_crc32c

    datas = [Event(**event).SerializeToString() for event in events]
    fields = [field for data in datas for field in (struct.pack("<Q", len(data)), data)]
    return b"".join(field + struct.pack("<I", masked_crc32c(field)) for field in fields)


class MetricsLog:
    """metrics.jsonl and TensorBoard events in a run's folder, written by the first host only.

    Lines past `step` (left by a run that was killed after its last checkpoint) are dropped, so that a resumed run's file
    reads as if it had never stopped. Events are written by the caller's thread: tensorboardX's own SummaryWriter leaves
    them to a thread that dies in silence on a full disk, and then blocks the run for ever. MetricsError where the disk is
    full or the file is damaged.
    """

    def __init__(self, workdir: Location, step: int) -> None:
        self.workdir, self.writes = workdir, jax.process_index() == 0
        if not self.writes:
            return
        path, folder = workdir / "metrics.jsonl", workdir / "tensorboard"
        with _explained(workdir):
            self.file = growing_file(path, "".join(line + "\n" for line in _lines(path, step)).encode())
            folder.mkdir(parents=True, exist_ok=True)
            goes_on = step > 0 or any(True for _ in folder.glob("events*"))
            first = [{"wall_time": time.time(), "file_version": "brain.Event:2"}]
            if goes_on:  # TensorBoard forgets what another file says of later steps
                first.append({"step": step + 1, "session_log": {"status": 1}})
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            self.board = growing_file(folder / name, _events(first))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line {"step": ..., name: value ...}, and the same values for TensorBoard."""
        if not self.writes:
            return
        now = time.time()
        summary = {"value": [{"tag": name, "simple_value": value} for name, value in values.items()]}
        with _explained(self.workdir):
            self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")
            self.board.write(_events([{"wall_time": now, "step": step, "summary": summary}]))

    def flush(self) -> None:
        """Writes what a bucket does not have yet: before a checkpoint, so that a run that resumes from it lacks nothing."""
        if self.writes:
            with _explained(self.workdir):
                self.file.flush()
                self.board.flush()

    def close(self) -> None:
        """Writes what is left and closes both files; MetricsError where that fails."""
        if self.writes:
            with _explained(self.workdir):
                self.file.close()
                self.board.close()


class Speed:
    """Tokens/s, achieved FLOP/s and, where the device's peak is known, MFU (Chowdhery et al. 2022) since the last reading."""

    def __init__(self, model: ModelConfig, length: int, tokens_per_step: int) -> None:
        self.flops_per_token = train_flops_per_token(model, length)
        self.tokens_per_step = tokens_per_step
        peak = peak_flops(jax.devices()[0].device_kind)
        self.peak = peak * jax.device_count() if peak else None
        self.tokens_per_second = 0.0  # of the last reading
        self.steps, self.since = 0, time.perf_counter()

    def reading(self) -> dict[str, float]:
        """Returns the speed of the steps since the last reading; `steps` counts them."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        tokens = self.tokens_per_second = self.steps * self.tokens_per_step / elapsed
        self.restart()
        values = {"tokens_per_second": tokens, "flops_per_second": tokens * self.flops_per_token}
        return values | ({"mfu": values["flops_per_second"] / self.peak} if self.peak else {})

    def restart(self) -> None:
        """Begins a new reading, without the time since the last one (validation, saving)."""
        self.steps, self.since = 0, time.perf_counter()
