"""Reservations: settled once, refunded exactly, within bounds whatever Redis does."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from app.errors import InvalidRequest, RateLimited
from app.tenancy.limits.limiter import Limiter, Reservation
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.shared import RedisLimits
from tests.redis_server import RedisServer, free_port, redis_server
from tests.tenancy.limits.test_local import Clock

LIMITS = TenantLimits(requests_per_minute=6, tokens_per_minute=600, max_rows=4)


async def granted(limiter: Limiter, limits: TenantLimits, times: int) -> int:
    """How many of `times` requests at once are granted; they stay."""
    results = await asyncio.gather(
        *(limiter.reserve("acme", limits, tokens=1, rows=1) for _ in range(times)),
        return_exceptions=True,
    )
    assert all(isinstance(result, Reservation | RateLimited) for result in results)
    return sum(isinstance(result, Reservation) for result in results)


def test_without_limits_nobody_is_asked() -> None:
    async def main() -> None:
        limiter = Limiter()
        reservation = await limiter.reserve("acme", TenantLimits(), tokens=10**9, rows=10**6)
        assert dict(reservation.headers) == {}
        reservation.settle(5)
        reservation.release()
        assert limiter.debug_state() == {"tenants": 0}

    asyncio.run(main())


def test_the_headers_of_a_grant_count_the_request_itself() -> None:
    async def main() -> None:
        limiter = Limiter(clock=Clock())
        reservation = await limiter.reserve("acme", LIMITS, tokens=200, rows=1)
        assert dict(reservation.headers) == {
            "x-ratelimit-limit-requests": "6",
            "x-ratelimit-remaining-requests": "5",
            "x-ratelimit-reset-requests": "10s",
            "x-ratelimit-limit-tokens": "600",
            "x-ratelimit-remaining-tokens": "400",
            "x-ratelimit-reset-tokens": "20s",
        }

    asyncio.run(main())


async def _rest(limiter: Limiter) -> tuple[int, int]:
    """Requests and tokens that are left, by a request of no tokens that is taken back."""
    reservation = await limiter.reserve("acme", LIMITS, tokens=0, rows=1)
    reservation.release()
    names = ("x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens")
    requests, tokens = (int(reservation.headers[name]) for name in names)
    return requests + 1, tokens


def test_a_look_refuses_what_has_no_chance_and_counts_nothing() -> None:
    async def main() -> None:
        limiter = Limiter(clock=Clock())
        limiter.check("acme", TenantLimits())
        for _ in range(100):
            limiter.check("acme", LIMITS)
        assert await _rest(limiter) == (6, 600)
        reservation = await limiter.reserve("acme", LIMITS, tokens=600, rows=4)
        with pytest.raises(RateLimited, match="4 rows at a time") as caught:
            limiter.check("acme", LIMITS)
        assert caught.value.headers["x-ratelimit-remaining-requests"] == "5"
        reservation.settle(600)
        limiter.check("acme", LIMITS)
        for _ in range(5):
            (await limiter.reserve("acme", LIMITS, tokens=0, rows=1)).settle(0)
        with pytest.raises(RateLimited, match="6 requests per minute"):
            limiter.check("acme", LIMITS)

    asyncio.run(main())


def test_settling_gives_back_what_was_not_used_and_once_only() -> None:
    async def main() -> None:
        limiter = Limiter(clock=Clock())
        reservation = await limiter.reserve("acme", LIMITS, tokens=600, rows=4)
        with pytest.raises(RateLimited, match="600 tokens per minute"):
            await limiter.reserve("acme", LIMITS, tokens=1, rows=0)
        with pytest.raises(RateLimited, match="4 rows at a time"):
            await limiter.reserve("acme", LIMITS, tokens=0, rows=1)
        for used in (250, 0, 600):
            reservation.settle(used)
        reservation.release()
        assert await _rest(limiter) == (5, 350)

    asyncio.run(main())


def test_a_request_that_was_never_begun_counts_nowhere() -> None:
    async def main() -> None:
        limiter = Limiter(clock=Clock())
        reservation = await limiter.reserve("acme", LIMITS, tokens=600, rows=4)
        reservation.release()
        reservation.settle(600)
        assert await _rest(limiter) == (6, 600)

    asyncio.run(main())


def test_more_than_was_reserved_is_charged_up_to_the_limit() -> None:
    async def main() -> None:
        limiter = Limiter(clock=Clock())
        (await limiter.reserve("acme", LIMITS, tokens=10, rows=1)).settle(100)
        assert await _rest(limiter) == (5, 500)
        (await limiter.reserve("acme", LIMITS, tokens=10, rows=1)).settle(10**9)
        assert await _rest(limiter) == (4, 0)

    asyncio.run(main())


def test_what_never_fits_is_refused_for_good_and_counts_nowhere() -> None:
    async def main() -> None:
        limiter = Limiter(clock=Clock())
        with pytest.raises(InvalidRequest, match="tokens per minute"):
            await limiter.reserve("acme", LIMITS, tokens=601, rows=1)
        with pytest.raises(InvalidRequest, match="rows at a time"):
            await limiter.reserve("acme", LIMITS, tokens=1, rows=5)
        assert await _rest(limiter) == (6, 600)

    asyncio.run(main())


def test_a_refusal_by_redis_takes_nothing_here(shared_redis: RedisServer) -> None:
    limits = TenantLimits(requests_per_minute=10, tokens_per_minute=100)

    async def main() -> None:
        ones = [Limiter(RedisLimits(shared_redis.url, timeout=0.5)) for _ in range(2)]
        for one in ones:
            await one.start()
        await ones[0].reserve("acme", limits, tokens=80, rows=1)
        for _ in range(20):
            with pytest.raises(RateLimited, match="100 tokens per minute") as caught:
                await ones[1].reserve("acme", limits, tokens=60, rows=1)
            assert int(caught.value.headers["x-ratelimit-remaining-tokens"]) in (20, 21)
        (await ones[1].reserve("acme", limits, tokens=20, rows=1)).settle(0)
        for one in ones:
            await one.close()

    asyncio.run(main())


def test_a_cancelled_reservation_is_taken_back_everywhere(shared_redis: RedisServer) -> None:
    async def main() -> None:
        limiter = Limiter(RedisLimits(shared_redis.url, timeout=0.5))
        await limiter.start()
        for turns in range(12):
            call = asyncio.ensure_future(limiter.reserve("acme", LIMITS, tokens=600, rows=4))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            [result] = await asyncio.gather(call, return_exceptions=True)
            if isinstance(result, Reservation):
                result.release()
        (await limiter.reserve("acme", LIMITS, tokens=600, rows=4)).release()
        await limiter.close()

    asyncio.run(main())


def test_a_flood_of_one_tenant_does_not_reach_redis(shared_redis: RedisServer) -> None:
    async def main() -> None:
        limiter = Limiter(RedisLimits(shared_redis.url, timeout=0.5, probe_seconds=60))
        await limiter.start()
        limits = TenantLimits(requests_per_minute=5)
        await granted(limiter, limits, 5)
        shared_redis.command("CONFIG", "RESETSTAT")
        assert await granted(limiter, limits, 1000) == 0
        assert "cmdstat_evalsha" not in shared_redis.command("INFO", "commandstats")
        await limiter.close()

    asyncio.run(main())


@pytest.mark.alone
@pytest.mark.parametrize("replicas", [1, 3])
def test_without_redis_each_replica_admits_its_own_limit_and_no_more(
    tmp_path: Path, replicas: int
) -> None:
    """The bound: in any minute, replicas × limit; one replica alone is exact all the way."""
    limits = TenantLimits(requests_per_minute=40)

    async def main(redis: RedisServer) -> None:
        ones = [
            Limiter(RedisLimits(redis.url, timeout=0.5, probe_seconds=0.05))
            for _ in range(replicas)
        ]
        for one in ones:
            await one.start()
        began, counts = time.monotonic(), []
        counts.append(sum([await granted(one, limits, 10) for one in ones]))
        assert counts[0] == min(40, 10 * replicas)
        redis.stop()
        counts.append(sum([await granted(one, limits, 100) for one in ones]))
        while not all(one.is_degraded for one in ones):
            await asyncio.sleep(0.005)  # one that asks no more learns it from its next look
        redis.start()
        while any(one.is_degraded for one in ones):
            await asyncio.sleep(0.005)
        counts.append(sum([await granted(one, limits, 100) for one in ones]))
        refilled = (time.monotonic() - began) * 40 / 60 + 1
        assert 40 * replicas <= sum(counts) <= replicas * (40 + refilled)
        for one in ones:
            await one.close()

    with redis_server(tmp_path) as redis:
        asyncio.run(main(redis))


def test_a_server_without_its_redis_starts_and_limits() -> None:
    async def main() -> None:
        limiter = Limiter(RedisLimits(f"redis://127.0.0.1:{free_port()}"))
        began = time.monotonic()
        await limiter.start()
        assert time.monotonic() - began < 3
        assert limiter.is_degraded
        assert limiter.faults > 0
        assert await granted(limiter, TenantLimits(requests_per_minute=7), 50) == 7
        await limiter.close()

    asyncio.run(main())
