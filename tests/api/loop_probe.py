"""How long a server's event loop stands still, measured within it, under requests from without.

Clients are processes of their own: what they compute holds no lock of the server's.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.server import RunningServer

_TICK_S = 0.002

_SEND = """
import socket, sys
host, port, *heads = sys.argv[1:]
body = sys.stdin.buffer.read()
for head in heads:
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(head.encode().replace(b"|", b"\\r\\n") + body)
        reply = b""
        while part := connection.recv(1 << 20):
            reply += part
    print(reply.split()[1].decode(), len(reply))
"""


@dataclass
class Lag:
    """The longest time between two turns of a task on the loop, in seconds.

    `computed` is the time in which the loop's own thread ran: what a busy machine adds to `passed`
    is not in it, and neither is what other threads do.
    """

    passed: float = 0.0
    computed: float = 0.0


@contextmanager
def watching(server: RunningServer) -> Iterator[Lag]:
    """Measures the loop until the block ends."""
    lag, stopped = Lag(), asyncio.Event()

    async def watch() -> None:
        while not stopped.is_set():
            before, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(_TICK_S)
            lag.passed = max(lag.passed, time.perf_counter() - before - _TICK_S)
            lag.computed = max(lag.computed, time.thread_time() - computed)

    watcher = asyncio.run_coroutine_threadsafe(watch(), server.loop)
    try:
        time.sleep(0.05)
        yield lag
    finally:
        server.loop.call_soon_threadsafe(stopped.set)
        watcher.result(timeout=60)


def ask(
    server: RunningServer, routes: Sequence[tuple[str, str]], body: bytes, key: str | None = None
) -> list[int]:
    """Statuses of the replies to one body on each of the routes, sent by another process."""
    address = urlsplit(server.url)
    lines = ["host: test", "content-type: application/json", "connection: close"]
    lines += [f"content-length: {len(body)}", *([f"authorization: Bearer {key}"] if key else [])]
    heads = ["|".join([f"{method} {path} HTTP/1.1", *lines, "", ""]) for method, path in routes]
    done = subprocess.run(
        [sys.executable, "-c", _SEND, str(address.hostname), str(address.port), *heads],
        input=body,
        capture_output=True,
        timeout=180,
        check=True,
    )
    return [int(line.split()[0]) for line in done.stdout.splitlines()]
