"""Erased prefixes leave this process: tiers forget them, and requests that use them end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence

from app.prefix.prefix import Prefix
from app.registry.registry import Registry
from app.registry.types import ContentKey
from app.runtime.prefix_cache import PrefixCache, PrefixKey
from app.runtime.workers import PeriodicThread

_RETRY_S = 0.45
"""Seconds until the next try while the catalog does not answer."""


class ErasureFollower:
    """Hears of erased contents, by whichever replica, and revokes what this process has of them.

    A content that was stored again meanwhile is left alone. The change feed may have lost count;
    then everything that is here is looked up in the catalog.
    """

    def __init__(
        self,
        registry: Registry,
        tiers: PrefixCache,
        end_requests: Callable[[Sequence[Prefix]], None],
    ) -> None:
        """`end_requests` ends those that use one of the prefixes. Call on the tiers' event loop."""
        self._registry, self._tiers, self._end = registry, tiers, end_requests
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._doubted: set[ContentKey] = set()
        self._thread = PeriodicThread("following erasures", _RETRY_S, self._follow, on_demand=True)

    def start(self) -> None:
        """Begins to listen."""
        self._registry.on_erasure(self._notice)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the look that runs, if one does."""
        self._thread.stop()

    def _notice(self, erased: Sequence[ContentKey] | None) -> None:
        if erased is None:
            self._loop.call_soon_threadsafe(self._doubt_all)
        else:
            self._doubt(erased)

    def _doubt_all(self) -> None:
        self._doubt(ContentKey(key.owner, key.digest) for key in self._tiers.held_keys())

    def _doubt(self, keys: Iterable[ContentKey]) -> None:
        with self._lock:
            self._doubted |= set(keys)
            found = bool(self._doubted)
        if found:
            self._thread.wake()

    def _follow(self) -> None:
        """Looks the doubted contents up; raises what the catalog raises."""
        with self._lock:
            doubted = set(self._doubted)
        gone = self._registry.gone_contents(doubted)
        with self._lock:
            self._doubted -= doubted
        if gone:
            self._loop.call_soon_threadsafe(self._revoke, gone)

    def _revoke(self, gone: Sequence[ContentKey]) -> None:
        held = [prefix for key in gone for prefix in self._tiers.revoke(PrefixKey(*key))]
        if held:
            self._end(held)
