"""Pins hold at every replica, whichever of them was asked."""

from __future__ import annotations

import asyncio

from app.registry.registry import Registry
from app.registry.types import ContentKey
from app.registry.versions import PinFollower
from app.runtime.prefix_cache import MAX_PINNED, PrefixCache, PrefixKey
from app.runtime.workers import PeriodicThread, Workers

_RETRY_S = 0.45
"""Seconds until the next try while the catalog does not answer."""


async def follow_pins(registry: Registry, tiers: PrefixCache, workers: Workers) -> PeriodicThread:
    """Lets the tiers keep what is pinned, now and until the thread that is returned is stopped."""
    loop = asyncio.get_running_loop()
    pins = PinFollower(registry.catalog, MAX_PINNED)

    kept: tuple[ContentKey, ...] = ()

    def keep(epoch: int, contents: tuple[ContentKey, ...]) -> None:
        nonlocal kept
        if contents != kept and not pins.is_outdated(epoch):
            kept = contents
            tiers.keep_pins([PrefixKey(*content) for content in contents])

    def follow() -> None:
        loop.call_soon_threadsafe(keep, *pins.look())

    background = PeriodicThread("following pins", _RETRY_S, follow, on_demand=True)
    pins.start(background.wake)
    await workers.catalog.run("", follow)
    background.start()
    return background
