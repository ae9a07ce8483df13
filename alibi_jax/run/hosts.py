"""Several hosts as one computer: finding one another, taking turns with files, and stopping at the same step."""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh

from alibi_jax.config.checks import Section
from alibi_jax.errors import ConfigError, Failed, HeldError, HostsError, Refused, require
from alibi_jax.run.coordinator import check_can_listen, parse_address, reach
from alibi_jax.sharding import of_any_host

LONGEST_WORK = 24 * 3600  # seconds one host waits for another that is at work, such as preparing a corpus
BEAT_SECONDS = 1.0  # between two signs that a host is at work
ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "count": "JAX_NUM_PROCESSES",
    "index": "JAX_PROCESS_ID",
    "listen": "JAX_COORDINATOR_BIND_ADDRESS",
}


@dataclasses.dataclass(frozen=True)
class Hosts(Section):
    """This process among those of a run on several hosts, by options or by environment variables."""

    section: ClassVar[str] = "hosts"

    coordinator: str = ""  # address:port of process 0; empty: JAX_COORDINATOR_ADDRESS, or a run on one host
    count: int = 0  # processes of the run, one per host; 0: JAX_NUM_PROCESSES
    index: int = -1  # index of this process, 0 to count - 1; -1: JAX_PROCESS_ID
    listen: str = ""  # address:port where process 0 listens; empty: JAX_COORDINATOR_BIND_ADDRESS, or coordinator
    discover: bool = False  # get coordinator, count and index from TPU metadata, Slurm, Open MPI or Kubernetes
    timeout_seconds: int = 300  # time for all processes to connect
    heartbeat_seconds: int = 60  # a process without a sign of life for this long is lost
    wait_seconds: int = 600  # time to wait for another host that is not busy, as with preparing a corpus

    def check(self) -> None:
        if self.listen:
            parse_address(self.listen, "hosts.listen")
        named = bool(self.coordinator), self.count > 0, self.index >= 0
        require(
            not (self.discover and any(named)),
            "hosts.discover",
            f"it with coordinator {self.coordinator!r}, count {self.count}, index {self.index}",
            "either discovery or addresses and numbers",
            "Leave one out.",
        )


def _number(name: str, own: int, least: int) -> int:
    """A number as it was passed or, below `least`, from the environment."""
    text = str(own) if own >= least else os.environ.get(ENVIRONMENT[name], "")
    what = f"hosts.{name} (or {ENVIRONMENT[name]})"
    whole = text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least
    require(whole, what, repr(text), f"a number from {least} on", f"Pass --hosts.{name}.")
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
    parse_address(address, "hosts.coordinator")
    count, index = _number("count", hosts.count, 1), _number("index", hosts.index, 0)
    require(index < count, "hosts.index", index, f"0 to {count - 1}, of {count} processes", "Correct one of them.")
    listen = hosts.listen or os.environ.get(ENVIRONMENT["listen"], "") or address
    parse_address(listen, "hosts.listen")
    return dataclasses.replace(hosts, coordinator=address, count=count, index=index, listen=listen)


def _end(message: str, status: int) -> None:
    """Ends the process where no exception gets through: JAX waits in C++, or would wait when Python ends."""
    print(f"error: hosts: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def _give_up(hosts: Hosts) -> None:
    _end(
        f"waited {hosts.timeout_seconds} s as process {hosts.index}, expected {hosts.count or 'all'} processes to come to "
        f"{hosts.coordinator or 'the coordinator'}. Start those that are missing, then run the command again.",
        Failed.status,
    )


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """The process, at once: what is inside is C++, where Python's own handler would have to wait."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def connect(hosts: Hosts) -> None:
    """Joins the processes of a run; before JAX is first used. Nothing is done for a run on one host.

    Process 0 listens at hosts.listen, or the coordinator's address, and nowhere else; found by `discover`, on every network
    of the machine. ConfigError for numbers that do not fit; HostsError where the coordinator cannot be reached in time, or
    process 0 cannot listen. Where other processes do not come in time, this one ends with a message.
    """
    joined = hosts if hosts.discover else _resolved(hosts)
    if joined is None or joined.count == 1:
        return
    if joined.index > 0:
        reach(parse_address(joined.coordinator, "hosts.coordinator"), joined.timeout_seconds)
    elif joined.index == 0:  # not known to one that is to be discovered
        check_can_listen(parse_address(joined.listen, "hosts.listen"), joined.timeout_seconds)
    timer = threading.Timer(joined.timeout_seconds, _give_up, [joined])
    timer.daemon = True
    timer.start()
    try:
        with _ended_by_ctrl_c():
            _initialize(joined)
    finally:
        timer.cancel()
    global _wait_seconds
    _wait_seconds = joined.wait_seconds
    if not joined.discover:
        _check_count(joined)
    if not is_first():
        logging.getLogger("alibi_jax").setLevel(logging.WARNING)


def _initialize(hosts: Hosts) -> None:
    # its service would take SIGTERM for itself until training begins
    jax.config.update("jax_enable_preemption_service", False)
    addresses = {} if hosts.discover else {"coordinator_address": hosts.coordinator, "num_processes": hosts.count}
    try:
        jax.distributed.initialize(
            **addresses,
            process_id=None if hosts.discover else hosts.index,
            coordinator_bind_address=hosts.listen or None,
            initialization_timeout=hosts.timeout_seconds + 60,  # the timer comes first, with a message
            heartbeat_timeout_seconds=hosts.heartbeat_seconds,
            shutdown_timeout_seconds=hosts.heartbeat_seconds,
        )
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError) as error:
        raise HostsError(
            f"hosts: got {str(error).partition(' [')[0]}, expected {hosts}. Is every index there once, of as many processes as "
            "hosts.count says, and is there a cluster to discover?"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def several() -> bool:
    """Whether this process is one of several of a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _client() -> Any:
    """Returns the client of jax's key-value store, through which processes exchange text beside their devices' work, and wait
    as long as they like (a collective on CPUs gives up after 30 seconds)."""
    # A private name, because jax has no public one; Orbax uses it too. Imported here: without it a run on one host goes on as
    # ever, and one of several hosts ends with an ImportError at its first agreement, before it trains.
    from jax._src import distributed

    return distributed.global_state.client


_wait_seconds = Hosts.wait_seconds  # of this process, as `connect` was asked
_rounds = itertools.count()  # of questions put to all hosts, which all come to in the same order
_beats = itertools.count()


def _value(key: str) -> str | None:
    """What a key holds now; None if nothing."""
    try:
        return _client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise HostsError(_lost(error)) from error
        return None


def _lost(error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return f"hosts: lost the first host ({reason}), which keeps what all agree on, expected it to be there. Start all again."


def _wait_for(key: str, hosts: list[int]) -> list[str]:
    """The values that these hosts give to key/INDEX. A host that is at work is waited for LONGEST_WORK, any other
    hosts.wait_seconds; then HostsError, with the names of those that are missing."""
    idle, busy, signs = 0.0, 0.0, {}
    while missing := [host for host in hosts if _value(f"{key}/{host}") is None]:
        began = time.monotonic()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # not in this time; the next look says what else it is
            _client().blocking_key_value_get(f"{key}/{missing[0]}", 1000)
        passed = min(time.monotonic() - began, 2.0)  # of a pause of this machine no more than this
        now = {host: _value(f"alibi_jax/at_work/{host}") for host in missing}
        idle, busy = (idle + passed if now == signs else 0.0), busy + passed
        signs = now
        if idle > _wait_seconds or busy > LONGEST_WORK:
            raise HostsError(
                f"hosts: waited {busy:.0f} s for host {', '.join(map(str, missing))}, expected it to come to where host "
                f"{jax.process_index()} is. Look what it waits for, then start all again. (--hosts.wait-seconds is how long a "
                "host waits for another that is not at work.)"
            )
    return [_value(f"{key}/{host}") for host in hosts]


@contextlib.contextmanager
def _at_work() -> Iterator[None]:
    """Lets the others see that this host is busy, which may take hours."""
    ended, client, key = threading.Event(), _client(), f"alibi_jax/at_work/{jax.process_index()}"

    def beat() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first host is gone: jax ends this process
            while True:
                client.key_value_set(key, str(next(_beats)), allow_overwrite=True)
                if ended.wait(BEAT_SECONDS):
                    return

    thread = threading.Thread(target=beat, name="at work", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _check_count(hosts: Hosts) -> None:
    """Ends all processes where they were started with different counts: each would wait for others."""
    client, key = _client(), "alibi_jax/count"
    client.key_value_set(f"{key}/{hosts.index}", str(hosts.count))
    first = int(_wait_for(key, [0])[0])
    counts = _wait_for(key, list(range(first))) if hosts.count == first else [str(first), str(hosts.count)]
    if len(set(counts)) > 1:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # all have read it, or had the time
            client.wait_at_barrier(f"{key}/read", 5000)
        _end(
            f"got hosts.count {' and '.join(sorted(set(counts)))} from processes of one run, expected the same of all. Start "
            "all again with the number of processes that there are.",
            Refused.status,
        )


def from_first_host(value: str) -> str:
    """The first host's value, on all of them."""
    if not several():
        return value
    key = f"alibi_jax/{next(_rounds)}"
    if jax.process_index() == 0:
        _client().key_value_set(f"{key}/0", value)
    return _wait_for(key, [0])[0]


def _verdicts(key: str, own: str) -> list[str]:
    """What each host says, on all of them. The first, which keeps what is said, stays until all have heard it."""
    client, everyone = _client(), list(range(jax.process_count()))
    client.key_value_set(f"{key}/{jax.process_index()}", own)
    heard = _wait_for(key, everyone)
    client.key_value_set(f"{key}/heard/{jax.process_index()}", "yes")
    if jax.process_index() == 0:
        _wait_for(f"{key}/heard", everyone)
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
    first = _wait_for(key, [0])[0] if jax.process_index() > 0 else ""
    try:
        if not first:
            with _at_work():
                yield
    except BaseException as raised:  # also SystemExit: whatever ends this host has to end the others
        error = raised
    own = "" if error is None else json.dumps([_kind(error), str(error) or type(error).__name__])
    heard = _verdicts(key, own)
    if error is not None:
        raise error
    for i, verdict in enumerate(heard):
        if verdict:
            kind, message = json.loads(verdict)
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
