"""The bounds of HTTP connections, on real sockets; and the order of a shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from uvicorn.server import ServerState

from app.cli import server
from app.cli.server import BoundedHttpProtocol, bind, configuration
from app.errors import PolyprefixError
from app.settings import Settings

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
async def listening() -> AsyncIterator[tuple[int, ServerState]]:
    config = configuration(echo_length)
    config.load()
    state = ServerState()
    listener = await asyncio.get_running_loop().create_server(
        lambda: BoundedHttpProtocol(config=config, server_state=state, app_state={}),
        "127.0.0.1",
        0,
    )
    async with listener:
        yield listener.sockets[0].getsockname()[1], state


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


def run(scenario: Callable[[int, ServerState], Awaitable[None]]) -> None:
    async def scene() -> None:
        async with listening() as (port, state):
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
    monkeypatch.setattr(server, "CLIENT_TIMEOUT_S", 0.2)

    async def scenario(port: int, _: ServerState) -> None:
        reply = await talk(port, beginning)
        assert reply.startswith(b"HTTP/1.1 408")

    run(scenario)


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLIENT_TIMEOUT_S", 0.2)

    async def scenario(port: int, state: ServerState) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n")
            async with asyncio.timeout(10):
                while not state.connections:  # accepted
                    await asyncio.sleep(0.01)
                while state.connections:  # and given up
                    await asyncio.sleep(0.01)

    run(scenario)


SERVE = textwrap.dedent(
    """
    import asyncio, contextlib, sys
    from app.cli.server import Server, bind, configuration
    from app.errors import PolyprefixError

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["state"]["word"]})

    @contextlib.asynccontextmanager
    async def lifespan():
        if "unsupported" in sys.argv:
            raise PolyprefixError("this cannot be served")
        yield {"word": b"served"}
        print("released", flush=True)

    async def drain():
        print("draining", flush=True)
        if "stuck" in sys.argv:
            await asyncio.Event().wait()
        await asyncio.to_thread(sys.stdin.readline)

    def ready():
        print(door.getsockname()[1], flush=True)

    door = bind("127.0.0.1", 0)
    try:
        Server(configuration(app), lifespan=lifespan(), ready=ready, drain=drain).run([door])
        print("left", flush=True)
    except PolyprefixError as error:
        print(error, flush=True)
    """
)


def start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_with_the_door_open_then_exits_with_zero(name: signal.Signals) -> None:
    process, port = start()
    with process:
        assert process.stdin
        assert process.stdout
        process.send_signal(name)
        assert process.stdout.readline() == "draining\n"
        assert httpx.get(f"http://127.0.0.1:{port}").text == "served"
        process.stdin.write("done\n")
        process.stdin.flush()
        assert process.stdout.read() == "released\nleft\n"
    assert process.returncode == 0


def test_a_second_signal_ends_a_drain_that_hangs() -> None:
    process, _ = start("stuck")
    with process:
        assert process.stdout
        process.terminate()
        assert process.stdout.readline() == "draining\n"
        process.terminate()
        assert process.stdout.read() == "released\nleft\n"
    assert process.returncode == 0


def test_what_the_start_raises_ends_the_run() -> None:
    process = subprocess.run(
        [sys.executable, "-c", SERVE, "unsupported"], capture_output=True, text=True, check=True
    )
    assert process.stdout == "this cannot be served\n"
    assert process.stderr == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(host: str) -> None:
    with bind(host, 0) as taken:
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(PolyprefixError, match=f"{host} port {port}: Address already in use"):
            bind(host, port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PolyprefixError, match="cannot listen on 192.0.2.1 port 0"):
        bind("192.0.2.1", 0)


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


@pytest.mark.parametrize("wrong", ["*", "localhost", "10.0.0.1/8", "10.0.0.0/8, haproxy"])
def test_a_trusted_proxy_that_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(trusted_proxies=wrong)
