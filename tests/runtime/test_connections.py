"""Connections are bounded in all and by address; idle ones give way, running ones never do."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from app.runtime.connections import Connections


class Fake:
    """A connection that knows whether it was closed for another."""

    is_shed = False

    def shed(self) -> None:
        self.is_shed = True


def opened(table: Connections, number: int, peer: str) -> list[Fake]:
    """New connections of one address, all of which are let in."""
    made = [Fake() for _ in range(number)]
    assert all(table.admit(one, peer) for one in made)
    return made


def test_the_longest_idle_gives_way_at_each_bound() -> None:
    table = Connections(5, 3)
    first = opened(table, 3, "192.0.2.1")
    table.work(first[0])
    opened(table, 1, "192.0.2.1")
    assert [one.is_shed for one in first] == [False, True, False]
    others = opened(table, 2, "192.0.2.2")
    assert table.count == 5
    opened(table, 1, "192.0.2.3")
    assert [one.is_shed for one in first] == [False, True, True]
    assert not any(one.is_shed for one in others)
    # what has worked since is idle for a shorter time than what has not
    table.rest(first[0])
    opened(table, 3, "192.0.2.4")
    assert not first[0].is_shed


def test_running_requests_are_never_closed_for_new_connections() -> None:
    table = Connections(5, 3)
    first = opened(table, 3, "192.0.2.1")
    for one in first:
        table.work(one)
    assert not table.admit(Fake(), "192.0.2.1")
    for one in opened(table, 2, "192.0.2.2"):
        table.work(one)
    assert not table.admit(Fake(), "192.0.2.3")
    table.forget(first[0])
    table.forget(first[0])
    assert table.count == 4
    assert table.admit(Fake(), "192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::2:3:4", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_an_address_is_its_ipv4_or_its_64(one: str, other: str, same: bool) -> None:
    table = Connections(10, 2)
    first = opened(table, 2, one)
    opened(table, 1, other)
    assert first[0].is_shed == same


@pytest.mark.parametrize("peer", ["10.1.2.3", "2001:db8::7", "::ffff:10.1.2.3", None])
def test_a_proxy_is_bound_by_the_whole_alone(peer: str | None) -> None:
    table = Connections(6, 2, "10.0.0.0/8, 2001:db8::7")
    made = [Fake() for _ in range(8)]
    assert all(table.admit(one, peer) for one in made)
    assert [one.is_shed for one in made] == [True] * 2 + [False] * 6
    assert table.count == 6


def test_what_has_ended_is_forgotten() -> None:
    table = Connections(100, 50)
    for number in range(1000):
        for one in opened(table, 2, f"192.0.2.{number % 200}"):
            table.work(one)
            table.rest(one)
            table.forget(one)
            table.rest(one)
    assert table.debug_state() == {"open": 0, "idle": 0, "addresses": 0}


def test_a_flood_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    table = Connections(1, 1, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "app.runtime.connections"):
        opened(table, 500, "192.0.2.1")
        assert len(caplog.records) == 1
        now[0] += 61
        opened(table, 2, "192.0.2.1")
    assert len(caplog.records) == 2


SERVE = textwrap.dedent(
    """
    import asyncio, contextlib, logging, resource, sys
    soft, hard, most, most_per_client = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    from app.runtime.connections import connections_within
    from app.runtime.http_server import Server, bind, configuration

    async def app(scope, receive, send):
        open("/dev/null").close()  # as whatever reads files
        files = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/wait":
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await asyncio.sleep(3)
        await send({"type": "http.response.body", "body": files})

    @contextlib.asynccontextmanager
    async def lifespan():
        yield {}

    async def drain():
        pass

    logging.basicConfig(level="INFO", format="%(message)s")
    door = bind("127.0.0.1", 0)
    config = configuration(app, connections=connections_within(most, most_per_client))
    ready = lambda: print(door.getsockname()[1], flush=True)
    Server(config, lifespan=lifespan(), ready=ready, drain=drain).run([door])
    """
)


@contextmanager
def server(*numbers: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server in a process with limits of its own: soft, hard, connections, and per client."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *map(str, numbers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield int(process.stdout.readline()), process
    finally:
        process.terminate()
        process.communicate(timeout=20)


WAIT = b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n"
"""A request that runs for three seconds once it has answered `begun`."""


def running(stack: ExitStack, port: int, number: int) -> list[socket.socket]:
    """Connections with a request that runs."""
    clients = connected(stack, port, number, WAIT)
    for client in clients:
        received = b""
        while b"begun" not in received:
            received += client.recv(1000)
    return clients


def ends_well(client: socket.socket) -> bool:
    """Whether the rest of a running request's reply comes."""
    received = b""
    while b"0\r\n\r\n" not in received:
        part = client.recv(1000)
        if not part:
            return False
        received += part
    return True


def connected(stack: ExitStack, port: int, number: int, sent: bytes = b"") -> list[socket.socket]:
    clients = []
    for _ in range(number):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        client.sendall(sent)
        clients.append(client)
    return clients


def test_idle_connections_beyond_the_descriptors_keep_nobody_out() -> None:
    with server(512, 512, 4096, 512) as (port, _), ExitStack() as stack:
        busy = running(stack, port, 1)
        for sent in (b"", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n\r\n"):
            connected(stack, port, 200, sent)
        for _ in range(20):
            assert httpx.get(f"http://127.0.0.1:{port}", timeout=10).text == "512"
        assert ends_well(busy[0])


def test_the_soft_limit_of_open_files_is_raised_and_said() -> None:
    with server(128, 1000, 4096, 512) as (port, process):
        assert httpx.get(f"http://127.0.0.1:{port}").text == "1000"
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert "up to 500 connections; up to 1000 open files (limit was 128)" in said


def test_an_address_whose_connections_are_all_busy_gets_503() -> None:
    with server(256, 256, 100, 4) as (port, _), ExitStack() as stack:
        busy = running(stack, port, 4)
        refused = connected(stack, port, 1)[0]
        assert refused.recv(1000).startswith(b"HTTP/1.1 503 Service Unavailable")
        assert all(ends_well(client) for client in busy)
        # idle again, they give way
        assert httpx.get(f"http://127.0.0.1:{port}").text == "256"
