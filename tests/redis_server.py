"""A private redis-server for tests, which they may freeze, kill and start again; and a proxy.

The proxy stands between a client and a server in the test's own event loop and delays, cuts or
swallows what passes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

_START_SECONDS = 10.0


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port: int = door.getsockname()[1]
        return port


@dataclass
class RedisServer:
    """One redis-server on a port of its own, without persistence."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("these tests need the program redis-server")
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self.folder), "--logfile", str(self.folder / "redis.log")]
        self._process = subprocess.Popen([*command, *options])
        if wait:
            self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with suppress(redis.ConnectionError), self.client() as client:
                client.ping()
                return
            time.sleep(0.005)
        raise RuntimeError("redis-server did not start")

    def client(self, password: str | None = None) -> redis.Redis:
        """A plain client, to be closed, past everything that is under test."""
        return redis.Redis(
            port=self.port, password=password, decode_responses=True, socket_timeout=5
        )

    def command(self, *arguments: str | int) -> Any:
        """The reply to one command."""
        with self.client() as client:
            return client.execute_command(*arguments)

    def freeze(self) -> None:
        """It keeps its sockets and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it; its port refuses."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise RuntimeError("redis-server does not run")
        os.kill(self._process.pid, number)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A server that runs until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Proxy:
    """Passes bytes on to `target`, after `delay` seconds each way.

    With `swallows` it reads and passes nothing; with `cuts` it passes half of the next reply and
    resets the connection. What is in `intrudes` goes before the next reply, once.
    """

    target: int
    port: int = 0
    delay: float = 0.0
    swallows: bool = False
    cuts: bool = False
    intrudes: bytes = b""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            reset(writer)
            return
        self._writers |= {writer, inner_writer}
        pumps = {
            asyncio.ensure_future(self._pump(reader, inner_writer, is_reply=False)),
            asyncio.ensure_future(self._pump(inner_reader, writer, is_reply=True)),
        }
        self._tasks |= pumps
        await asyncio.wait(pumps)
        self._tasks -= pumps
        self._writers -= {writer, inner_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.swallows:
                    continue
                if self.cuts and is_reply:
                    writer.write(data[: len(data) // 2])
                    await asyncio.sleep(0)
                    reset(writer)
                    return
                if is_reply:
                    data, self.intrudes = self.intrudes + data, b""
                writer.write(data)
        writer.close()

    async def close(self) -> None:
        """End every connection."""
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    door = writer.get_extra_info("socket")
    door.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def proxied(target: int) -> AsyncIterator[Proxy]:
    """A proxy before the port `target` until the block ends."""
    proxy = Proxy(target)
    door = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = door.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        door.close()
        await proxy.close()
        await door.wait_closed()
