"""The processes of a run on several hosts connect to one another before JAX is first used."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax

from alibi_jax.errors import Failed, HostsError, Refused
from alibi_jax.run import exchange
from alibi_jax.run.coordinator import check_can_listen, parse_address, reach
from alibi_jax.run.hosts import Hosts, is_first, resolved


def _end(message: str, status: int) -> None:
    """Ends the process with a message where an exception would not: JAX waits in C++, or would wait when Python ends."""
    print(f"error: hosts: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def _give_up(hosts: Hosts) -> None:
    """Ends the process because others did not connect in time."""
    _end(
        f"waited {hosts.timeout_seconds} s as process {hosts.index}, expected {hosts.count or 'all'} processes to connect to "
        f"{hosts.coordinator or 'the coordinator'}. Start those that are missing, then run the command again.",
        Failed.status,
    )


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Lets Ctrl-C end the process at once during the block, which is C++: Python's own handler would have to wait for it."""
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
    """Connects to the other processes of a run, before JAX is first used; does nothing for a run on one host.

    Process 0 listens at hosts.listen, or at the coordinator's address, and nowhere else; with hosts.discover, on every
    network of the machine. ConfigError for numbers that do not fit; HostsError where the coordinator cannot be reached in
    time, or process 0 cannot listen. Where other processes do not connect in time, this one ends with a message.
    """
    joined = hosts if hosts.discover else resolved(hosts)
    if joined is None or joined.count == 1:
        return
    if joined.index > 0:
        reach(parse_address(joined.coordinator, "hosts.coordinator"), joined.timeout_seconds)
    elif joined.index == 0:  # unknown, -1, with discovery
        check_can_listen(parse_address(joined.listen, "hosts.listen"), joined.timeout_seconds)
    timer = threading.Timer(joined.timeout_seconds, _give_up, [joined])
    timer.daemon = True
    timer.start()
    try:
        with _ended_by_ctrl_c():
            _initialize(joined)
    finally:
        timer.cancel()
    exchange.wait_at_most(joined.wait_seconds)
    if not joined.discover:
        _check_count(joined)
    if not is_first():
        logging.getLogger("alibi_jax").setLevel(logging.WARNING)


def _initialize(hosts: Hosts) -> None:
    # JAX's service would handle SIGTERM itself until training begins
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
            f"hosts: got {str(error).partition(' [')[0]}, expected {hosts}. Check that every index "
            "below hosts.count is used once and, for discovery, that there is a cluster."
        ) from error


def _check_count(hosts: Hosts) -> None:
    """Ends all processes if they were started with different counts: each would wait for others."""
    client, key = exchange.client(), "alibi_jax/count"
    client.key_value_set(f"{key}/{hosts.index}", str(hosts.count))
    first = int(exchange.wait_for(key, [0])[0])
    counts = exchange.wait_for(key, list(range(first))) if hosts.count == first else [str(first), str(hosts.count)]
    if len(set(counts)) > 1:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # until all have read the counts, or 5 s
            client.wait_at_barrier(f"{key}/read", 5000)
        _end(
            f"got hosts.count {' and '.join(sorted(set(counts)))} from processes of one run, expected the same count. "
            "Restart all of them with the number of processes that there are.",
            Refused.status,
        )
