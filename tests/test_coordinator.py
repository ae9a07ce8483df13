"""The coordinator's address is checked before JAX uses it."""

import socket
import time

import pytest

from alibi_jax.config import to_json
from alibi_jax.errors import CheckpointError, ConfigError, Failed, HostsError
from alibi_jax.run import coordinator
from alibi_jax.run.checkpoint import _Explained
from alibi_jax.run.coordinator import Address, check_can_listen, parse_address
from alibi_jax.run.parse import main
from runs import tiny_config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("here:1", Address("here", 1)),
        ("10.0.0.1:65535", Address("10.0.0.1", 65535)),
        ("[::1]:80", Address("::1", 80)),
        ("alibi-0.alibi:8476", Address("alibi-0.alibi", 8476)),
    ],
)
def test_address_is_read_and_written(text, expected):
    assert parse_address(text, "hosts.coordinator") == expected and str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":1",
            "here",
            "here:",
            "here:0",
            "here:65536",
            "here:99999",
            "here:-1",
            "here:1.5",
            "here:²",
            "here:http",
        ),
        *(
            "::1:80",
            "[::1:80",
            "[here]:80",
            "[]:80",
            "http://here:80",
            "he re:80",
            "user@here:80",
            "here:" + "1" * 5000,
        ),
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match=r"hosts.listen: got '.*', expected address:port with a port from 1 to 65535"):
        parse_address(text, "hosts.listen")


@pytest.fixture
def used():
    """A port of 127.0.0.1 at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_is_named_before_jax_is_asked(used, tiny_data, tmp_path, capsys):
    """JAX's own answer was SIGSEGV."""
    (tmp_path / "config.json").write_text(to_json(tiny_config(tiny_data)))
    command = ["train", str(tmp_path / "config.json"), "--workdir", str(tmp_path / "run"), "--hosts.count", "2"]
    options = ["--hosts.coordinator", f"127.0.0.1:{used}", "--hosts.index", "0"]
    assert main([*command, *options]) == Failed.status
    error = capsys.readouterr().err
    assert (
        f"hosts: got 127.0.0.1:{used} for the coordinator, expected an address where this process can listen" in error
    )
    assert "another program listens there already" in error and not (tmp_path / "run").exists()


def test_an_address_of_another_machine_is_named():
    with pytest.raises(HostsError, match=r"got 198.51.100.7:1234 .* no address of this machine.* pass --hosts.listen"):
        check_can_listen(Address("198.51.100.7", 1234), 1)


@pytest.mark.parametrize("name", ["nowhere.invalid", "a..b", "x" * 70])
def test_a_name_that_nobody_knows_is_waited_for_and_named(monkeypatch, caplog, name):
    def getaddrinfo(name: str, *_, **__):
        if name == "nowhere.invalid":  # as a resolver says it, without asking one
            raise socket.gaierror(-2, "Name or service not known")
        name.encode("idna")

    monkeypatch.setattr(coordinator.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(coordinator, "PROBE_SECONDS", 0.01)
    with pytest.raises(HostsError, match=r"no answer .* in 0.05 s .*expected a name that this machine can resolve"):
        check_can_listen(Address(name, 1234), 0.05)
    with pytest.raises(HostsError, match=r"no answer .* in 0.05 s .*expected process 0"):
        coordinator.reach(Address(name, 1234), 0.05)
    assert caplog.text.count("waiting for it") == 2


def test_what_can_listen_is_accepted_again_and_again(used):
    """A connection of an earlier run that is not quite over does not matter; every number of the name may be tried."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    check_can_listen(Address("127.0.0.1", port), 1)
    check_can_listen(Address("localhost", port), 1)
    with pytest.raises(HostsError):
        check_can_listen(Address("localhost", used), 1)


def test_a_name_that_only_this_machine_can_reach_is_said(monkeypatch, caplog):
    """As Debian has a machine's own name in /etc/hosts."""
    monkeypatch.setattr(Address, "places", lambda _: [(socket.AF_INET, ("127.0.0.1", 0))])
    check_can_listen(Address("myself", 1234), 1)
    assert "myself:1234 is 127.0.0.1 on this machine, which other machines cannot reach" in caplog.text
    caplog.clear()
    check_can_listen(Address("127.0.0.1", 1234), 1)
    assert not caplog.text


def test_a_coordinator_that_does_not_answer_is_named_in_time():
    with socket.socket() as closed:  # bound, so that nobody else takes it, and not listening
        closed.bind(("127.0.0.1", 0))
        began, port = time.monotonic(), closed.getsockname()[1]
        expected = rf"no answer from the coordinator at 127.0.0.1:{port} in 1 s .*expected process 0"
        with pytest.raises(HostsError, match=expected):
            coordinator.reach(Address("127.0.0.1", port), 1)
    assert time.monotonic() - began < 20


def test_a_host_that_a_save_waited_for_is_named(tmp_path):
    """JAX's message, as it is in a failed barrier of Orbax."""
    output = (
        "DEADLINE_EXCEEDED: Barrier timed out. Id: 50.save::0. This usually happens because a task triggered the barrier too "
        "early or too slowly.\n# of tasks that reached the barrier: 1/3.\nThe first task at the barrier: 0. Some timed out "
        "task names:\n1\n2\n [type.googleapis.com/tensorflow.CoordinationServiceError='']"
    )
    with (
        pytest.raises(HostsError, match="waited in vain for host 1, 2 to reach the same save"),
        _Explained("write", tmp_path),
    ):
        raise RuntimeError(output)
    with pytest.raises(CheckpointError, match="No space left"), _Explained("write", tmp_path):
        raise RuntimeError("No space left on device")
