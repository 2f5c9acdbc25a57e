"""A Redis that fails in every known way: callers wait once, shortly, and never get an error.

Each state lasts a short while here, at the rate of the real thing; the slow form lasts a minute.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.tenancy.limits.limiter import Limiter
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.shared import RedisLimits
from tests.redis_server import Proxy, RedisServer, proxied, redis_server

pytestmark = pytest.mark.alone

LIMITS = TenantLimits(requests_per_minute=10**6, tokens_per_minute=10**9, max_rows=1000)
PER_SECOND = 50
FIRST_FAULT = 0.020
LATER = 0.002
BACK_WITHIN = 1.0
SHORT = 1.2
"""Seconds of load in one state."""


@dataclass
class Scene:
    """A limiter behind a proxy before a Redis."""

    redis: RedisServer
    proxy: Proxy
    limiter: Limiter
    lag: float = 0.0
    """How late the loop was at most, in seconds, since the machine did something else."""
    waits: list[tuple[bool, float]] = field(default_factory=list)
    """Whether it was degraded before, and the seconds that one reservation took."""

    async def reserve(self) -> None:
        """One request, which ends at once."""
        was_degraded, began = self.limiter.is_degraded, time.perf_counter()
        reservation = await self.limiter.reserve("acme", LIMITS, tokens=100, rows=2)
        self.waits.append((was_degraded, time.perf_counter() - began))
        reservation.settle(10)

    async def load(self, seconds: float) -> None:
        """Requests at a steady rate; any error ends the test."""
        running = [asyncio.ensure_future(self._watch(seconds))]
        for _ in range(int(seconds * PER_SECOND)):
            running.append(asyncio.ensure_future(self.reserve()))
            await asyncio.sleep(1 / PER_SECOND)
        await asyncio.gather(*running)

    async def _watch(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            await asyncio.sleep(0.001)
            self.lag = max(self.lag, time.perf_counter() - began - 0.002)

    async def back(self) -> float:
        """Seconds until it is normal again."""
        began = time.perf_counter()
        while self.limiter.is_degraded:
            await asyncio.sleep(0.002)
            assert time.perf_counter() - began < 5, "it never came back"
        return time.perf_counter() - began


Act = Callable[[Scene], Awaitable[None]]


async def frozen(scene: Scene) -> None:
    scene.redis.freeze()


async def thawed(scene: Scene) -> None:
    scene.redis.thaw()


async def refused(scene: Scene) -> None:
    scene.redis.stop()


async def started(scene: Scene) -> None:
    scene.redis.start()


async def swallowed(scene: Scene) -> None:
    scene.proxy.swallows = True


async def slow(scene: Scene) -> None:
    scene.proxy.delay = 0.5


async def cut(scene: Scene) -> None:
    scene.proxy.cuts = True


async def passing(scene: Scene) -> None:
    scene.proxy.swallows = scene.proxy.cuts = False
    scene.proxy.delay = 0.0


async def read_only(scene: Scene) -> None:
    scene.redis.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
    scene.redis.command("REPLICAOF", "127.0.0.1", "1")


async def primary(scene: Scene) -> None:
    scene.redis.command("REPLICAOF", "NO", "ONE")


async def stale(scene: Scene) -> None:
    """A replica without its primary that answers MASTERDOWN."""
    scene.redis.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    scene.redis.command("REPLICAOF", "127.0.0.1", "1")


async def locked(scene: Scene) -> None:
    scene.redis.command("CONFIG", "SET", "requirepass", "changed")
    with scene.redis.client("changed") as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def unlocked(scene: Scene) -> None:
    with scene.redis.client("changed") as client:
        client.execute_command("CONFIG", "SET", "requirepass", "")


async def paused(scene: Scene) -> None:
    scene.redis.command("CLIENT", "PAUSE", 600_000, "WRITE")


async def unpaused(scene: Scene) -> None:
    scene.redis.command("CLIENT", "UNPAUSE")


async def loading(scene: Scene) -> None:
    """Started again, it reads its file key by key and answers LOADING."""
    with scene.redis.client() as client:
        for number in range(2000):
            # between keys of a kilobyte and more it looks at its sockets; they do not compress
            client.set(f"key {number}", random.randbytes(2000))
        client.save()
    scene.redis.stop()
    slowly = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    scene.redis.start(*slowly, wait=False)


async def loaded(scene: Scene) -> None:
    assert scene.redis.command("INFO", "persistence")["loading"] == 1
    scene.redis.command("CONFIG", "SET", "key-load-delay", 0)


STATES: dict[str, tuple[Act, Act]] = {
    "refused": (refused, started),
    "frozen": (frozen, thawed),
    "black hole": (swallowed, passing),
    "one second slow": (slow, passing),
    "reset in the middle of a reply": (cut, passing),
    "READONLY": (read_only, primary),
    "MASTERDOWN": (stale, primary),
    "LOADING": (loading, loaded),
    "NOAUTH": (locked, unlocked),
    "paused": (paused, unpaused),
}


@asynccontextmanager
async def limiting(url: str, **options: float) -> AsyncIterator[Limiter]:
    """A limiter with the Redis at `url` until the block ends."""
    limiter = Limiter(RedisLimits(url, **options))
    await limiter.start()
    try:
        yield limiter
    finally:
        await limiter.close()


async def _live_through(state: str, redis: RedisServer, seconds: float) -> None:
    begin, end = STATES[state]
    async with proxied(redis.port) as proxy, limiting(proxy.url) as limiter:
        scene = Scene(redis, proxy, limiter)
        await scene.load(0.2)
        await scene.back()
        scene.waits.clear()
        scene.lag = 0.0
        await begin(scene)
        await scene.load(seconds)
        assert limiter.is_degraded
        await end(scene)
        back = await scene.back()
        later = sorted(wait for degraded, wait in scene.waits if degraded)
        first = [wait for degraded, wait in scene.waits if not degraded]
        assert max(first, default=0) <= FIRST_FAULT + scene.lag
        assert len(later) > 0.7 * seconds * PER_SECOND
        assert later[int(0.99 * len(later))] <= LATER + scene.lag
        assert back <= BACK_WITHIN + scene.lag
        faults = limiter.faults
        await scene.load(0.2)
        assert limiter.faults == faults
        assert redis.command("ZCARD", "polyprefix:limits:{acme}:leases") == 0


def test_a_redis_without_memory_still_counts(tmp_path: Path) -> None:
    """The script has little to write, and Redis lets it."""

    async def main(redis: RedisServer) -> None:
        async with limiting(redis.url, timeout=1) as limiter:
            redis.command("CONFIG", "SET", "maxmemory", 1)
            await Scene(redis, Proxy(redis.port), limiter).load(1)
            assert limiter.faults == 0
            assert redis.command("EXISTS", "polyprefix:limits:{acme}:meters") == 1

    with redis_server(tmp_path) as redis:
        asyncio.run(main(redis))


@pytest.mark.parametrize("state", STATES)
def test_a_failing_redis_costs_one_short_wait_and_no_error(state: str, tmp_path: Path) -> None:
    """A busy machine may take Redis away for a while itself: one calm run of three is asked for."""
    for attempt in range(3):
        with redis_server(tmp_path / str(attempt)) as redis:
            try:
                asyncio.run(_live_through(state, redis, SHORT))
            except AssertionError:
                if attempt == 2:
                    raise
            else:
                return


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_a_minute_of_a_failing_redis_costs_no_more(state: str, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        asyncio.run(_live_through(state, redis, 60))
