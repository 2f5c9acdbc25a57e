"""Where prefixes wait: on the device, in host memory, in the store; LRU by bytes.

Keys are (owner, content digest), so a stale entry cannot exist and nobody learns whether another
owner has the same content. Loads are single-flight and run in a few threads, never on the event
loop. A prefix that is leased cannot be evicted. A cache belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from app.errors import Overloaded, PrefixErased
from app.prefix.prefix import Prefix
from app.runtime.workers import WorkerPool

MAX_PINNED = 1_000
"""Pins that are remembered."""

Tier = Literal["device", "host", "store"]


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """`owner` is opaque and differs between tenants; `digest` is the version's."""

    owner: str
    digest: str


@dataclass(eq=False)
class Lease:
    """A prefix on the device, safe from eviction until released. `tier` is where it was found."""

    prefix: Prefix
    tier: Tier
    _entry: _Resident
    _released: bool = False

    def release(self) -> None:
        """Let the prefix be evicted again; further calls do nothing."""
        if not self._released:
            self._released = True
            self._entry.leases -= 1


@dataclass(eq=False)
class _Resident:
    prefix: Prefix
    leases: int = 0


@dataclass
class TierStats:
    """One tier's figures: what it holds and how often it was asked."""

    entries: int = 0
    nbytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0


@dataclass
class _Lru:
    """Prefixes in the order of their last use, bounded by bytes."""

    max_bytes: int
    entries: OrderedDict[PrefixKey, _Resident] = field(default_factory=OrderedDict)
    stats: TierStats = field(default_factory=TierStats)

    def get(self, key: PrefixKey) -> _Resident | None:
        entry = self.entries.get(key)
        if entry is None:
            self.stats.misses += 1
            return None
        self.stats.hits += 1
        self.entries.move_to_end(key)
        return entry

    def put(self, key: PrefixKey, entry: _Resident) -> None:
        self.remove(key)
        self.entries[key] = entry
        self.stats.entries += 1
        self.stats.nbytes += entry.prefix.nbytes

    def remove(self, key: PrefixKey) -> None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.stats.entries -= 1
            self.stats.nbytes -= entry.prefix.nbytes

    def make_room(self, needed: int, pinned: Container[PrefixKey]) -> bool:
        """Evict the least recently used until `needed` bytes are free; False if they can't be."""
        room = self.max_bytes - self.stats.nbytes
        if room >= needed:
            return True
        kept = self._kept(pinned)
        victims: list[PrefixKey] = []
        for key, entry in self.entries.items():
            if room >= needed:
                break
            if entry.leases == 0 and key not in kept:
                victims.append(key)
                room += entry.prefix.nbytes
        if room < needed:
            return False  # evicting would not make enough room
        for key in victims:
            self.remove(key)
            self.stats.evictions += 1
        return True

    def _kept(self, pinned: Container[PrefixKey]) -> set[PrefixKey]:
        """The pinned ones that were used last, as many as half of the tier has room for: pins are
        any tenant's to set, and nobody's may shut others out."""
        kept: set[PrefixKey] = set()
        room = self.max_bytes // 2
        for key, entry in reversed(self.entries.items()):
            if key in pinned:
                room -= entry.prefix.nbytes
                if room < 0:
                    break
                kept.add(key)
        return kept


@dataclass(eq=False)
class _Flight:
    """A load under way: its own lease keeps the prefix until everyone who waits has theirs."""

    task: asyncio.Task[Lease]
    waiting: int = 0
    revoked: bool = False

    def settle(self) -> None:
        """Give the load's lease back once nobody waits for it."""
        task = self.task
        if self.waiting == 0 and task.done() and not task.cancelled() and task.exception() is None:
            task.result().release()


class PrefixCache:
    """The device and host tiers over `load`, which reads and checks a prefix from the store.

    `load` runs in one of `loaders` threads, of which no owner takes more than half. What it raises
    goes to everyone who waits for that key and is not remembered. On a CPU a prefix in the serving
    dtype is the same memory in both tiers; each tier still counts it.
    """

    def __init__(
        self,
        load: Callable[[PrefixKey], Prefix],
        *,
        host_bytes: int,
        device_bytes: int,
        device: torch.device,
        dtype: torch.dtype,
        loaders: int = 4,
    ) -> None:
        self._load = load
        self._host, self._device = _Lru(host_bytes), _Lru(device_bytes)
        self._where, self._dtype = device, dtype
        self._loaders = WorkerPool("prefix-loader", loaders, per_tenant=max(1, loaders // 2))
        # apart, so that what is in memory comes to the device while a store does not answer
        self._movers = ThreadPoolExecutor(1, thread_name_prefix="prefix-mover")
        self._flights: dict[PrefixKey, _Flight] = {}
        self._pinned: frozenset[PrefixKey] = frozenset()

    def try_acquire(self, key: PrefixKey) -> Lease | None:
        """A lease at once if the prefix is on the device, else None: the warm path."""
        if key not in self._device.entries:
            return None
        entry = self._device.get(key)
        return None if entry is None else _lease(entry, "device")

    async def acquire(self, key: PrefixKey) -> Lease:
        """A lease on the prefix, loaded if need be.

        Raises what `load` raised, or Overloaded when leased prefixes fill the device tier.
        """
        lease = self.try_acquire(key)
        if lease is not None:
            return lease
        flight = self._flights.get(key) or self._take_off(key)
        flight.waiting += 1
        try:
            # a waiter that is cancelled must not end the load for the others
            brought = await asyncio.shield(flight.task)
            if flight.revoked:
                raise PrefixErased("the prefix was erased while it was loaded")
            return _lease(brought._entry, brought.tier)
        finally:
            flight.waiting -= 1
            flight.settle()

    def contains(self, key: PrefixKey) -> Tier | None:
        """The best tier that holds the prefix, without touching its place in the order."""
        if key in self._device.entries:
            return "device"
        return "host" if key in self._host.entries else None

    def evict(self, key: PrefixKey) -> None:
        """Forget a prefix; rows that hold it keep it, and its pin outlasts it."""
        self._device.remove(key)
        self._host.remove(key)

    def held_keys(self) -> set[PrefixKey]:
        """The prefixes that are here or on their way."""
        return {*self._device.entries, *self._host.entries, *self._flights}

    def revoke(self, key: PrefixKey) -> list[Prefix]:
        """Forget a prefix that no request may use any more; what requests may hold of it.

        Whoever waits for it to be loaded gets PrefixErased.
        """
        flight = self._flights.get(key)
        if flight is not None:
            flight.revoked = True
        entry = self._device.entries.get(key)
        self.evict(key)
        return [] if entry is None else [entry.prefix]

    def keep_pins(self, keys: Sequence[PrefixKey]) -> None:
        """Keep these prefixes, and no others, once they are here; the oldest pin comes first.

        Of more than `MAX_PINNED` the oldest are ignored. Pinned ones take no more than half of a
        tier.
        """
        self._pinned = frozenset(keys[-MAX_PINNED:])

    def stats(self) -> dict[Tier, TierStats]:
        return {"device": self._device.stats, "host": self._host.stats}

    def debug_state(self) -> dict[str, Any]:
        """The number of leases, the tasks of loads that are under way, and the pinned keys."""
        leases = sum(entry.leases for entry in self._device.entries.values())
        loads = [flight.task for flight in self._flights.values()]
        return {"leases": leases, "loads": loads, "pinned": self._pinned}

    def check_integrity(self) -> None:
        """RuntimeError if a tier's figures are not those of its entries, or exceed its bytes."""
        for lru in (self._device, self._host):
            sizes = [entry.prefix.nbytes for entry in lru.entries.values()]
            figures = lru.stats.entries, lru.stats.nbytes
            if figures != (len(sizes), sum(sizes)) or sum(sizes) > lru.max_bytes:
                raise RuntimeError(f"a tier of {lru.max_bytes} bytes counts {figures}: {sizes}")

    async def close(self) -> None:
        flights = [flight.task for flight in self._flights.values()]
        await asyncio.gather(*flights, return_exceptions=True)
        await self._loaders.close()
        self._movers.shutdown()

    def _take_off(self, key: PrefixKey) -> _Flight:
        self._device.stats.misses += 1
        flight = _Flight(asyncio.get_running_loop().create_task(self._bring(key)))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    def _land(self, key: PrefixKey, flight: _Flight) -> None:
        del self._flights[key]
        if flight.revoked:
            self.evict(key)
        flight.settle()  # nobody may be left to ask

    async def _bring(self, key: PrefixKey) -> Lease:
        """Bring a prefix to the device from wherever it is."""
        loop = asyncio.get_running_loop()
        tier: Tier = "host"
        held = self._host.get(key)
        if held is None:
            tier = "store"
            held = _Resident(await self._loaders.run(key.owner, self._load, key))
            if self._host.make_room(held.prefix.nbytes, self._pinned):
                self._host.put(key, held)
        host = held.prefix
        prefix = await loop.run_in_executor(self._movers, host.to, self._where, self._dtype)
        if not self._device.make_room(prefix.nbytes, self._pinned):
            raise Overloaded(
                f"prefixes in use fill the device tier of {self._device.max_bytes} bytes"
            )
        entry = _Resident(prefix)
        self._device.put(key, entry)
        return _lease(entry, tier)


def _lease(entry: _Resident, tier: Tier) -> Lease:
    entry.leases += 1
    return Lease(entry.prefix, tier, entry)
