"""A run's folder belongs to one config, one text, and one running process."""

import errno
import fcntl
import logging
import re
import signal
from pathlib import Path

import jax
import pytest

from alibi_jax.config import DataConfig, load_config, replace, to_json
from alibi_jax.errors import ConfigError, HeldError
from alibi_jax.run import workdir as workdir_module
from alibi_jax.run.lock import only_run
from alibi_jax.run.workdir import check_shared, new_mark, open_workdir, saved_steps
from alibi_jax.train import train
from children import exit_status, start, wait_for
from runs import tiny_config


def test_folder_belongs_to_one_config_and_one_text(tmp_path):
    config = tiny_config(DataConfig())
    open_workdir(tmp_path, config, "text")
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    open_workdir(tmp_path, replace(replace(config, "mesh", fsdp=2), "evaluate", max_tokens=9), "text")
    open_workdir(tmp_path, replace(config, "model", remat=True, remat_saves="attention"), "text")
    other = replace(replace(config, "model", width=32), "optimizer", beta2=0.5)
    with pytest.raises(ConfigError, match=r"model\.width: 16 -> 32; optimizer\.beta2: 0\.98 -> 0\.5"):
        open_workdir(tmp_path, other, "text")
    with pytest.raises(ConfigError, match="fingerprint"):
        open_workdir(tmp_path, config, "another text")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        open_workdir(tmp_path, config, "text")


def test_folder_without_a_checkpoint_takes_another_config_and_text(tmp_path):
    config = tiny_config(DataConfig())
    (tmp_path / "config.json").write_text("{")  # without corpus.txt: as a kill between them leaves it
    for number in range(3):
        config = replace(config, "train", seed=number)
        open_workdir(tmp_path, config, f"text {number}")
        assert load_config(tmp_path) == config and (tmp_path / "corpus.txt").read_text() == f"text {number}"
        # a first save that was killed, or met a full disk, leaves no more
        (tmp_path / f"checkpoints/{number}.orbax-checkpoint-tmp/params").mkdir(parents=True)
    (tmp_path / "checkpoints/kept").mkdir()  # it may be somebody's
    with pytest.raises(ConfigError, match=r"train\.seed: 2 -> 3"):
        open_workdir(tmp_path, replace(config, "train", seed=3), "text")


def test_files_of_a_run_that_are_damaged_are_named(tmp_path):
    config = tiny_config(DataConfig())
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"without config\.json and corpus\.txt, which name"):
        open_workdir(tmp_path, config, "text")
    (tmp_path / "config.json").write_text(to_json(config))
    for content in (b"\xff\x00", b"", b"null"):
        (tmp_path / "corpus.txt").write_bytes(content)
        with pytest.raises(ConfigError, match="fingerprint"):
            open_workdir(tmp_path, config, "text")


def test_note_of_the_holder_that_is_no_text(tmp_path):
    with only_run(tmp_path):
        (tmp_path / "lock").write_bytes(b"\xff\x00" * 10**6)
        with pytest.raises(HeldError, match="another run is at work") as raised, only_run(tmp_path):
            pass
        assert len(str(raised.value)) < 1000


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=re.escape(f"got {workdir}, which cannot be written")):
            open_workdir(workdir, tiny_config(DataConfig()), "text")


def hold(workdir: Path) -> None:
    with only_run(workdir):
        (workdir / "held").touch()
        signal.pause()


def test_second_run_is_refused_until_the_first_is_dead(tiny_data, tmp_path):
    first = start(hold, tmp_path / "run")
    wait_for(lambda: (tmp_path / "run/held").exists() or not first.is_alive())
    with pytest.raises(HeldError, match=rf"another run is at work \(host .+, process {first.pid}, since 20.+\)"):
        train(tiny_config(tiny_data), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
    first.kill()
    assert exit_status(first) == -signal.SIGKILL
    with only_run(tmp_path / "run"), pytest.raises(HeldError, match="another run"), only_run(tmp_path / "run"):
        pass
    with only_run(tmp_path / "run"):
        pass


def test_only_the_first_host_takes_the_lock(tmp_path, monkeypatch):
    with only_run(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with only_run(tmp_path):
            pass


def test_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(logging.getLogger("alibi_jax"), "propagate", True)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.INFO), only_run(tmp_path):
        pass
    assert f"{tmp_path} has no locks" in caplog.text


def test_folder_that_cannot_be_locked_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="which cannot be written"), only_run(tmp_path / "file"):
        pass


def test_saved_steps_are_whole_and_in_order(tmp_path):
    assert saved_steps(tmp_path) == []
    for name in ("9", "10", "\u00b2", "\u0663", "backup", "11.orbax-checkpoint-tmp-3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert saved_steps(tmp_path) == [9, 10]


def test_hosts_share_a_folder_whatever_they_call_it(tmp_path, monkeypatch):
    """The first host's mark decides, not the path; another folder is refused with both names."""
    monkeypatch.setattr(workdir_module, "SHARED_SECONDS", 0.0)
    here, there, elsewhere = tmp_path / "here", tmp_path / "there", tmp_path / "elsewhere"
    here.mkdir()
    there.symlink_to(here)
    marks = [new_mark(here), new_mark(here)]
    for mark in marks:
        monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 0)
        check_shared(here, mark)
        monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 1)
        check_shared(there, mark)
        with pytest.raises(
            ConfigError, match=rf"got {elsewhere} on host 1, which is not .* the first host calls {here}:"
        ):
            check_shared(elsewhere, mark)
    assert marks[0] != marks[1] and len(list(here.iterdir())) == 1 and not elsewhere.exists()
