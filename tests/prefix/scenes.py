"""Scenes with prefix tiers over a store whose loads can be held back or made to fail."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

import torch

from app.errors import PolyprefixError
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.runtime.prefix_cache import Lease, PrefixCache, PrefixKey

Scene = Callable[[PrefixCache, "Store"], Awaitable[None]]


def make_prefix(length: int = 1, dtype: torch.dtype = torch.float32) -> Prefix:
    tensor = torch.full((1, 1, length, 4), 0.5, dtype=dtype)
    return Prefix({"decoder": KeyValues(tensor, tensor.clone())}, PrefixMetadata(0))


UNIT = make_prefix().nbytes
A, B, C, D = (PrefixKey("owner", digit * 64) for digit in "abcd")


class Store:
    """Loads prefixes of one unit, or of the length given; each load waits until the gate opens."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.loads: Counter[PrefixKey] = Counter()
        self.lengths: dict[PrefixKey, int] = {}
        self.failing: set[PrefixKey] = set()
        self.threads: set[str] = set()
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self._dtype = dtype

    def load(self, key: PrefixKey) -> Prefix:
        self.loads[key] += 1
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.gate.wait(30)
        if key in self.failing:
            raise PolyprefixError(f"the store has lost {key.digest[0]}")
        return make_prefix(self.lengths.get(key, 1), self._dtype)

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 30)


def play(
    scene: Scene,
    *,
    device_units: int = 10,
    host_units: int = 10,
    stored: torch.dtype = torch.float32,
    served: torch.dtype = torch.float32,
    loaders: int = 2,
) -> None:
    """Run a scene on tiers that hold so many prefixes of one unit."""

    async def run() -> None:
        store = Store(stored)
        tiers = PrefixCache(
            store.load,
            host_bytes=host_units * UNIT,
            device_bytes=device_units * UNIT,
            device=torch.device("cpu"),
            dtype=served,
            loaders=loaders,
        )
        try:
            await scene(tiers, store)
        finally:
            store.gate.set()
            await tiers.close()

    asyncio.run(run())


async def use(tiers: PrefixCache, *keys: PrefixKey) -> list[str]:
    """Acquire and release each in turn; where each was found."""
    found = []
    for key in keys:
        lease = await tiers.acquire(key)
        found.append(lease.tier)
        lease.release()
    return found


async def start(tiers: PrefixCache, key: PrefixKey, count: int = 1) -> list[asyncio.Task[Lease]]:
    """Tasks that acquire `key` and have come as far as they can."""
    tasks = [asyncio.create_task(tiers.acquire(key)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks
