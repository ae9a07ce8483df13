"""Several hosts as one computer: finding one another, taking turns with files, and stopping at the same step."""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from jax._src import distributed
from jax.sharding import Mesh

from alibi_jax.checks import ConfigError, Section, require
from alibi_jax.sharding import of_any_host
from alibi_jax.workdir import HeldError

LONGEST_WAIT = 24 * 3600 * 1000  # milliseconds one host waits for another that is at work, such as preparing a corpus
PROBE_SECONDS = 0.5  # between two attempts to reach the first host
ENVIRONMENT = {"coordinator": "JAX_COORDINATOR_ADDRESS", "count": "JAX_NUM_PROCESSES", "index": "JAX_PROCESS_ID"}


class HostsError(RuntimeError):
    """Hosts that did not find one another; nothing was begun."""


@dataclasses.dataclass(frozen=True)
class Hosts(Section):
    """One process of a run on several hosts: by options, or by the environment (JAX_COORDINATOR_ADDRESS, ...)."""

    section: ClassVar[str] = "hosts"

    coordinator: str = ""  # address:port of the first host; empty: JAX_COORDINATOR_ADDRESS, or a run on one host
    count: int = 0  # processes of the run, one a host; 0: JAX_NUM_PROCESSES
    index: int = -1  # of this process, 0 to count - 1; -1: JAX_PROCESS_ID
    discover: bool = False  # ask TPU metadata, Slurm, Open MPI or Kubernetes for all three
    timeout_seconds: int = 300  # for all hosts to come
    heartbeat_seconds: int = 60  # a host that is silent for so long is lost

    def check(self) -> None:
        named = bool(self.coordinator), self.count > 0, self.index >= 0
        require(
            not (self.discover and any(named)),
            "hosts.discover",
            f"it with coordinator {self.coordinator!r}, count {self.count}, index {self.index}",
            "either to be told where the hosts are or to find out",
            "Leave one out.",
        )


def _number(name: str, given: int, least: int) -> int:
    """A number as given or, below `least`, from the environment."""
    text = str(given) if given >= least else os.environ.get(ENVIRONMENT[name], "")
    what = f"hosts.{name} (or {ENVIRONMENT[name]})"
    require(text.isdigit(), what, repr(text), f"a number from {least} on", f"Pass --hosts.{name}.")
    return int(text)


def _resolved(hosts: Hosts) -> Hosts | None:
    """With what the environment says; None for a run on one host."""
    address = hosts.coordinator or os.environ.get(ENVIRONMENT["coordinator"], "")
    if not address:
        count, index = (os.environ.get(ENVIRONMENT[name], "") for name in ("count", "index"))
        alone = hosts.count < 2 and hosts.index < 1 and count in ("", "1") and index in ("", "0")
        require(
            alone,
            "hosts.coordinator",
            f"none for process {index or hosts.index} of {count or hosts.count}",
            "the address:port of the first host's process",
            "Pass --hosts.coordinator, or set JAX_COORDINATOR_ADDRESS.",
        )
        return None
    name, _, port = address.rpartition(":")
    require(bool(name) and port.isdigit(), "hosts.coordinator", repr(address), "address:port", "Name both.")
    count, index = _number("count", hosts.count, 1), _number("index", hosts.index, 0)
    require(index < count, "hosts.index", index, f"0 to {count - 1}, of {count} processes", "Correct one of them.")
    return dataclasses.replace(hosts, coordinator=address, count=count, index=index)


def _reach_coordinator(hosts: Hosts) -> None:
    """Waits until the first host listens, for jax would end the process without a word that helps."""
    name, _, port = hosts.coordinator.rpartition(":")
    deadline = time.monotonic() + hosts.timeout_seconds
    while True:
        try:
            socket.create_connection((name.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise HostsError(
                    f"hosts: got no answer from the coordinator at {hosts.coordinator} in {hosts.timeout_seconds} s ({error}), "
                    "expected process 0 of the run to listen there. Start it, or correct the address; is the port open?"
                ) from error
        time.sleep(PROBE_SECONDS)


def _give_up(hosts: Hosts) -> None:
    """Ends the process where not all came: the wait is in C++, and no exception gets through."""
    print(
        f"error: hosts: waited {hosts.timeout_seconds} s as process {hosts.index}, expected {hosts.count or 'all'} processes "
        f"to come to {hosts.coordinator or 'the coordinator'}. Start those that are missing, then run the command again.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def connect(hosts: Hosts) -> None:
    """Joins the processes of a run; before JAX is first used. Nothing is done for a run on one host.

    ConfigError for numbers that do not fit; HostsError where the coordinator cannot be reached in time. Where other processes
    do not come in time, this one ends with a message.
    """
    found = hosts if hosts.discover else _resolved(hosts)
    if found is None or found.count == 1:
        return
    if found.index > 0:
        _reach_coordinator(found)
    # its service would take SIGTERM for itself until training begins
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(found.timeout_seconds, _give_up, [found])
    timer.daemon = True
    timer.start()
    told = {} if found.discover else {"coordinator_address": found.coordinator, "num_processes": found.count}
    try:
        jax.distributed.initialize(
            **told,
            process_id=None if found.discover else found.index,
            initialization_timeout=found.timeout_seconds + 60,  # the timer comes first, with a message
            heartbeat_timeout_seconds=found.heartbeat_seconds,
            shutdown_timeout_seconds=found.heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise HostsError(
            f"hosts: got {error}, expected {hosts}. Is the coordinator's port free, and is there a cluster to discover?"
        ) from error
    finally:
        timer.cancel()
    if not is_first():
        logging.getLogger("alibi_jax").setLevel(logging.WARNING)


def is_first() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def several() -> bool:
    """Whether this process is one of several of a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _client() -> Any:
    """Through it processes tell each other things beside their devices' work, and wait as long as they like (a collective on
    CPUs gives up after 30 seconds). jax has no public name for it; Orbax uses this one, too."""
    return distributed.global_state.client


_rounds = itertools.count()  # of questions put to all hosts, which all come to in the same order


def from_first_host(value: str) -> str:
    """The first host's value, on all of them."""
    if not several():
        return value
    key = f"alibi_jax/{next(_rounds)}"
    if jax.process_index() == 0:
        _client().key_value_set(key, value)
    return _client().blocking_key_value_get(key, LONGEST_WAIT)


def _verdicts(key: str, said: str) -> list[str]:
    """What each host says, on all of them. The first, which keeps what is said, stays until all have heard it."""
    client, count, index = _client(), jax.process_count(), jax.process_index()
    client.key_value_set(f"{key}/{index}", said)
    heard = [client.blocking_key_value_get(f"{key}/{i}", LONGEST_WAIT) for i in range(count)]
    client.wait_at_barrier(f"{key}/heard", LONGEST_WAIT)
    return heard


KINDS = {"refused": ConfigError, "held": HeldError, "failed": HostsError}  # what an error of one host is on the others


def _kind(error: BaseException) -> str:
    return "refused" if isinstance(error, ValueError) else "held" if isinstance(error, HeldError) else "failed"


@contextlib.contextmanager
def first_host_first() -> Iterator[None]:
    """The first host does what is inside before the others do: it writes, they find it written.

    An error of any host is raised on all: bad input as ConfigError, a folder that another run holds as HeldError, anything
    else as HostsError. Without this the others would wait for it in their next collective.
    """
    if not several():
        yield
        return
    key, error = f"alibi_jax/{next(_rounds)}", None
    first = _client().blocking_key_value_get(f"{key}/0", LONGEST_WAIT) if jax.process_index() > 0 else ""
    try:
        if not first:
            yield
    except BaseException as raised:  # also SystemExit: whatever ends this host has to end the others
        error = raised
    own = "" if error is None else json.dumps([_kind(error), str(error) or type(error).__name__])
    heard = _verdicts(key, own)
    if error is not None:
        raise error
    for i, said in enumerate(heard):
        if said:
            kind, message = json.loads(said)
            raise KINDS[kind](f"host {i}: {message}")


class Agreement:
    """Whether any host was asked to stop, as all of them see it at the same step: a step after it was asked."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.asked = mesh, None

    def __call__(self, names: list[str]) -> list[str]:
        """What this host's signals are called; on several hosts those of the step before, another's too."""
        if not several():
            return list(names)
        asked, self.asked = self.asked, of_any_host(bool(names), self.mesh)
        if asked is None or not bool(asked):
            return []
        return list(names) or ["a signal to another host"]
