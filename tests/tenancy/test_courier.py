"""Calls through one connection: nobody ever reads another's reply, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.tenancy.courier import MAX_WAITING, Courier, CourierFault
from tests.redis_server import RedisServer, free_port, proxied

ECHO = "redis.call('INCR', KEYS[1]) return ARGV[1] .. ' ' .. ARGV[2]"


@asynccontextmanager
async def courier(url: str, *, timeout: float = 2.0, lua: str = ECHO) -> AsyncIterator[Courier]:
    one = Courier(url, lua, timeout=timeout, connect_timeout=2.0)
    try:
        await one.connect()
        yield one
    finally:
        await one.close()


async def echo(one: Courier, word: str) -> str:
    """The word that comes back; the reply is checked to be the one to this call."""
    nonce, reply = one.post(["calls"], lambda nonce: [nonce, word])
    found, back = (await reply).split(" ")
    assert found == nonce
    return back


def test_calls_of_many_callers_share_round_trips(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with courier(shared_redis.url) as one:
            words = [str(number) for number in range(500)]
            assert await asyncio.gather(*(echo(one, word) for word in words)) == words

    asyncio.run(main())
    assert shared_redis.command("GET", "calls") == "500"


def test_a_redis_that_does_not_know_the_script_is_told_it(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with courier(shared_redis.url) as one:
            for word in ("before", "after"):
                shared_redis.command("SCRIPT", "FLUSH")
                assert await asyncio.gather(*(echo(one, word) for _ in range(100))) == [word] * 100

    asyncio.run(main())
    assert shared_redis.command("GET", "calls") == "200"


async def _cancelling(redis: RedisServer, calls: int) -> int:
    """Calls through a slow proxy, most of them cancelled; returns those that were answered."""
    draw = random.Random(7)
    answered = 0

    async def one_call(one: Courier, number: int) -> None:
        nonlocal answered
        try:
            async with asyncio.timeout(draw.choice([0, 0.0002, 0.001, 0.003, 0.008, 2])):
                assert await echo(one, str(number)) == str(number)
            answered += 1
        except TimeoutError:
            pass

    async with proxied(redis.port) as proxy:
        proxy.delay = 0.002
        async with courier(proxy.url, timeout=60) as one:
            for begin in range(0, calls, 100):
                await asyncio.gather(*(one_call(one, begin + index) for index in range(100)))
    return answered


def test_cancelled_calls_leave_no_reply_to_others(shared_redis: RedisServer) -> None:
    answered = asyncio.run(_cancelling(shared_redis, 4000))
    assert 400 < answered < 3600
    # what was cancelled before it was sent is sent all the same, once
    assert shared_redis.command("GET", "calls") == "4000"


@pytest.mark.slow
def test_a_hundred_thousand_cancelled_calls_leave_no_reply_to_others(
    shared_redis: RedisServer,
) -> None:
    answered = asyncio.run(_cancelling(shared_redis, 100_000))
    assert 10_000 < answered < 90_000
    assert shared_redis.command("GET", "calls") == "100000"


def test_connecting_where_nobody_listens_is_a_fault() -> None:
    async def main() -> None:
        one = Courier(f"redis://127.0.0.1:{free_port()}", ECHO, timeout=1, connect_timeout=1)
        with pytest.raises(CourierFault, match="connecting"):
            await one.connect()
        with pytest.raises(CourierFault, match="not connected"):
            one.post(["calls"], lambda nonce: [nonce, ""])
        await one.close()

    asyncio.run(main())


def test_a_name_that_does_not_resolve_is_a_fault() -> None:
    async def main() -> None:
        one = Courier("redis://nobody.invalid:6379", ECHO, timeout=1, connect_timeout=5)
        with pytest.raises(CourierFault, match="connecting"):
            await one.connect()
        await one.close()

    asyncio.run(main())


def test_a_silent_redis_is_a_fault_for_everybody_who_waits(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with courier(shared_redis.url, timeout=0.05) as one:
            shared_redis.freeze()
            try:
                replies = await asyncio.wait_for(
                    asyncio.gather(*(echo(one, "x") for _ in range(300)), return_exceptions=True), 1
                )
            finally:
                shared_redis.thaw()
            assert all(isinstance(reply, CourierFault) for reply in replies)
            assert not one.is_connected
            await one.connect()
            assert await echo(one, "again") == "again"

    asyncio.run(main())


def test_a_busy_loop_is_not_taken_for_a_silent_redis(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with courier(shared_redis.url, timeout=0.02) as one:
            for _ in range(10):
                call = asyncio.ensure_future(echo(one, "x"))
                for _ in range(3):
                    await asyncio.sleep(0)
                blocked = asyncio.get_running_loop().time() + 0.04
                while asyncio.get_running_loop().time() < blocked:
                    pass
                assert await call == "x"

    asyncio.run(main())


def test_an_error_reply_is_a_fault_of_its_call_alone(shared_redis: RedisServer) -> None:
    lua = "if ARGV[2] == 'bad' then return redis.error_reply('OOM no') end return ARGV[1]..' '"

    async def main() -> None:
        async with courier(shared_redis.url, lua=lua) as one:
            words = ["good", "bad", "good"] * 30
            replies = await asyncio.gather(
                *(echo(one, word) for word in words), return_exceptions=True
            )
            assert [isinstance(reply, CourierFault) for reply in replies] == [
                word == "bad" for word in words
            ]
            assert one.is_connected

    asyncio.run(main())


def test_what_waits_is_bounded(shared_redis: RedisServer) -> None:
    async def main() -> None:
        async with courier(shared_redis.url, timeout=10) as one:
            for _ in range(MAX_WAITING):
                one.post(["calls"], lambda nonce: [nonce, ""])
            with pytest.raises(CourierFault, match="wait already"):
                one.post(["calls"], lambda nonce: [nonce, ""])

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
            async with courier(f"redis://127.0.0.1:{port}") as one:
                for _ in range(3):
                    await one.connect()
                    with pytest.raises(CourierFault):
                        await echo(one, "x")
                    assert not one.is_connected

    asyncio.run(main())
