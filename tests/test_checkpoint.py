"""A run's folder: what is saved is what was there, whole or absent, and nothing damaged or foreign is taken for it."""

import gc
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alibi_jax import loop
from alibi_jax.config import DataConfig, to_json
from alibi_jax.errors import CheckpointError, ConfigError, Failed
from alibi_jax.run.checkpoint import Checkpoints
from alibi_jax.run.checksums import checksums
from alibi_jax.run.parse import main
from alibi_jax.run.workdir import open_workdir, saved_steps
from alibi_jax.train import train
from runs import assert_identical, tiny_config

# Orbax leaves what it was reading beside a damaged file to the garbage collector, which warns
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("programs_once"),
]


@pytest.fixture(autouse=True, scope="module")
def garbage_of_this_module():
    """Once: of a process that has compiled a thousand programs each collection takes half a second."""
    yield
    gc.collect()


def params(step: int) -> dict:
    return {"layer": {"kernel": jax.random.normal(jax.random.key(step), (50, 100)), "bias": jnp.full(3, step, float)}}


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def optimizer(step: int) -> dict:
    return {"step": jnp.int32(step), "moments": (params(step), ())}


def save(workdir, losses: list[float | None], max_to_keep: int = 2) -> Checkpoints:
    """Steps 1, 2, ... with these validation losses, all on the disk."""
    checkpoints = Checkpoints(workdir, max_to_keep)
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(step, params(step), optimizer(step), loss)
    checkpoints.wait()
    return checkpoints


def steps(workdir) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.versions
def test_restores_every_bit_and_the_parameters_alone(tmp_path):
    save(tmp_path, [None]).close()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    restored = checkpoints.restore(1, params=shapes(params(1)), optimizer=shapes(optimizer(1)))
    assert_identical(restored, {"params": params(1), "optimizer": optimizer(1)})
    assert_identical(checkpoints.restore(1, params=shapes(params(1))), {"params": params(1)})


def test_save_keeps_what_was_there_while_the_next_steps_reuse_its_memory(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x + 1, tree), donate_argnums=0)
    state = {str(i): jnp.full((500, 1000), i, jnp.float32) for i in range(8)}
    copy = jax.tree.map(lambda x: np.array(x, copy=True), state)
    checkpoints, saved = Checkpoints(tmp_path), state
    checkpoints.save(1, state, {"step": jnp.int32(1)}, None)
    for _ in range(5):
        state = step(state)
    jax.tree.map(lambda x: x.delete(), saved)  # the runtime may refuse a donation while the save reads: gone either way
    state = step(jax.tree.map(jnp.zeros_like, state))
    checkpoints.wait()
    assert_identical(checkpoints.restore(1, params=shapes(state))["params"], copy)


@pytest.mark.versions
def test_keeps_the_latest_and_the_best(tmp_path):
    checkpoints = save(tmp_path, [3.0, 1.0, 2.5, None, 2.0, None])
    assert steps(tmp_path) == {"2", "5", "6"}
    assert (checkpoints.latest(), checkpoints.best()) == (6, 2)
    checkpoints.close()
    again = Checkpoints(tmp_path, max_to_keep=1)
    assert (again.latest(), again.best()) == (6, 2)
    again.save(7, params(7), optimizer(7), 0.5)
    again.close()
    assert steps(tmp_path) == {"7"}


def test_best_is_the_latest_where_none_was_validated(tmp_path):
    assert Checkpoints(tmp_path / "new").best() is None
    assert save(tmp_path, [None, None]).best() == 2


def test_checksum_sees_every_bit_and_every_place_and_no_mesh():
    x = np.random.default_rng(0).normal(size=(8, 6, 5)).astype(np.float32)
    words = x.view(np.uint32).astype(np.uint64)
    expected = int((words.ravel() * (2 * np.arange(x.size, dtype=np.uint64) + 1)).sum() % 2**32)
    mesh = jax.make_mesh((8,), ("rows",))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("rows")))
    assert checksums({"x": jnp.asarray(x)}) == checksums({"x": split}) == {"x": expected}
    for bit in range(32):
        flipped = x.copy()
        flipped.view(np.uint32)[3, 2, 1] ^= np.uint32(1 << bit)
        assert checksums({"x": jnp.asarray(flipped)}) != {"x": expected}
    assert checksums({"x": jnp.asarray(x[::-1].copy())}) != {"x": expected}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32"])
def test_checksum_of_an_array_on_one_cpu_is_that_of_the_program(monkeypatch, dtype):
    """All bit patterns, of NaN too; in slabs, of which the last is short, or sharded over several devices."""
    monkeypatch.setattr("alibi_jax.run.checksums.AT_ONCE", 7)
    x = (
        np.random.default_rng(0)
        .integers(0, 256, (8, 5, 3 * jnp.dtype(dtype).itemsize), np.uint8)
        .view(jnp.dtype(dtype))
    )
    split = jax.device_put(x, jax.NamedSharding(jax.make_mesh((8,), ("rows",)), jax.P("rows")))
    assert checksums({"x": x}) == checksums({"x": split})


UNREADABLE = {
    "star": "a*b",
    "question mark": "a?b",
    "bracket": "a[b",
    "class": "a[x]b",
    "parent": "a[x]b/run",
    "backslash": "a\\b",
    "line end": "a\nb",
    "escape": "a\x1b[1mb",
    "bytes": os.fsdecode(b"a\xff"),
    "long": "/".join(["x" * 100] * 40),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_path_that_could_not_be_read_back_is_refused_before_any_work(tmp_path, name):
    message = "3,800" if name == "long" else "bytes that are not UTF-8"
    with pytest.raises(ConfigError, match=f"workdir: got .*{message}"):
        train(tiny_config(DataConfig(source="files", train_path="missing")), tmp_path / UNREADABLE[name])
    with pytest.raises(ConfigError, match=message):
        Checkpoints(tmp_path / UNREADABLE[name], read_only=True)
    assert not list(tmp_path.iterdir())


def test_current_folder_counts(tmp_path, monkeypatch):
    (tmp_path / "a[x]b").mkdir()
    monkeypatch.chdir(tmp_path / "a[x]b")
    with pytest.raises(ConfigError, match=r"a\[x\]b/run', with '\['"):
        Checkpoints(Path("run"))


def test_other_paths_are_read_back(tmp_path):
    name = "a b{c}]~'\"$HOME;&|!#%20@=+,^:ü☃. " + "x" * 200
    save(tmp_path / name, [1.0]).close()
    restored = Checkpoints(tmp_path / name, read_only=True).restore(1, params=shapes(params(1)))
    assert_identical(restored["params"], params(1))


@pytest.mark.parametrize("lost", ["params/manifest.ocdbt", "optimizer/_METADATA", "checksums/metadata", ""])
def test_save_is_called_done_once_it_can_be_opened(tmp_path, monkeypatch, lost):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, params(1), optimizer(1), None)
    finished = checkpoints.manager.wait_until_finished

    def finished_with_a_loss():
        finished()
        if (tmp_path / "checkpoints/1" / lost).exists():
            remove(tmp_path / "checkpoints/1" / lost)

    monkeypatch.setattr(checkpoints.manager, "wait_until_finished", finished_with_a_loss)
    with pytest.raises(CheckpointError, match=f"could not write step 1 .*{lost}.* is not there after the save"):
        checkpoints.save(2, params(2), optimizer(2), None)
    checkpoints.close()


METRICS = {
    "infinity": '{"validation_nats": Infinity}',
    "minus infinity": '{"validation_nats": -1e999}',
    "nan": '{"validation_nats": NaN}',
    "text": '{"validation_nats": "2.0"}',
    "list": '{"validation_nats": [2.0]}',
    "null": '{"validation_nats": null}',
    "true": '{"validation_nats": true}',
    "no loss": "{}",
    "no object": "[1.0]",
    "nothing": "null",
    "empty": "",
    "deep": "[" * 100_000,
    "digits": '{"validation_nats": 1' + "0" * 5000 + "}",
}


@pytest.mark.parametrize(("kind", "read_only"), [*((kind, True) for kind in METRICS), ("nan", False)])
def test_loss_that_is_no_number_is_named(sound, tmp_path, kind, read_only):
    shutil.copytree(sound, tmp_path / "run")
    (tmp_path / "run/checkpoints/1/metrics/metrics").write_text(METRICS[kind])
    with pytest.raises(
        CheckpointError, match="could not read step 1 .*remove its folder .*checkpoints/1.*goes on from step 2"
    ):
        Checkpoints(tmp_path / "run", read_only=read_only)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sound")
    save(workdir, [2.0, 1.0]).close()
    return workdir


DAMAGES = {
    "manifest cut": (halve, "params/manifest.ocdbt"),
    "manifest gone": (remove, "params/manifest.ocdbt"),
    "moments' manifest cut": (halve, "optimizer/manifest.ocdbt"),
    "index cut": (halve, "params/d/*"),
    "index gone": (remove, "params/d/*"),
    "data cut": (halve, "params/ocdbt.process_0/d/*"),
    "data gone": (remove, "optimizer/ocdbt.process_0/d/*"),
    "data changed": (flip, "params/ocdbt.process_0/d/*"),
    "tree cut": (halve, "params/_METADATA"),
    "arrays' facts cut": (halve, "params/array_metadatas/process_0"),
    "validation loss cut": (halve, "metrics/metrics"),
    "checksums cut": (halve, "checksums/metadata"),
    "checksums gone": (remove, "checksums"),
    "moments gone": (remove, "optimizer"),
    "empty folder": (remove, "*"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.versions
def test_damaged_checkpoint_is_named_and_never_passed_over(sound, tmp_path, damage):
    shutil.copytree(sound, tmp_path / "run")
    change, pattern = DAMAGES[damage]
    paths = list((tmp_path / "run/checkpoints/2").glob(pattern))
    assert paths
    for path in paths:
        change(path)
    with pytest.raises(CheckpointError, match="could not read step 2 .*remove its folder") as raised:
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.restore(checkpoints.latest(), params=shapes(params(2)), optimizer=shapes(optimizer(2)))
    assert str(tmp_path / "run/checkpoints") in str(raised.value)
    assert "checkpoints/2), then run the same command again: it goes on from step 1." in str(raised.value)
    shutil.rmtree(tmp_path / "run/checkpoints/2")  # as the message says
    checkpoints = Checkpoints(tmp_path / "run")
    assert_identical(checkpoints.restore(checkpoints.latest(), params=shapes(params(1)))["params"], params(1))


def test_damaged_checkpoint_is_one_line_and_its_way_on_works(tiny_data, tmp_path, capfd):
    """Of all that goes to the terminal, by other threads and from C++ too."""
    config, workdir = tiny_config(tiny_data, steps=4, checkpoint_every=2), tmp_path / "run"
    (tmp_path / "config.json").write_text(to_json(config))
    train = ["train", str(tmp_path / "config.json"), "--workdir", str(workdir)]
    evaluate = ["evaluate", str(workdir), "--checkpoint", "last"]
    assert main(train) == 0
    capfd.readouterr()
    halve(workdir / "checkpoints/4/params/manifest.ocdbt")
    assert main(evaluate) == Failed.status
    gc.collect()
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("attention: ")]
    assert len(lines) == 1 and lines[0].startswith("error: checkpoints: could not read step 4 in "), lines
    (workdir / "checkpoints/4/params/manifest.ocdbt").unlink()
    assert main(train) == Failed.status
    assert "got no params/manifest.ocdbt" in capfd.readouterr().err
    (command,) = re.findall(r"remove its folder \((.*)\), then run the same command again: it goes on from", lines[0])
    subprocess.run(command, shell=True, check=True)
    assert main(train) == 0 and saved_steps(workdir) == [2, 4]


FOREIGN = {
    "shape": {"layer": {"kernel": jnp.zeros((50, 101)), "bias": jnp.zeros(3)}},
    "dtype": {"layer": {"kernel": jnp.zeros((50, 100), jnp.bfloat16), "bias": jnp.zeros(3)}},
    "missing": {"layer": {"kernel": jnp.zeros((50, 100))}},
    "more": {"layer": {"kernel": jnp.zeros((50, 100)), "bias": jnp.zeros(3), "scale": jnp.zeros(3)}},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_checkpoint_of_another_model_is_refused(sound, kind):
    with pytest.raises(CheckpointError, match="could not read step 2"):
        Checkpoints(sound, read_only=True).restore(2, params=shapes(FOREIGN[kind]))


def test_programming_error_is_not_a_damaged_checkpoint(sound, monkeypatch):
    checkpoints = Checkpoints(sound, read_only=True)
    monkeypatch.setattr(checkpoints.manager, "restore", lambda *_, **__: 1 + "1")
    with pytest.raises(TypeError):
        checkpoints.restore(2, params=shapes(params(2)))


def test_read_only_makes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="got none in .*Train it first"):
        Checkpoints(tmp_path / "run", read_only=True)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes, which root may mount; others are told that they did not see this."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False, capture_output=True, text=True
    )
    if mounted.returncode and os.geteuid():
        pytest.skip(f"a full disk is shown with a tmpfs, which only root may mount: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk) -> None:
    with open(disk / "ballast", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                pass  # full


FULL = {  # steps between lines of metrics and between checkpoints, and what fails first once the disk is full
    "checkpoint": (1000, 3, r"checkpoints: could not write"),
    "metrics": (1, 20, r"metrics: could not write in"),  # the last page of a file takes some more lines
}


@pytest.mark.parametrize("what", FULL)
def test_full_disk_stops_the_run_and_spoils_nothing(small_disk, tmp_path, tiny_data, monkeypatch, capsys, what):
    log_every, every, message = FULL[what]
    config = tiny_config(tiny_data, steps=3 * every, log_every=log_every, checkpoint_every=every, validate_tokens=16)
    (tmp_path / "config.json").write_text(to_json(config))
    command = ["train", str(tmp_path / "config.json"), "--workdir", str(small_disk / "run")]
    calls, put_batch = iter(range(1000)), loop.put_batch

    def full_after_a_checkpoint(rows, mesh):
        if next(calls) == 2 * (every + 1):
            while not (small_disk / f"run/checkpoints/{every}").exists():
                time.sleep(0.01)
            fill(small_disk)
        return put_batch(rows, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "put_batch", full_after_a_checkpoint)
        assert main(command) == Failed.status
    errors = capsys.readouterr().err
    assert message in errors and "No space left on device" in errors and "Traceback" not in errors, errors
    (small_disk / "ballast").unlink()
    assert Checkpoints(small_disk / "run", read_only=True).latest() == every
    assert main(command) == 0
    assert Checkpoints(small_disk / "run", read_only=True).latest() == 3 * every
    assert not list((small_disk / "run/checkpoints").glob("*tmp*"))


def test_full_disk_before_the_start(small_disk):
    fill(small_disk)
    with pytest.raises(ConfigError, match="cannot be written .No space left on device.*free the disk"):
        open_workdir(small_disk / "run", tiny_config(DataConfig()), "text")
