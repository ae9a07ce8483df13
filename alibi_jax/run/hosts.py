"""The processes of a run on several hosts: how each is numbered, and which of them this one is."""

import dataclasses
import os
from typing import ClassVar

import jax

from alibi_jax.config.checks import Section
from alibi_jax.errors import require
from alibi_jax.run.coordinator import parse_address

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
        """Raises ConfigError for an address that is none, or for discovery beside explicit numbers."""
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
    """Returns a number as it was passed or, where that is below `least`, from the environment; ConfigError without one."""
    text = str(own) if own >= least else os.environ.get(ENVIRONMENT[name], "")
    what = f"hosts.{name} (or {ENVIRONMENT[name]})"
    whole = text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least
    require(whole, what, repr(text), f"a number of at least {least}", f"Pass --hosts.{name}.")
    return int(text)


def resolved(hosts: Hosts) -> Hosts | None:
    """Returns the options completed from the environment, None for a run on one host; ConfigError where they do not fit."""
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


def is_first() -> bool:
    """Returns whether this process is the one that prints and writes for all."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def several() -> bool:
    """Returns whether this process is one of several in a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1
