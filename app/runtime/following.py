"""What a server follows of the catalog, whichever replica has changed it: pins and erasures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.prefix.prefix import Prefix
from app.registry.registry import Registry
from app.runtime.erasures import ErasureFollower
from app.runtime.pinning import follow_pins
from app.runtime.prefix_cache import PrefixCache
from app.runtime.workers import Workers


async def follow_catalog(
    registry: Registry,
    tiers: PrefixCache,
    workers: Workers,
    end_requests: Callable[[Sequence[Prefix]], None],
) -> Callable[[], None]:
    """Begins to follow; what is returned ends it. `end_requests` as of `ErasureFollower`."""
    pins = await follow_pins(registry, tiers, workers)
    erasures = ErasureFollower(registry, tiers, end_requests)
    erasures.start()

    def stop() -> None:
        erasures.stop()
        pins.stop()

    return stop
