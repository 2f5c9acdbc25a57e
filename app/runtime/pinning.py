"""Pins hold at every replica, whichever of them was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from app.registry.pins import PinFollower
from app.registry.registry import Registry
from app.registry.types import ContentKey
from app.runtime.periodic import PeriodicThread
from app.runtime.prefix_cache import MAX_PINNED, PrefixCache, PrefixKey
from app.runtime.workers import Workers

_RETRY_S = 0.45
"""Seconds until the next try while the catalog does not answer."""


async def follow_pins(registry: Registry, tiers: PrefixCache, workers: Workers) -> PeriodicThread:
    """Lets the tiers keep what is pinned, now and until the thread that is returned is stopped."""
    loop = asyncio.get_running_loop()
    pins = PinFollower(registry.catalog, MAX_PINNED)

    def keep(epoch: int, contents: Iterable[ContentKey]) -> None:
        if not pins.is_outdated(epoch):
            tiers.keep_pins([PrefixKey(*content) for content in contents])

    def follow() -> None:
        loop.call_soon_threadsafe(keep, *pins.look())

    background = PeriodicThread("following pins", _RETRY_S, follow, on_demand=True)
    pins.start(background.wake)
    await workers.catalog.run("", follow)
    background.start()
    return background
