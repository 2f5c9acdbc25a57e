"""How often each address has failed to authenticate lately, so that guessing is slowed down.

Bounded; an address that is forgotten begins anew.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from app.addresses import client_network
from app.errors import RateLimited

_MINUTE = 60.0


class FailedAttempts:
    """A leaking bucket of failures per address. Thread-safe.

    IPv6 addresses count by their /64, of which everybody has a whole one.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        addresses: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_minute` failures are let pass at once and then in every minute."""
        self._limit = float(per_minute)
        self._rate = per_minute / _MINUTE
        self._addresses = addresses
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, peer: str) -> None:
        """RateLimited if the address has no failure left."""
        with self._lock:
            self._refuse_above(self._level(client_network(peer)), self._limit - 1)

    def count(self, peer: str) -> None:
        """Counts a failure; RateLimited if the address had none left."""
        with self._lock:
            network = client_network(peer)
            level = self._level(network)
            self._levels[network] = (min(level + 1, self._limit), self._clock())
            self._levels.move_to_end(network)
            if len(self._levels) > self._addresses:
                self._levels.popitem(last=False)
            self._refuse_above(level, self._limit - 1)

    def _level(self, network: str) -> float:
        level, at = self._levels.get(network, (0.0, 0.0))
        return max(0.0, level - (self._clock() - at) * self._rate)

    def _refuse_above(self, level: float, most: float) -> None:
        if level > most:
            raise RateLimited(
                "too many requests without a valid API key from this address; try again later",
                retry_after=max(1.0, (level - most) / self._rate),
            )
