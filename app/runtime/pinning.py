"""Pins hold at every replica, whichever of them was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from app.registry.pins import PinFollower
from app.registry.registry import Registry
from app.registry.types import ContentKey
from app.runtime.periodic import PeriodicThread
from app.runtime.prefix_cache import MAX_PINNED, PrefixCache, PrefixKey

_RETRY_S = 0.45
"""Seconds until the next try while the catalog does not answer."""


async def follow_pins(registry: Registry, tiers: PrefixCache) -> PeriodicThread:
    """Let the tiers keep what is pinned, now and until the work that is returned is stopped."""
    loop = asyncio.get_running_loop()
    pins = PinFollower(registry.catalog, registry.catalog.feed, MAX_PINNED)

    def keep(epoch: int, contents: Iterable[ContentKey]) -> None:
        if not pins.is_outdated(epoch):
            tiers.keep_pins([PrefixKey(*content) for content in contents])

    def follow() -> None:
        found = pins.look()
        if found is not None:
            loop.call_soon_threadsafe(keep, *found)

    background = PeriodicThread("following pins", _RETRY_S, follow)
    pins.start(background.wake)
    await asyncio.to_thread(follow)
    background.start()
    return background
