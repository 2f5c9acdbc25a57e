"""How many connections are open, in all and from one address, and which of them give way."""

from __future__ import annotations

import ipaddress
import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from app.addresses import client_network, read_address

_log = logging.getLogger(__name__)

WANTED_FILES = 65_536
"""Open files that a server asks for; the system's hard limit may allow fewer."""

_RESERVED_FILES = 256
"""Open files that are left for the catalog, the store, Redis and the model."""

_BACKLOG = 1024
"""Connections that may wait to be accepted; the loop accepts all of them before any is ended."""

_LOG_EVERY_S = 60.0


class Connection(Protocol):
    """A client's connection."""

    def shed(self) -> None:
        """End at once; its descriptor is free when this returns."""


@dataclass(slots=True)
class _Client:
    """One address's connections: how many, and the idle ones, the longest idle first."""

    count: int = 0
    idle: dict[Connection, None] = field(default_factory=dict)


class Connections:
    """Bounds the open connections: `most` in all, `most_per_client` from one address.

    An IPv6 client is its /64. `proxies`, addresses and networks by commas, are bound by `most`
    alone, since many clients stand behind each. At a bound, the connection that has been idle for
    longest is closed for the new one. A connection with a running request is never closed for
    another. `backlog` is how many may wait to be accepted. For the event loop's thread alone.
    """

    def __init__(
        self,
        most: int,
        most_per_client: int,
        proxies: str | None = None,
        *,
        backlog: int = _BACKLOG,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.backlog = backlog
        self._most, self._most_per_client, self._clock = most, most_per_client, clock
        parts = (part.strip() for part in (proxies or "").split(","))
        self._proxies = [ipaddress.ip_network(part) for part in parts if part]
        self._open: dict[Connection, str | None] = {}
        self._idle: dict[Connection, None] = {}
        self._clients: dict[str, _Client] = {}
        self._logged_at = -_LOG_EVERY_S

    @property
    def count(self) -> int:
        return len(self._open)

    def debug_state(self) -> dict[str, int]:
        """Connections that are open and that are idle, and their addresses."""
        return {"open": len(self._open), "idle": len(self._idle), "addresses": len(self._clients)}

    def admit(self, connection: Connection, peer: str | None) -> bool:
        """Count a new connection from the socket's `peer`, as idle; False if there is no room."""
        name = self._client(peer)
        known = self._clients.get(name) if name is not None else None
        if known and known.count >= self._most_per_client and not self._shed(known.idle):
            self._say(f"all {known.count} connections of one address are busy")
            return False
        if len(self._open) >= self._most and not self._shed(self._idle):
            self._say(f"all {len(self._open)} connections are busy")
            return False
        self._open[connection] = name
        if name is not None:
            self._clients.setdefault(name, _Client()).count += 1
        self.rest(connection)
        return True

    def rest(self, connection: Connection) -> None:
        """The connection has no request that runs: it may be closed for another."""
        if connection not in self._open:
            return
        self._idle[connection] = None
        client = self._client_of(connection)
        if client is not None:
            client.idle[connection] = None

    def work(self, connection: Connection) -> None:
        """A request of the connection runs."""
        self._idle.pop(connection, None)
        client = self._client_of(connection)
        if client is not None:
            client.idle.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """The connection has ended; once more does nothing."""
        self.work(connection)
        name = self._open.pop(connection, None)
        if name is not None:
            client = self._clients[name]
            client.count -= 1
            if client.count == 0:
                del self._clients[name]

    def _client(self, peer: str | None) -> str | None:
        """What a peer is counted under; None for a proxy, or no network at all."""
        address = read_address(peer)
        if address is None or any(address in proxy for proxy in self._proxies):
            return None
        return client_network(str(address))

    def _client_of(self, connection: Connection) -> _Client | None:
        name = self._open.get(connection)
        return None if name is None else self._clients[name]

    def _shed(self, idle: dict[Connection, None]) -> bool:
        """Close the connection that has been idle for longest; False if none is idle."""
        oldest = next(iter(idle), None)
        if oldest is None:
            return False
        self._say(f"{len(self._open)} connections are open, and idle ones are closed for new ones")
        self.forget(oldest)
        oldest.shed()
        return True

    def _say(self, what: str) -> None:
        """Log it, once in a while."""
        now = self._clock()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            _log.warning("too many connections: %s", what)


def connections_within(most: int, most_per_client: int, proxies: str | None = None) -> Connections:
    """Connections that leave enough of the process's open files for everything else.

    Raises the soft limit of open files towards the hard one first, and says what came of it.
    """
    before, now = _raise_file_limit()
    backlog = min(_BACKLOG, max(8, now // 8))
    # what was accepted in one turn of the loop is ended in the next, when as many may have come
    left = now - min(_RESERVED_FILES, now // 4) - 2 * backlog
    allowed = max(1, min(most, left))
    _log.info("up to %d connections; up to %d open files (limit was %d)", allowed, now, before)
    return Connections(allowed, min(most_per_client, allowed), proxies, backlog=backlog)


def _raise_file_limit() -> tuple[int, int]:
    """The soft limit of open files, before and after it was raised."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = WANTED_FILES if hard == unlimited else min(WANTED_FILES, hard)
    if before == unlimited or before >= wanted:
        return wanted, wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:  # some systems allow less than their hard limit
        _log.warning("the limit of open files stays at %d: %s", before, error)
        return before, before
    return before, wanted
