"""The bounds of HTTP connections, on real sockets."""

from __future__ import annotations

import asyncio
import socket
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from uvicorn.server import ServerState

from app.runtime import http_protocol
from app.runtime.http_protocol import MAX_PIPELINED, BoundedHttpProtocol
from app.runtime.http_server import configuration

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes in the body; to `/flood` with 64 MiB."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/flood":
        for _ in range(1024):
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
    await send({"type": "http.response.body", "body": str(length).encode()})


async def tell_client(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the client's address."""
    del receive
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["client"][0].encode()})


@asynccontextmanager
async def listening(app: Any = echo_length) -> AsyncIterator[tuple[int, ServerState]]:
    config = configuration(app)
    config.load()
    state = ServerState()
    listener = await asyncio.get_running_loop().create_server(
        lambda: BoundedHttpProtocol(config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    async with listener:
        yield listener.sockets[0].getsockname()[1], state
        for connection in list(state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        while state.connections:
            await asyncio.sleep(0)


async def talk(port: int, *parts: bytes) -> bytes:
    """Send the parts one after the other, then read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def run(scenario: Callable[[int, ServerState], Awaitable[None]], app: Any = echo_length) -> None:
    async def scene() -> None:
        async with listening(app) as (port, state):
            await scenario(port, state)

    asyncio.run(scene())


def test_requests_on_one_connection_are_answered_whatever_their_body() -> None:
    async def scenario(port: int, _: ServerState) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for size in (0, 1, 200_000, 3_000_000, 0):
                reply = await client.post("/", content=bytes(size))
                assert (reply.status_code, reply.text) == (200, str(size))

    run(scenario)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * (8 << 20),
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1_000_000,
        b"GET /" + b"a" * (8 << 20),
    ],
    ids=["one endless header", "a million headers", "an endless path"],
)
def test_an_endless_head_is_refused(head: bytes) -> None:
    async def scenario(port: int, _: ServerState) -> None:
        reply = await talk(port, head)
        assert reply.startswith(b"HTTP/1.1 431") or not reply  # reset while it was still writing

    run(scenario)


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost: a\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345",
        b"\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "an empty line"],
)
def test_a_client_that_falls_silent_is_disconnected(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "CLIENT_TIMEOUT_S", 0.2)

    async def scenario(port: int, _: ServerState) -> None:
        reply = await talk(port, beginning)
        assert reply.startswith(b"HTTP/1.1 408")

    run(scenario)


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "CLIENT_TIMEOUT_S", 0.2)

    async def scenario(port: int, state: ServerState) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n")
            async with asyncio.timeout(10):
                while not state.connections:  # accepted
                    await asyncio.sleep(0.01)
                while state.connections:  # and given up
                    await asyncio.sleep(0.01)

    run(scenario)


async def trickle(port: int, head: bytes, gap: float, seconds: float) -> tuple[bytes, float]:
    """Send the head, then a byte again and again; the reply, and when the connection ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    reply = asyncio.ensure_future(reader.read())
    writer.write(head)
    try:
        while not reply.done() and time.monotonic() - began < seconds:
            writer.write(b"1")
            await asyncio.sleep(gap)
        assert reply.done(), f"still open after {seconds} s"
        return await reply, time.monotonic() - began
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nx: ",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nx: ",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n[",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nfffff\r\n",
    ],
    ids=["a path", "a header", "a second head", "a body", "a chunk"],
)
def test_what_trickles_in_byte_by_byte_ends_in_time(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "CLIENT_TIMEOUT_S", 0.5)

    async def scenario(port: int, _: ServerState) -> None:
        reply, took = await trickle(port, head, 0.02, 5)
        assert b"HTTP/1.1 408" in reply
        assert b'"code": "request_timeout"' in reply
        assert took > 0.4

    run(scenario)


def test_a_body_that_comes_at_a_fair_rate_takes_as_long_as_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "CLIENT_TIMEOUT_S", 0.5)

    async def scenario(port: int, _: ServerState) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\n")
        for _ in range(15):
            await asyncio.sleep(0.1)
            writer.write(bytes(2000))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()

    run(scenario)


def test_a_body_that_the_server_does_not_read_yet_is_not_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "CLIENT_TIMEOUT_S", 0.2)

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.7)
        await echo_length(scope, receive, send)

    async def scenario(port: int, _: ServerState) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            reply = await client.post("/", content=bytes(5_000_000))
            assert (reply.status_code, reply.text) == (200, "5000000")

    run(scenario, late)


PIPELINE = textwrap.dedent(
    """
    import socket, sys
    port, number = int(sys.argv[1]), int(sys.argv[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        request = b"GET /%d HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n"
        reader = client.makefile("rb")
        import threading
        sent = b"".join(request % index for index in range(number))
        thread = threading.Thread(target=lambda: client.sendall(sent))
        thread.start()
        paths = []
        while len(paths) < number:
            line = reader.readline()
            if not line:
                break
            if line.startswith(b"/"):
                paths.append(line.strip())
        thread.join()
    assert paths == [b"/%d" % index for index in range(number)], len(paths)
    """
)


def test_thousands_of_requests_sent_ahead_are_answered_in_order_and_few_are_held() -> None:
    """A client in another process sends all at once; no piece of it holds the loop for long."""
    held: list[int] = []

    async def path(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        held.append(max(len(one.pipeline) for one in state_of[0].connections))  # type: ignore[union-attr]
        content = scope["path"].encode() + b"\n"
        length = (b"content-length", str(len(content)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": content})

    state_of: list[ServerState] = []

    async def scenario(port: int, state: ServerState) -> None:
        state_of.append(state)
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PIPELINE, str(port), "6000"
        )
        assert await client.wait() == 0
        assert len(held) == 6000
        # besides what one piece brought, no more than the bound
        assert max(held) < MAX_PIPELINED + http_protocol.PIECE_BYTES / 30

    run(scenario, path)


def test_a_client_that_leaves_ends_the_request_that_runs_before_those_sent_ahead() -> None:
    ended: list[str] = []

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        del send
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.append(scope["path"])

    async def scenario(port: int, state: ServerState) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % n for n in range(5)))
        while not state.tasks:
            await asyncio.sleep(0.01)
        writer.close()
        async with asyncio.timeout(5):
            while state.tasks or state.connections:
                await asyncio.sleep(0.01)
        assert ended == ["/0"]

    run(scenario, wait)


def test_a_reply_that_nobody_reads_does_not_keep_an_idle_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too little to pause the writer, too much for the sockets: closing has to wait for nobody."""
    monkeypatch.setattr(http_protocol, "CLIENT_TIMEOUT_S", 0.3)

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for one in list(state_of[0].connections):
            one.transport.set_write_buffer_limits(high=1 << 30)  # type: ignore[union-attr]
        await send({"type": "http.response.body", "body": bytes(16 << 20)})

    state_of: list[ServerState] = []

    async def scenario(port: int, state: ServerState) -> None:
        state_of.append(state)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            async with asyncio.timeout(10):
                while not state.connections:
                    await asyncio.sleep(0.01)
                while state.connections:
                    await asyncio.sleep(0.01)

    run(scenario, large)


FORWARDED = b"198.51.100.7, 203.0.113.9, 192.0.2.1"
"""Whom a caller may claim to be, who called the first proxy, and that proxy as the next saw it."""


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        (None, b"127.0.0.1"),
        ("", b"127.0.0.1"),
        ("192.0.2.0/24", b"127.0.0.1"),
        ("127.0.0.1", b"192.0.2.1"),
        ("127.0.0.0/8, 192.0.2.0/24", b"203.0.113.9"),
    ],
)
def test_a_forwarded_address_is_believed_of_trusted_proxies_alone(
    trusted: str | None, seen: bytes
) -> None:
    config = configuration(tell_client, trusted)
    config.load()

    async def scene() -> bytes:
        listener = await asyncio.get_running_loop().create_server(
            lambda: BoundedHttpProtocol(config=config, server_state=ServerState(), app_state={}),
            "127.0.0.1",
            0,
        )
        async with listener:
            head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-forwarded-for: "
            port = listener.sockets[0].getsockname()[1]
            return await talk(port, head + FORWARDED + b"\r\n\r\n")

    # the body, one chunk
    assert b"\r\n%s\r\n" % seen in asyncio.run(scene())
