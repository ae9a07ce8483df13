"""A run's files are whole or absent, in a folder and in a bucket, where nothing grows and nothing is renamed."""

import importlib.machinery
import io
import json
import sys
import types
import urllib.parse

import numpy as np
import pytest
from etils import epath
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFileSystem

from alibi_jax import storage
from alibi_jax.config import DataConfig, MeshConfig, load_config, replace
from alibi_jax.errors import ConfigError, MetricsError
from alibi_jax.evaluate.reader import read_records
from alibi_jax.evaluate.run import evaluate_run
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.lock import only_run
from alibi_jax.run.metrics import MetricsLog
from alibi_jax.run.workdir import check_corpus, open_workdir, saved_steps
from alibi_jax.storage import growing_file, in_bucket, locate, save_array, write_atomically
from alibi_jax.train import train
from runs import assert_identical, saved_state, tiny_config


class Objects(MemoryFileSystem):
    """Objects in memory under gs://: written whole, never added to, never renamed."""

    protocol = ("gcs", "gs")
    store: dict = {}  # noqa: RUF012 - of the class, as the file systems of fsspec have it
    pseudo_dirs: list = [""]  # noqa: RUF012
    writes: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("gcs://").removeprefix("gs://").strip("/")

    def open(self, path, mode="rb", **options):
        assert mode in ("r", "rb", "w", "wb"), f"an object cannot be opened with mode {mode!r}"
        if "w" in mode:
            self.writes.append(str(path))
        return super().open(path, mode, **options)

    def mv(self, *_, **__):
        raise AssertionError("an object cannot be renamed")

    rename = move = mv


@pytest.fixture
def bucket(monkeypatch):
    """gs://bucket/run, which holds nothing yet, where gcsfs is not needed."""
    gcsfs = types.ModuleType("gcsfs")
    gcsfs.__spec__ = importlib.machinery.ModuleSpec("gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", gcsfs)
    monkeypatch.setattr(type(fsspec_backend), "_get_filesystem", lambda *_: Objects())
    for name in Objects.protocol:
        monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, name, Objects)
    for kept, nothing in ((Objects.store, {}), (Objects.writes, []), (Objects.pseudo_dirs, [""])):
        kept.clear()
        kept.update(nothing) if isinstance(kept, dict) else kept.extend(nothing)
    return locate("gs://bucket/run")


def test_a_path_is_a_folder_or_in_a_bucket(bucket, tmp_path, monkeypatch):
    assert locate(tmp_path) == locate(str(tmp_path)) == tmp_path and not in_bucket(tmp_path)
    assert isinstance(bucket, epath.Path) and str(bucket) == "gs://bucket/run" and in_bucket(bucket / "checkpoints")
    assert locate(bucket) == bucket
    for path in ("s3://bucket/run", "gs:/bucket/run", "memory://run"):
        with pytest.raises(ConfigError, match=f"got {path}, expected a folder or gs://BUCKET/FOLDER"):
            locate(path)
    for path in ("", " ", "a\0b"):
        with pytest.raises(ConfigError, match="expected the name of a file or folder"):
            locate(path)
    monkeypatch.delitem(sys.modules, "gcsfs")
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"expected the package gcsfs for gs://\. Install it"):
        locate("gs://bucket/run")


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    return tmp_path / "run" if request.param == "folder" else request.getfixturevalue("bucket")


def test_files_and_arrays_come_back(place):
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / "text", "north")
    write_atomically(place / "text", "söuth")
    assert (place / "text").read_bytes() == "söuth".encode()
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_array(place / "array.npy", array)
    np.testing.assert_array_equal(np.load(io.BytesIO((place / "array.npy").read_bytes())), array)
    assert np.load(io.BytesIO((place / "array.npy").read_bytes())).dtype == np.float32


def test_growing_file_has_all_of_it_once_flushed(place):
    place.mkdir(parents=True, exist_ok=True)
    file = growing_file(place / "log", b"one ")
    file.write(b"two ")
    assert (place / "log").read_bytes() == (b"one " if in_bucket(place) else b"one two ")
    file.flush()
    assert (place / "log").read_bytes() == b"one two "
    file.write(b"three")
    file.close()
    assert (place / "log").read_bytes() == b"one two three"


def test_object_is_written_once_a_minute_and_not_without_news(bucket, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(storage.time, "monotonic", lambda: now[0])
    file = growing_file(bucket / "log", b"")
    for _ in range(300):
        now[0] += 1
        file.write(b"x")
    file.close()
    file.close()
    assert (bucket / "log").read_bytes() == b"x" * 300
    assert len(Objects.writes) <= 1 + 300 // storage.REWRITE_EVERY + 1


def test_folder_of_a_run(place):
    config = tiny_config(DataConfig())
    with only_run(place):
        open_workdir(place, config, "text")
    open_workdir(place, config, "text")
    assert load_config(str(place)) == config
    check_corpus(place, "text")
    write_atomically(place / "checkpoints/2/commit_success.txt" if in_bucket(place) else place / "file", "")
    if not in_bucket(place):
        (place / "checkpoints/2").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"model\.width: 16 -> 32"):
        open_workdir(place, replace(config, "model", width=32), "text")
    with pytest.raises(ConfigError, match="fingerprint"):
        check_corpus(place, "another text")


def test_metrics_are_kept_and_go_on(place):
    place.mkdir(parents=True, exist_ok=True)
    for first in (0, 2):
        log = MetricsLog(place, first)
        for step in (1, 2, 3):
            log.write(first + step, {"loss": float(step)})
        log.flush()
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, first + 4))
        log.close()
    events = sorted((place / "tensorboard").iterdir(), key=lambda path: path.name)
    assert len(events) == 2 and all(len(path.read_bytes()) > 100 for path in events)


def test_metrics_that_a_bucket_refuses(bucket, monkeypatch):
    log = MetricsLog(bucket, 0)
    log.write(1, {"loss": 1.0})

    def forbidden(*_, **__):
        raise OSError("Forbidden: the account may not write")

    monkeypatch.setattr(Objects, "open", forbidden)
    with pytest.raises(MetricsError, match="could not write in gs://bucket/run: Forbidden"):
        log.flush()


def test_step_in_a_bucket_counts_once_it_is_committed(bucket):
    for name in ("2/commit_success.txt", "10/commit_success.txt", "12/params/data"):
        write_atomically(bucket / "checkpoints" / name, "")
    assert saved_steps(bucket) == [2, 10]
    write_atomically(bucket / "checkpoints/12/commit_success.txt", "")
    assert saved_steps(bucket) == [2, 10, 12]


def keeps_generations(handler: type) -> type:
    """The emulator's handler of requests, which also does what it leaves out and TensorStore builds on: it says an object's
    generation, and refuses to write over another than the one expected."""

    class Handler(handler):
        def generation(self) -> str:
            address = urllib.parse.urlsplit(self.path)
            name = urllib.parse.parse_qs(address.query).get("name", [address.path.rpartition("/o/")[2]])[0]
            actual = self.storage.objects.get("bucket", {}).get(urllib.parse.unquote(name))
            return actual["generation"] if actual else "0"

        def do_POST(self) -> None:  # noqa: N802
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            if query.get("ifGenerationMatch", [self.generation()])[0] == self.generation():
                super().do_POST()
                return
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(412)
            self.send_header("Content-Length", "0")
            super().end_headers()

        def end_headers(self) -> None:
            if self.command == "GET":
                self.send_header("x-goog-generation", self.generation())
            super().end_headers()

    return Handler


@pytest.fixture
def cloud(monkeypatch):
    """gs://bucket/run of a server of Cloud Storage's protocol in this process, through gcsfs and TensorStore themselves."""
    pytest.importorskip("gcsfs", reason="runs in gs:// need gcsfs: pip install -e '.[gcs]' gcp-storage-emulator")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="pip install gcp-storage-emulator")
    monkeypatch.setattr(emulator, "RequestHandler", keeps_generations(emulator.RequestHandler))
    server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    server.start()
    address = f"http://localhost:{server._api._httpd.socket.getsockname()[1]}"
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield locate("gs://bucket/run")
    server.stop()


@pytest.mark.filterwarnings("ignore")  # of Google's packages, which are not ours
def test_run_in_cloud_storage_is_the_run_on_a_disk(cloud, tiny_data, tmp_path):
    config = tiny_config(tiny_data, validate_every=2, max_to_keep=2)
    train(config, tmp_path / "run")
    train(config, str(cloud))
    assert saved_steps(cloud) == saved_steps(tmp_path / "run") == [2, 4]
    assert_identical(saved_state(config, cloud), saved_state(config, tmp_path / "run"))

    (cloud / "checkpoints/4/commit_success.txt").unlink()  # as a kill in the middle of a save leaves it
    assert saved_steps(cloud) == [2] and Checkpoints(cloud, read_only=True).latest() == 2
    train(config, str(cloud))
    assert saved_steps(cloud) == [2, 4]
    assert_identical(saved_state(config, cloud), saved_state(config, tmp_path / "run"))
    steps = [[json.loads(line)["step"] for line in (place / "metrics.jsonl").read_text().splitlines()]
             for place in (cloud, tmp_path / "run")]  # fmt: skip
    assert steps[0] == steps[1]

    sweeps = [read_records([evaluate_run(place, mesh=MeshConfig())]) for place in (str(cloud), tmp_path / "run")]
    assert [record.statistics for record in sweeps[0]] == [record.statistics for record in sweeps[1]]
    assert sweeps[0][0].nats_file.startswith("gs://bucket/run/evaluation/")
