"""What the hosts of a run tell one another: values, whose turn it is, errors, and a request to stop."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from alibi_jax.errors import ConfigError, HeldError, HostsError
from alibi_jax.run.hosts import Hosts, several
from alibi_jax.sharding import of_any_host

LONGEST_WORK = 24 * 3600  # seconds one host waits for another that is busy, such as preparing a corpus
BEAT_SECONDS = 1.0  # between two signs that a host is busy

_wait_seconds = Hosts.wait_seconds  # hosts.wait_seconds of this process
_rounds = itertools.count()  # of exchanges, which all hosts enter in the same order
_beats = itertools.count()  # signs of life of this host


def wait_at_most(seconds: float) -> None:
    """Sets how long this process waits for another host that is not busy."""
    global _wait_seconds
    _wait_seconds = seconds


def client() -> Any:
    """Returns the client of JAX's key-value store, through which processes exchange text beside their devices' work, and wait
    as long as they like (a collective on CPUs gives up after 30 seconds)."""
    # A private name, because JAX has no public one; Orbax uses it too. Imported here: without it a run on one host goes on as
    # ever, and one of several hosts ends with an ImportError at its first agreement, before it trains.
    from jax._src import distributed

    return distributed.global_state.client


def _value(key: str) -> str | None:
    """Returns the value of a key now, None if it has none; HostsError where the first host is lost."""
    try:
        return client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise HostsError(_lost(error)) from error
        return None


def _lost(error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return f"hosts: lost the first host ({reason}), which keeps what all agree on, expected it to run. Restart all of them."


def wait_for(key: str, hosts: list[int]) -> list[str]:
    """Returns the values that these hosts set for key/INDEX, and waits until they have.

    A busy host is waited for LONGEST_WORK, any other hosts.wait_seconds; then HostsError names those that are missing.
    """
    idle, busy, signs = 0.0, 0.0, {}
    while missing := [host for host in hosts if _value(f"{key}/{host}") is None]:
        began = time.monotonic()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # a timeout; _value raises what else it may be
            client().blocking_key_value_get(f"{key}/{missing[0]}", 1000)
        passed = min(time.monotonic() - began, 2.0)  # no more of it if this machine was suspended
        now = {host: _value(f"alibi_jax/busy/{host}") for host in missing}
        idle, busy = (idle + passed if now == signs else 0.0), busy + passed
        signs = now
        if idle > _wait_seconds or busy > LONGEST_WORK:
            raise HostsError(
                f"hosts: waited {busy:.0f} s for host {', '.join(map(str, missing))}, expected it to reach the "
                f"same point as host {jax.process_index()}. Find out what it waits for, then restart all of them. "
                "(--hosts.wait-seconds is how long a host waits for another that is not busy.)"
            )
    return [_value(f"{key}/{host}") for host in hosts]


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Shows the others during the block, which may take hours, that this host is busy."""
    ended, store, key = threading.Event(), client(), f"alibi_jax/busy/{jax.process_index()}"

    def beat() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first host is lost: JAX ends this process
            while True:
                store.key_value_set(key, str(next(_beats)), allow_overwrite=True)
                if ended.wait(BEAT_SECONDS):
                    return

    thread = threading.Thread(target=beat, name="busy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def from_first_host(value: str) -> str:
    """Returns the first host's value on all hosts."""
    if not several():
        return value
    key = f"alibi_jax/{next(_rounds)}"
    if jax.process_index() == 0:
        client().key_value_set(f"{key}/0", value)
    return wait_for(key, [0])[0]


def _verdicts(key: str, own: str) -> list[str]:
    """Returns every host's verdict on all hosts. The first, which keeps the store, waits until all have read them."""
    everyone = list(range(jax.process_count()))
    client().key_value_set(f"{key}/{jax.process_index()}", own)
    verdicts = wait_for(key, everyone)
    client().key_value_set(f"{key}/read/{jax.process_index()}", "yes")
    if jax.process_index() == 0:
        wait_for(f"{key}/read", everyone)
    return verdicts


KINDS = {
    "refused": ConfigError,
    "held": HeldError,
    "failed": HostsError,
}  # an error of one host as raised on the others


def _kind(error: BaseException) -> str:
    return "refused" if isinstance(error, ValueError) else "held" if isinstance(error, HeldError) else "failed"


@contextlib.contextmanager
def first_host_first() -> Iterator[None]:
    """Runs the block on the first host before it runs on the others: the first writes, the others read.

    An error of any host is raised on all: bad input as ConfigError, a folder that another run holds as HeldError, anything
    else as HostsError. Otherwise the others would wait for that host in their next collective.
    """
    if not several():
        yield
        return
    key, error = f"alibi_jax/{next(_rounds)}", None
    first = wait_for(key, [0])[0] if jax.process_index() > 0 else ""
    try:
        if not first:
            with _busy():
                yield
    except BaseException as raised:  # SystemExit and Ctrl-C too: whatever ends this host has to end the others
        error = raised
    own = "" if error is None else json.dumps([_kind(error), str(error) or type(error).__name__])
    verdicts = _verdicts(key, own)
    if error is not None:
        raise error
    for i, verdict in enumerate(verdicts):
        if verdict:
            kind, message = json.loads(verdict)
            raise KINDS[kind](f"host {i}: {message}")


class Agreement:
    """Whether any host was asked to stop, as seen by all hosts at the same step, one after the request."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.asked = mesh, None

    def __call__(self, names: list[str]) -> list[str]:
        """Returns the names of this host's signals or, on several hosts, of any host's before the previous step."""
        if not several():
            return list(names)
        asked, self.asked = self.asked, of_any_host(bool(names), self.mesh)
        if asked is None or not bool(asked):
            return []
        return list(names) or ["a signal to another host"]
