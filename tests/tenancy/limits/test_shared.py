"""Limits that replicas share: one truth, taken atomically, freed when a replica dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from app.errors import InvalidRequest
from app.tenancy.limits.decision import Cost, LimitDecision
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.local import LocalLimits
from app.tenancy.limits.pipeline import LUA, ScriptCall, read_reply
from app.tenancy.limits.shared import RedisLimits
from tests.redis_server import Proxy, RedisServer, proxied, redis_server
from tests.tenancy.limits.test_local import STEPS

METERS, LEASES = "polyprefix:limits:{acme}:meters", "polyprefix:limits:{acme}:leases"
LIMITS = TenantLimits(requests_per_minute=6, tokens_per_minute=600, max_rows=4)


@asynccontextmanager
async def replicas(
    redis: RedisServer | Proxy, number: int = 1, **options: Any
) -> AsyncIterator[list[Any]]:
    """Several replicas' shared limits on one Redis, with patience for a slow machine."""
    made = [RedisLimits(redis.url, **{"timeout": 0.5, **options}) for _ in range(number)]
    try:
        for one in made:
            await one.start()
        assert all(one.is_up for one in made)
        yield made
    finally:
        for one in made:
            await one.close()


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    """Return when the condition holds; it must within the time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def rows_of(redis: RedisServer) -> int:
    rows: int = redis.command("ZCARD", LEASES)
    return rows


def used(redis: RedisServer, name: str) -> float:
    return float(redis.command("HGET", METERS, name))


async def takes(one: RedisLimits, limits: TenantLimits, cost: Cost) -> tuple[str, LimitDecision]:
    lease, standing = await one.take("acme", limits, cost)
    assert standing is not None, "Redis did not answer in time"
    return lease, standing


def test_fifty_callers_of_two_replicas_get_exactly_the_limit(shared_redis: RedisServer) -> None:
    limits = TenantLimits(requests_per_minute=17, tokens_per_minute=10**6, max_rows=1000)

    async def main() -> None:
        async with replicas(shared_redis, 2) as ones:
            results = await asyncio.gather(
                *(takes(ones[index % 2], limits, Cost(1000, 3)) for index in range(50))
            )
        assert sum(standing.granted for _, standing in results) == 17

    asyncio.run(main())
    assert rows_of(shared_redis) == 3 * 17


def test_rows_of_two_replicas_count_together_and_come_free_once(shared_redis: RedisServer) -> None:
    limits = TenantLimits(max_rows=10)

    async def main() -> None:
        async with replicas(shared_redis, 2) as [one, two]:
            held = [await takes(one, limits, Cost(0, 4)), await takes(two, limits, Cost(0, 4))]
            assert not (await takes(two, limits, Cost(0, 3)))[1].granted
            one.give(held[0][0], requests=0, tokens=0)
            one.give(held[0][0], requests=0, tokens=0)
            await until(lambda: rows_of(shared_redis) == 4)
            assert (await takes(two, limits, Cost(0, 6)))[1].granted
            assert not (await takes(one, limits, Cost(0, 1)))[1].granted

    asyncio.run(main())


def test_a_refused_request_takes_from_no_limit(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with replicas(shared_redis) as [one]:
            await takes(one, LIMITS, Cost(100, 1))
            for cost in (Cost(10, 5), Cost(601, 1)):
                _, standing = await takes(one, LIMITS, cost)
                assert not standing.granted
                assert standing.rows == 1
                assert 0 < standing.requests <= 1
                assert 0 < standing.tokens <= 100

    asyncio.run(main())


def test_what_a_request_did_not_use_is_given_back(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with replicas(shared_redis) as [one]:
            lease, _ = await takes(one, LIMITS, Cost(500, 2))
            one.give(lease, requests=0, tokens=450)
            await until(lambda: rows_of(shared_redis) == 0)
            assert 0 < used(shared_redis, "tokens") <= 50
            assert 0 < used(shared_redis, "requests") <= 1
            lease, _ = await takes(one, LIMITS, Cost(10, 1))
            one.give(lease, requests=1, tokens=-10_000)
            await until(lambda: rows_of(shared_redis) == 0)
            assert 590 < used(shared_redis, "tokens") <= 600
            assert used(shared_redis, "requests") <= 1

    asyncio.run(main())


REPLICA = """
import asyncio, sys
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.shared import RedisLimits
from app.tenancy.limits.decision import Cost

async def main():
    one = RedisLimits(sys.argv[1], timeout=1, probe_seconds=0.05, lease_seconds=0.6)
    await one.start()
    _, standing = await one.take("acme", TenantLimits(max_rows=2), Cost(0, 1))
    print(standing.granted, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_replicas_rows_come_free_and_a_living_ones_stay(
    shared_redis: RedisServer,
) -> None:
    limits = TenantLimits(max_rows=2)

    async def main(killed: subprocess.Popen[str]) -> None:
        options = {"lease_seconds": 0.6, "probe_seconds": 0.05}
        async with replicas(shared_redis, **options) as [one]:
            await takes(one, limits, Cost(0, 1))
            assert killed.stdout.readline() == "True\n"
            await asyncio.sleep(1.5)
            # both live, and renew what they hold
            assert not (await takes(one, limits, Cost(0, 1)))[1].granted
            killed.kill()
            await until(lambda: rows_of(shared_redis) == 1, 5)
            _, standing = await takes(one, limits, Cost(0, 1))
            assert standing.granted
            assert not (await takes(one, limits, Cost(0, 1)))[1].granted

    command = [sys.executable, "-c", REPLICA, shared_redis.url]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as killed:
        try:
            asyncio.run(main(killed))
        finally:
            killed.kill()


def test_flushall_loses_nothing_but_counts(shared_redis: RedisServer) -> None:
    async def main() -> None:
        options = {"lease_seconds": 0.6, "probe_seconds": 0.05}
        async with replicas(shared_redis, **options) as [one]:
            lease, _ = await takes(one, LIMITS, Cost(600, 3))
            shared_redis.command("FLUSHALL")
            shared_redis.command("SCRIPT", "FLUSH")
            assert (await takes(one, LIMITS, Cost(600, 1)))[1].granted
            await until(lambda: rows_of(shared_redis) == 4)
            one.give(lease, requests=0, tokens=0)
            await until(lambda: rows_of(shared_redis) == 1)
            assert one.faults == 0

    asyncio.run(main())


def test_strange_things_under_the_keys_are_thrown_away(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with replicas(shared_redis) as [one]:
            shared_redis.command("SET", METERS, "a string")
            shared_redis.command("LPUSH", LEASES, "a list")
            assert (await takes(one, LIMITS, Cost(100, 1)))[1].granted
            for text in ("nan", "-5", "inf", "x", ""):
                shared_redis.command("HSET", METERS, "requests", text, "tokens", text, "at", text)
                _, standing = await takes(one, LIMITS, Cost(0, 1))
                assert 0 <= standing.requests <= 6
                assert 0 <= standing.tokens <= 600
            assert one.faults == 0

    asyncio.run(main())


@pytest.mark.parametrize("leap", [86_400.0, 5.0, -5.0, -86_400.0])
def test_a_leap_of_the_clock_locks_nobody_out(shared_redis: RedisServer, leap: float) -> None:
    """The clock of Redis leaps by as much as what is kept lies on its other side."""

    async def main() -> None:
        async with replicas(shared_redis) as [one]:
            await takes(one, LIMITS, Cost(600, 2))
            at = float(shared_redis.command("HGET", METERS, "at"))
            shared_redis.command("HSET", METERS, "at", repr(at - leap))
            for member in shared_redis.command("ZRANGE", LEASES, 0, -1):
                shared_redis.command("ZINCRBY", LEASES, repr(-leap), member)
            _, standing = await takes(one, LIMITS, Cost(1, 0))
            if leap > 60:
                # as after a minute: one allowance, not more
                assert (standing.requests, standing.tokens) == (1, 1)
            if leap < 0:
                assert not standing.granted
                assert 590 < standing.tokens <= 600
            if abs(leap) > 60:
                assert standing.rows == 0
            # from here on it runs down as ever
            shared_redis.command(
                "HSET", METERS, "at", repr(float(shared_redis.command("HGET", METERS, "at")) - 6)
            )
            _, standing = await takes(one, LIMITS, Cost(50, 1))
            assert standing.granted

    asyncio.run(main())


def test_a_cancelled_caller_takes_nothing(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with replicas(shared_redis) as [one]:
            for turns in range(12):
                call = asyncio.ensure_future(takes(one, LIMITS, Cost(600, 4)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                done = (await asyncio.gather(call, return_exceptions=True))[0]
                if not isinstance(done, asyncio.CancelledError):
                    one.give(done[0], requests=1, tokens=600)
                await until(lambda: not one.debug_state()["owed"])
                assert rows_of(shared_redis) == 0
            assert (await takes(one, LIMITS, Cost(600, 4)))[1].granted

    asyncio.run(main())


def test_a_reply_to_another_call_is_a_fault_and_ends_the_connection(
    shared_redis: RedisServer,
) -> None:
    async def main() -> None:
        async with (
            proxied(shared_redis.port) as proxy,
            replicas(proxy, probe_seconds=0.05) as [one],
        ):
            proxy.intrudes = b"$13\r\nstale 1 0 0 0\r\n"
            assert (await one.take("acme", LIMITS, Cost(1, 1)))[1] is None
            assert not one.is_up
            await until(lambda: one.is_up)
            assert (await takes(one, LIMITS, Cost(1, 1)))[1].granted

    asyncio.run(main())


@pytest.mark.parametrize("reply", ["n 1 0 0", "m 1 0 0 0", "n 1 x 0 0", "", 7, None, ["n"]])
def test_a_reply_that_is_not_to_this_call_is_not_read(reply: object) -> None:
    assert read_reply("n 1 0.5 2 3", "n") == LimitDecision(True, 0.5, 2, 3)
    with pytest.raises(ValueError, match="reply|float"):
        read_reply(reply, "n")


def test_the_keys_pass_away_by_themselves(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with replicas(shared_redis) as [one]:
            await takes(one, LIMITS, Cost(1, 1))
            for key in shared_redis.command("KEYS", "*"):
                assert 0 < shared_redis.command("TTL", key) <= 120

    asyncio.run(main())


def test_a_tenants_keys_are_in_one_slot_and_apart_from_others() -> None:
    call = ScriptCall("acme", "take", "l", 1, 30, LIMITS)
    assert call.keys("polyprefix") == (METERS, LEASES)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_redis_decides_as_one_process_does(
    shared_redis: RedisServer, steps: list[tuple[str, int, int]]
) -> None:
    """The script against the meters in memory, by one clock that both believe in."""
    shared_redis.command("FLUSHALL")
    local, running = LocalLimits(clock=lambda: 1e6), []
    with shared_redis.client() as client:
        script = client.register_script(LUA)
        for number, (kind, amount, rows) in enumerate(steps):
            if kind == "take":
                here = local.take("acme", LIMITS, Cost(amount, rows))
                call = ScriptCall("acme", "take", str(number), rows, 600, LIMITS, 1, amount)
                if here.granted:
                    running.append(call)
            elif kind == "give" and running:
                took = running.pop()
                call = ScriptCall("acme", "give", took.lease, took.rows, 600, LIMITS, rows, amount)
                local.give("acme", LIMITS, requests=rows, tokens=amount, rows=took.rows)
                here = local.take("acme", LIMITS, Cost(0, 99))
            else:
                continue
            there = read_reply(script(call.keys("polyprefix"), call.arguments("n")), "n")
            assert there.granted == here.granted or kind == "give"
            assert there.rows == here.rows
            # what ran down in the little while that the example takes
            assert here.requests - 0.2 <= there.requests <= here.requests + 1e-6
            assert here.tokens - 20 <= there.tokens <= here.tokens + 1e-6


def test_what_came_and_went_without_redis_leaves_nothing_to_tell_it(tmp_path: Path) -> None:
    async def main(redis: RedisServer) -> None:
        async with replicas(redis, probe_seconds=0.05) as [one]:
            before, _ = await takes(one, LIMITS, Cost(1, 1))
            redis.stop()
            await until(lambda: not one.is_up)
            faults = one.faults
            for _ in range(1000):
                lease, _ = await one.take("acme", LIMITS, Cost(1, 1))
                one.give(lease, requests=0, tokens=0)
            one.give(before, requests=0, tokens=0)
            assert one.debug_state()["owed"] == [before]
            assert one.faults - faults < 100
            redis.start()
            await until(lambda: one.is_up and not one.debug_state()["owed"])

    with redis_server(tmp_path) as redis:
        asyncio.run(main(redis))


@pytest.mark.parametrize("url", ["redis://host:port", "http://host", "", "redis://h/?db=x"])
def test_what_is_no_url_of_redis_is_refused(url: str) -> None:
    async def main() -> None:
        with pytest.raises(InvalidRequest, match="the URL of Redis is not one"):
            RedisLimits(url)

    asyncio.run(main())


def test_redis_comes_later_than_the_replica(tmp_path: Any) -> None:
    async def main(redis: RedisServer) -> None:
        redis.stop()
        one = RedisLimits(redis.url, timeout=0.5, probe_seconds=0.05)
        await one.start()
        assert not one.is_up
        assert (await one.take("acme", LIMITS, Cost(1, 1)))[1] is None
        redis.start()
        await until(lambda: one.is_up)
        # what runs already is counted there
        await until(lambda: rows_of(redis) == 1)
        await one.close()

    with redis_server(tmp_path) as redis:
        asyncio.run(main(redis))
