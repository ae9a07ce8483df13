"""Several hosts as one computer: two processes of four devices, over loopback."""

import re
import socket
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from alibi_jax.config import Config, replace, to_json
from alibi_jax.data.batches import Batches
from alibi_jax.data.corpus import prepare
from alibi_jax.errors import ConfigError, Failed, HeldError, HostsError, Interrupted, Refused
from alibi_jax.model import TransformerLM
from alibi_jax.run import connect as connecting
from alibi_jax.run import exchange
from alibi_jax.run.connect import connect
from alibi_jax.run.hosts import ENVIRONMENT, Hosts
from alibi_jax.run.lock import only_run
from alibi_jax.train import train
from children import exit_status, latest, run_command, start, wait_for
from conftest import assert_close
from runs import DROPOUT, assert_identical, saved_state, tiny_config
from test_kill import lines


def free_port() -> int:
    with socket.socket() as observed:
        observed.bind(("127.0.0.1", 0))
        return observed.getsockname()[1]


class Host:
    """One process of the command, with so many devices; what it says is in a file."""

    def __init__(self, arguments: list[str], devices: int, output: Path) -> None:
        self.output, self.process = output, start(run_command, arguments, output, devices)

    def status(self) -> int | None:
        return exit_status(self.process)

    def text(self) -> str:
        return self.output.read_text()


@pytest.fixture
def hosts():
    """start(...) -> Host; none outlives the test."""
    started = []

    def begin(*arguments) -> Host:
        started.append(Host(*arguments))
        return started[-1]

    yield begin
    for host in started:
        for process in psutil.Process(host.process.pid).children(True) if host.process.is_alive() else []:
            process.kill()
        host.process.kill()
        host.process.join()


def pair(
    start,
    config: Config,
    workdir: Path,
    devices: int = 4,
    before: tuple[str, ...] = (),
    last: list[str] | None = None,
    options: tuple[str, ...] = (),
) -> list[Host]:
    """Two hosts that train together, with so many devices each; the second with options of its own."""
    path = workdir.parent / f"{workdir.name}.json"
    path.write_text(to_json(config))
    address, arguments = f"127.0.0.1:{free_port()}", [*before, "train", str(path), "--workdir", str(workdir), *options]
    flags = ["--hosts.coordinator", address, "--hosts.count", "2", "--hosts.heartbeat-seconds", "10", "--hosts.index"]
    return [
        start([*arguments, *flags, str(i), *(last or []) * i], devices, workdir.parent / f"{workdir.name}.{i}")
        for i in range(2)
    ]


def one_host(start, config: Config, workdir: Path, devices: int) -> Host:
    path = workdir.parent / f"{workdir.name}.{devices}.json"
    path.write_text(to_json(config))
    arguments = ["train", str(path), "--workdir", str(workdir)]
    return start(arguments, devices, workdir.parent / f"{workdir.name}.alone")


def assert_close_states(actual, expected) -> None:
    jax.tree.map(lambda x, y: assert_close(x, y, "sharded loss"), actual.params, expected.params)


def test_two_hosts_train_are_killed_and_one_goes_on(hosts, tiny_data, tmp_path):
    config = tiny_config(tiny_data, {"attention": "blockwise"}, steps=12, checkpoint_every=2)
    config = replace(replace(config, "mesh", fsdp=2, sequence=2), "optimizer", epsilon=1e-3)
    prepare(tiny_data, quiet=True)
    first, second = pair(hosts, config, tmp_path / "run")
    wait_for(lambda: latest(tmp_path / "run") >= 4 or not first.process.is_alive())
    second.process.kill()
    assert first.status() != 0, first.text()
    reached = latest(tmp_path / "run")
    alone = one_host(hosts, replace(config, "mesh", fsdp=2, sequence=1), tmp_path / "run", 2)
    assert alone.status() == 0, alone.text()
    assert 4 <= reached < 12
    train(replace(config, "mesh", fsdp=1, sequence=1), tmp_path / "whole")
    assert_close_states(saved_state(config, tmp_path / "run"), saved_state(config, tmp_path / "whole"))
    observed = lines(tmp_path / "run")
    assert [line["step"] for line in observed if "loss" in line] == list(range(1, 13)), (
        "logged once by all hosts together"
    )
    assert "trained" not in second.text() and "attention" not in second.text(), "said by the first host alone"


def test_a_signal_to_one_host_stops_all_at_the_same_step(hosts, tiny_data, tmp_path):
    """In a run that began with another one's parameters, sharded over both hosts."""
    config = replace(tiny_config(tiny_data, steps=10**6, checkpoint_every=10**6), "mesh", fsdp=4)
    source = replace(config, "train", steps=1, seed=7)
    train(source, tmp_path / "source")
    first, second = pair(hosts, config, tmp_path / "run", options=("--init-from", str(tmp_path / "source")))
    wait_for(lambda: len(lines(tmp_path / "run")) > 3 or not first.process.is_alive())
    second.process.terminate()
    assert (first.status(), second.status()) == (Interrupted.status, Interrupted.status), first.text() + second.text()
    output = [re.search(r"(\S.*): step (\d+) of 1000000 is saved", host.text()) for host in (first, second)]
    assert output[0][1] == "a signal to another host" and output[1][1] == "SIGTERM"
    assert int(output[0][2]) == int(output[1][2]) == latest(tmp_path / "run")
    params = jax.tree.map(jnp.asarray, saved_state(source, tmp_path / "source").params)
    batch = map(jnp.asarray, Batches(prepare(tiny_data).tokens("train"), 16, 8, 0).batch_at(0))
    nats = TransformerLM(config.model).apply({"params": params}, *batch, method="nats")
    began = next(line["loss"] for line in lines(tmp_path / "run") if "loss" in line)
    assert_close(began, np.mean(nats), "sharded loss")


@pytest.mark.versions
def test_what_one_host_refuses_all_refuse_at_once(hosts, tiny_data, tmp_path):
    """A run in the folder that the first host finds, another config or another folder: both end alike, soon."""
    prepare(tiny_data, quiet=True)
    config, began = tiny_config(tiny_data), time.monotonic()
    first, second = pair(hosts, config, tmp_path / "run", 1, (), ["--train.steps", "5"])
    elsewhere = str(tmp_path / "elsewhere")
    here, there = pair(hosts, config, tmp_path / "here", 1, (), ["--workdir", elsewhere])
    with only_run(tmp_path / "held"):
        other, another = pair(hosts, config, tmp_path / "held", 1)
        assert [here.status(), there.status()] == [Refused.status] * 2, here.text() + there.text()
        assert [host.status() for host in (first, second, other, another)] == [Refused.status] * 2 + [
            HeldError.status
        ] * 2
    assert time.monotonic() - began < 100
    assert "host 1: hosts: got train.steps: 4 -> 5 (first host -> host 1)" in first.text()
    assert "error: hosts: got train.steps: 4 -> 5" in second.text()
    assert "host 1: workdir: got " in here.text() and "which is not the folder that the first host calls" in here.text()
    assert f"error: workdir: got {elsewhere} on host 1, which is not the folder" in there.text()
    assert not Path(elsewhere).exists()
    assert "in which another run is at work" in other.text() and "error: host 0: workdir: got" in another.text()


@pytest.mark.slow
def test_two_supervised_hosts_killed_at_random_lose_nothing(hosts, tiny_data, tmp_path, kills=20):
    """Either host, in a step or a save; in the end every bit is that of a run never killed."""
    config = tiny_config(tiny_data, DROPOUT, steps=40 * kills, checkpoint_every=5, max_to_keep=1)
    prepare(tiny_data, quiet=True)
    workdir, random = tmp_path / "killed", np.random.default_rng(kills)
    supervised = pair(hosts, config, workdir, 1, ("supervise", "--"))

    def trained_by(host: Host) -> list[psutil.Process]:
        """Its child; none while it waits to start one again."""
        return psutil.Process(host.process.pid).children()

    for kill in range(kills):
        wait_for(lambda: all(map(trained_by, supervised)))
        before, began, victim = latest(workdir), time.monotonic(), supervised[random.integers(2)]
        wait_for(lambda before=before: latest(workdir) > before)
        time.sleep(random.uniform(0, 1.0))
        wait_for(lambda victim=victim: trained_by(victim))
        saved, torn = latest(workdir), any(workdir.glob("checkpoints/*tmp*"))
        for process in trained_by(victim):
            process.kill()
        assert before < saved < config.train.steps
        print(f"kill {kill} after {time.monotonic() - began:.1f} s at step {saved}{', in a save' if torn else ''}")
    for host in supervised:
        host.process.join(60 * kills)
    assert [host.status() for host in supervised] == [0, 0], supervised[0].text()
    whole = pair(hosts, config, tmp_path / "whole", 1)
    assert [host.status() for host in whole] == [0, 0]
    assert_identical(saved_state(config, workdir), saved_state(config, tmp_path / "whole"))
    observed = [line for line in lines(workdir) if "loss" in line]
    assert [line["step"] for line in observed] == list(range(1, config.train.steps + 1))
    starts = [int(step) for step in re.findall(r"last checkpoint: step (\d+)", supervised[0].text())]
    assert starts == sorted(starts)


@pytest.mark.parametrize("chosen", ["coordinator", "option", "environment"])
def test_the_coordinator_listens_where_it_is_asked_to_and_nowhere_else(monkeypatch, chosen):
    asked, port = [], free_port()
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.append(options))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(connecting, "_check_count", lambda _: None)
    own, others = f"127.0.0.1:{port}", "198.51.100.7:8476"  # as others know it, behind an address translation
    if chosen == "environment":
        monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", own)
    listen = own if chosen == "option" else ""
    connect(Hosts(own if chosen == "coordinator" else others, count=2, index=0, listen=listen))
    assert [options["coordinator_bind_address"] for options in asked] == [own]


class Keeper:
    """What the coordination service keeps; time passes only where somebody waits."""

    def __init__(self) -> None:
        self.kept, self.now, self.later = {}, 0.0, {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite or key not in self.kept
        self.kept[key] = value

    def key_value_try_get(self, key: str) -> str:
        if key not in self.kept:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: Config key {key} not found.")
        return self.kept[key]

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        self.now += milliseconds / 1000
        for name, value in self.later.get(self.now, {}).items():
            self.kept[name] = value
        if key not in self.kept:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
        return self.kept[key]


@pytest.fixture
def keeper(monkeypatch):
    kept = Keeper()
    monkeypatch.setattr(exchange, "client", lambda: kept)
    monkeypatch.setattr(exchange.time, "monotonic", lambda: kept.now)
    monkeypatch.setattr(exchange, "_wait_seconds", 10)
    return kept


def test_hosts_that_are_missing_are_named_in_time(keeper):
    keeper.later = {3.0: {"key/1": "one"}}
    keeper.key_value_set("key/0", "zero")
    with pytest.raises(
        HostsError, match=r"waited 1[0-5] s for host 2, 3, expected it to reach the same point as host 0"
    ):
        exchange.wait_for("key", [0, 1, 2, 3])


def test_a_host_that_is_at_work_is_waited_for(keeper, monkeypatch):
    """For hours, as long as it says so; not for ever."""
    keeper.later = {float(second): {"alibi_jax/busy/0": str(second)} for second in range(1, 8000)}
    keeper.later[7000.0]["key/0"] = "done"
    assert exchange.wait_for("key", [0]) == ["done"] and keeper.now == 7000.0
    with pytest.raises(HostsError, match="for host 0"):
        exchange.wait_for("other", [0])
    assert 8000 <= keeper.now <= 8020
    keeper.now, keeper.later = 0.0, {float(second): {"alibi_jax/busy/0": str(second)} for second in range(10**5)}
    with pytest.raises(HostsError, match="waited 86401 s for host 0"):
        exchange.wait_for("other", [0])


def test_a_first_host_that_is_gone_is_said(keeper, monkeypatch):
    def gone(_: str) -> str:
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed\nand more")

    keeper.key_value_try_get = gone
    with pytest.raises(HostsError, match=r"lost the first host \(UNAVAILABLE: Socket closed\)"):
        exchange.wait_for("key", [0])


def test_hosts_that_do_not_come_are_missed_in_time(hosts, tiny_data, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(to_json(tiny_config(tiny_data)))
    flags = ["--hosts.coordinator", f"127.0.0.1:{free_port()}", "--hosts.count", "2", "--hosts.index", "0"]
    arguments = ["train", str(path), "--workdir", str(tmp_path / "run"), *flags, "--hosts.timeout-seconds", "2"]
    host = hosts(arguments, 1, tmp_path / "said")
    assert host.status() == Failed.status
    assert "waited 2 s as process 0, expected 2 processes" in host.text() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({"count": 2}, {}, "hosts.coordinator: got none for process -1 of 2"),
        ({}, {"count": "4", "index": "2"}, "hosts.coordinator: got none for process 2 of 4"),
        ({"coordinator": "here"}, {}, "hosts.coordinator: got 'here', expected address:port"),
        (
            {"coordinator": "here:1", "count": 2, "index": 0, "listen": "x"},
            {},
            "hosts.listen: got 'x', expected address",
        ),
        ({"coordinator": "here:1", "count": 2, "index": 0}, {"listen": ":"}, "hosts.listen: got ':', expected address"),
        ({"index": 0}, {"coordinator": "here:1", "count": "²"}, "got '²', expected a number of at least 1"),
        ({"index": 0}, {"coordinator": "here:1", "count": "9" * 5000}, "expected a number of at least 1"),
        ({"discover": True, "listen": "here"}, {}, "hosts.listen: got 'here', expected address:port"),
        ({"wait_seconds": 1}, {}, "hosts.wait_seconds: got 1, expected 5 to"),
        ({"coordinator": "here:1", "count": 2}, {}, r"hosts.index \(or JAX_PROCESS_ID\): got '', expected a number"),
        ({"index": 2}, {"coordinator": "here:1", "count": "2"}, "hosts.index: got 2, expected 0 to 1"),
        ({"index": 0}, {"coordinator": "here:1", "count": "two"}, "got 'two', expected a number of at least 1"),
        ({"coordinator": "here:1", "discover": True}, {}, "hosts.discover: got it with coordinator 'here:1'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(monkeypatch, options, environment, message):
    for name, variable in ENVIRONMENT.items():
        monkeypatch.delenv(variable, raising=False)
        if name in environment:
            monkeypatch.setenv(variable, environment[name])
    with pytest.raises(ConfigError, match=message):
        connect(Hosts(**options))
