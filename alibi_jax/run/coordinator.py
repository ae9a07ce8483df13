"""The address at which the hosts of a run connect, checked before JAX uses it: JAX would wait, or end without a reason."""

import errno
import logging
import re
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from alibi_jax.errors import HostsError, require

PROBE_SECONDS = 0.5  # between two attempts
LARGEST_PORT = 65535
REFUSALS = {
    errno.EADDRINUSE: "another program listens there already, maybe an earlier run. Stop it, or choose another port",
    errno.EADDRNOTAVAIL: "that is no address of this machine, and process 0 has to run where it is. Correct the address or "
    "the index; behind an address translation pass --hosts.listen with the machine's own",
    errno.EACCES: "this user may not listen there. Choose a port above 1023",
}

logger = logging.getLogger("alibi_jax")


def missing_at_barrier(text: str) -> HostsError | None:
    """Returns the error of a save that waited for a host in vain, from JAX's message; None for any other message."""
    if "Barrier timed out" not in text:
        return None
    names = re.search(r"timed out task names:([\d\s,]*)", text)
    missing = ", ".join(re.findall(r"\d+", names[1])) if names else ""
    return HostsError(
        f"hosts: waited in vain for host {missing or '(not named)'} to reach the same save, expected all hosts to. Find out "
        "what it waits for, then restart all of them: the run resumes from its last checkpoint."
    )


class Address(NamedTuple):
    """A host's name or number, without the brackets of IPv6, and a port."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"

    def places(self) -> list[tuple]:
        """Returns (family, socket address) of each address that the name resolves to; OSError where there is none."""
        try:
            addresses = socket.getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
        except UnicodeError as error:  # a label that is empty or too long
            raise OSError(f"no name of a host: {error}") from error
        return [(family, place) for family, _, _, _, place in addresses]


def parse_address(text: str, field: str) -> Address:
    """Returns the address of "host:1234" or "[::1]:1234"; ConfigError for anything else."""
    name, _, port = text.rpartition(":")
    bracketed = name.startswith("[") and name.endswith("]") and ":" in name
    name = name[1:-1] if bracketed else name
    plain = bool(name) and not set(name) & set("[]/@ \t") and (bracketed or ":" not in name)
    numbered = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= LARGEST_PORT
    expected = f"address:port with a port from 1 to {LARGEST_PORT}, an IPv6 address in brackets"
    require(plain and numbered, field, repr(text), expected, "Such as 10.0.0.1:1234 or [fd00::1]:1234.")
    return Address(name, int(port))


def _patiently(attempt: Callable[[], Any], seconds: float, address: Address, expected: str) -> Any:
    """Returns attempt(), repeated for so many seconds while it raises OSError; logs the first failure, raises the last."""
    deadline, waits = time.monotonic() + seconds, False
    while True:
        try:
            return attempt()
        except OSError as error:
            if time.monotonic() > deadline:
                raise HostsError(
                    f"hosts: got no answer from the coordinator at {address} in {seconds} s ({error}), expected {expected}. "
                    "Start it, or correct the address; is the port open?"
                ) from error
            if not waits:
                logger.warning("hosts: no answer from %s yet (%s); waiting for it, up to %s s", address, error, seconds)
            waits = True
        time.sleep(PROBE_SECONDS)


def reach(address: Address, seconds: float) -> None:
    """Waits until the first host listens; HostsError if it does not in time."""

    def connect() -> None:
        address.places()  # with an error of ours for what is no name
        socket.create_connection(address, timeout=5).close()

    _patiently(connect, seconds, address, "process 0 of the run to listen there")


def check_can_listen(address: Address, seconds: float) -> None:
    """Raises HostsError where this machine cannot listen at the address; the name of a new pod may take a while to resolve."""
    places = _patiently(address.places, seconds, address, "a name that this machine can resolve")
    refused = [error for family, place in places if (error := _refusal(family, place)) is not None]
    used = [error for error in refused if error.errno == errno.EADDRINUSE]
    if used or len(refused) == len(places):  # a name may have a number of a family that this machine does not use
        error = (used or refused)[0]
        raise HostsError(
            f"hosts: got {address} for the coordinator, expected an address where this process can listen: "
            f"{REFUSALS.get(error.errno, error.strerror)}."
        ) from error
    if address.name != "localhost" and all(_only_here(place) and place[0] != address.name for _, place in places):
        logger.warning(
            "hosts: %s is %s on this machine, which other machines cannot reach: if there are any, pass --hosts.listen with "
            "the number they know it by",
            address,
            places[0][1][0],
        )


def _only_here(place: tuple) -> bool:
    return place[0].startswith("127.") or place[0] == "::1"


def _refusal(family: int, place: tuple) -> OSError | None:
    """Returns why nothing can listen there, None if something can."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run do not matter
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(place)
            probe.listen()
    except OSError as error:
        return error
    return None
