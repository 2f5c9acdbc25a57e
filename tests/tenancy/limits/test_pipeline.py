"""Calls through one connection: nobody ever reads another's reply, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from app.tenancy.limits.decision import LimitDecision
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.pipeline import (
    MAX_WAITING,
    RedisFails,
    ScriptCall,
    ScriptFault,
    ScriptPipeline,
)
from tests.redis_server import RedisServer, free_port, proxied

LIMITS = TenantLimits(requests_per_minute=10**9, max_rows=10**6)
TAKE = ScriptCall("acme", "take", "lease", 1, 30, LIMITS, requests=1)
LEASES = "test:limits:{acme}:leases"


@asynccontextmanager
async def pipeline(url: str, *, timeout: float = 2.0) -> AsyncIterator[ScriptPipeline]:
    one = ScriptPipeline(url, namespace="test", timeout=timeout, connect_timeout=2.0)
    try:
        yield one
    finally:
        await one.close()


def runs(redis: RedisServer) -> int:
    """How often the script has run since the last time that this was asked."""
    calls: int = redis.command("INFO", "commandstats").get("cmdstat_hset", {"calls": 0})["calls"]
    redis.command("CONFIG", "RESETSTAT")
    return calls


async def own(one: ScriptPipeline, number: int) -> None:
    """A call of a tenant with rows of its own; the reply is the one to this call."""
    rows = number % 7 + 1
    call = ScriptCall(f"tenant-{number}", "keep", "lease", rows, 30, LIMITS)
    assert await one.send(call) == LimitDecision(True, 0, 0, rows)


def test_calls_of_many_callers_get_their_own_replies(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with pipeline(shared_redis.url) as one:
            await asyncio.gather(*(own(one, number) for number in range(500)))
            assert one.connections == 1

    runs(shared_redis)
    asyncio.run(main())
    assert runs(shared_redis) == 500


def test_calls_that_wait_share_round_trips_in_their_order(shared_redis: RedisServer) -> None:
    """A lease that ends before its take is answered is taken first, and given back after."""

    async def main() -> None:
        async with proxied(shared_redis.port) as proxy, pipeline(proxy.url) as one:
            await one.send(TAKE)
            proxy.delay = 0.05
            began = asyncio.get_running_loop().time()
            replies = []
            for number in range(100):
                take = replace(TAKE, lease=str(number))
                replies += [one.send(take), one.send(replace(take, mode="give"))]
            rows = [standing.rows for standing in await asyncio.gather(*replies)]
            assert rows == [2, 1] * 100
            assert asyncio.get_running_loop().time() - began < 200 * 0.05

    asyncio.run(main())
    assert shared_redis.command("ZRANGE", LEASES, 0, -1) == ["lease:1"]


def test_a_redis_that_does_not_know_the_script_is_told_it(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with pipeline(shared_redis.url) as one:
            for base in (0, 100):
                shared_redis.command("SCRIPT", "FLUSH")
                await asyncio.gather(*(own(one, base + number) for number in range(100)))
            assert one.connections == 1

    runs(shared_redis)
    asyncio.run(main())
    assert runs(shared_redis) == 200


async def _cancelling(redis: RedisServer, calls: int) -> int:
    """Calls through a slow proxy, most of them cancelled; returns those that were answered."""
    draw = random.Random(7)
    answered = 0

    async def one_call(one: ScriptPipeline, number: int) -> None:
        nonlocal answered
        try:
            async with asyncio.timeout(draw.choice([0, 0.0002, 0.001, 0.003, 0.008, 2])):
                await own(one, number)
            answered += 1
        except TimeoutError:
            pass

    async with proxied(redis.port) as proxy:
        proxy.delay = 0.002
        async with pipeline(proxy.url, timeout=60) as one:
            for begin in range(0, calls, 100):
                await asyncio.gather(*(one_call(one, begin + index) for index in range(100)))
            await own(one, calls)
            assert one.connections == 1
    return answered


def test_cancelled_calls_leave_no_reply_to_others(shared_redis: RedisServer) -> None:
    runs(shared_redis)
    answered = asyncio.run(_cancelling(shared_redis, 4000))
    assert 400 < answered < 3600
    # what was cancelled before it was sent is sent all the same, once
    assert runs(shared_redis) == 4001


@pytest.mark.slow
def test_a_hundred_thousand_cancelled_calls_leave_no_reply_to_others(
    shared_redis: RedisServer,
) -> None:
    runs(shared_redis)
    answered = asyncio.run(_cancelling(shared_redis, 100_000))
    assert 10_000 < answered < 90_000
    assert runs(shared_redis) == 100_001


@pytest.mark.parametrize("host", ["127.0.0.1", "nobody.invalid"])
def test_connecting_where_nobody_listens_is_a_fault(host: str) -> None:
    async def main() -> None:
        async with pipeline(f"redis://{host}:{free_port()}") as one:
            with pytest.raises(ScriptFault):
                await one.send(TAKE)
            assert one.connections == 0

    asyncio.run(main())


def test_a_silent_name_server_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, threads = threading.Event(), set()

    def getaddrinfo(*_: object) -> None:
        threads.add(threading.get_ident())
        answers.wait(10)

    async def main() -> None:
        one = ScriptPipeline("redis://cache", namespace="test", timeout=1, connect_timeout=0.05)
        for _ in range(4):
            with pytest.raises(RedisFails):
                await one.send(TAKE)
        # nor does it keep others from the loop's own threads
        assert await asyncio.to_thread(threading.get_ident) not in threads
        await one.close()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        asyncio.run(main())
    finally:
        answers.set()
    assert len(threads) == 1


def test_a_silent_redis_is_a_fault_for_everybody_who_waits(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with pipeline(shared_redis.url, timeout=0.05) as one:
            await own(one, 0)
            shared_redis.freeze()
            try:
                replies = await asyncio.wait_for(
                    asyncio.gather(*(own(one, 1) for _ in range(300)), return_exceptions=True), 1
                )
            finally:
                shared_redis.thaw()
            assert all(isinstance(reply, RedisFails) for reply in replies)
            await own(one, 2)
            assert one.connections == 2

    asyncio.run(main())


def test_a_busy_loop_is_not_taken_for_a_silent_redis(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with pipeline(shared_redis.url, timeout=0.02) as one:
            await own(one, 0)
            for number in range(10):
                if number % 2:
                    shared_redis.command("SCRIPT", "FLUSH")
                call = asyncio.ensure_future(own(one, number))
                for _ in range(number):
                    await asyncio.sleep(0)
                blocked = asyncio.get_running_loop().time() + 0.04
                while asyncio.get_running_loop().time() < blocked:
                    pass
                await call
            assert one.connections == 1

    asyncio.run(main())


def test_a_connection_that_was_closed_while_idle_is_made_anew(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with pipeline(shared_redis.url) as one:
            for connections in range(1, 4):
                await own(one, 0)
                assert one.connections == connections
                shared_redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_an_error_reply_is_a_fault_of_its_call_alone(shared_redis: RedisServer) -> None:
    bad = replace(TAKE, lifetime=float("nan"))

    async def main() -> None:
        async with pipeline(shared_redis.url) as one:
            replies = await asyncio.gather(
                *(one.send(call) for call in [TAKE, bad, TAKE] * 30), return_exceptions=True
            )
            assert [type(reply) for reply in replies] == [
                LimitDecision,
                ScriptFault,
                LimitDecision,
            ] * 30
            assert one.connections == 1

    asyncio.run(main())


def test_what_waits_is_bounded(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with pipeline(shared_redis.url, timeout=10) as one:
            replies = [one.send(TAKE) for _ in range(MAX_WAITING)]
            with pytest.raises(ScriptFault, match="wait already"):
                one.send(TAKE)
        # whoever waits hears that it ends
        for reply in replies:
            assert isinstance(reply.exception(), ScriptFault)

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage", [b"$5\r\nab", b"*-7\r\n", b"$x\r\n", b"\xff" * 100, b"$3\r\n\xff\xff\xff\r\n", b""]
)
def test_a_stream_that_is_no_redis_is_a_fault_and_not_the_end(garbage: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(garbage)
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with await asyncio.start_server(babble, "127.0.0.1", 0) as door:
            port = door.sockets[0].getsockname()[1]
            async with pipeline(f"redis://127.0.0.1:{port}") as one:
                for _ in range(3):
                    with pytest.raises(ScriptFault):
                        await one.send(TAKE)
                assert one.connections == 3

    asyncio.run(main())
