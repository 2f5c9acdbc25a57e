"""The web server's process: bounded connections, logs, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from app.errors import PolyprefixError
from app.runtime.connections import Connections
from app.runtime.http_protocol import BoundedConfig, BoundedHttpProtocol

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)

MAX_CONNECTIONS = 1000
"""Open connections where nothing else is said."""

KEEP_ALIVE_S = 75
"""How long an idle connection stays open between two requests."""

CLOSE_TIMEOUT_S = 5
"""How long connections get to close once nothing is computed for them any more."""


class Server(uvicorn.Server):
    """Uvicorn that says when it is ready, drains before it closes, and then exits with 0.

    `lifespan` is entered before the door opens; what it raises ends `run`. `ready` is called when
    requests are accepted; `drain` ends when the running ones have. The first SIGINT or SIGTERM
    drains: what runs is finished, what is new is still accepted and told so. A second one closes
    without waiting, and a third is no longer caught.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        lifespan: AbstractAsyncContextManager[Any],
        ready: Callable[[], None],
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self._context = lifespan
        self._ready = ready
        self._drain = drain
        self._state: Mapping[str, Any] = {}

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve between the lifespan's two ends."""
        async with self._context as state:
            self._state = state or {}
            await super().serve(sockets)
        logger.info("stopped")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Hand the lifespan's state to every request; open the door and say so."""
        self.lifespan.state.update(self._state)
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain with the door open, so that new requests get an answer; then close."""
        logger.info("stopping: %d requests run and may finish", len(self.server_state.tasks))
        drain = asyncio.ensure_future(self._drain())
        while not drain.done() and not self.force_exit:
            await asyncio.wait({drain}, timeout=0.1)
        drain.cancel()
        (outcome,) = await asyncio.gather(drain, return_exceptions=True)
        if isinstance(outcome, Exception):
            logger.error("draining failed: %s", outcome)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """First signal: drain. Second: close. Third: whatever the system does."""
        if self.should_exit:
            self.force_exit = True
            for name in SIGNALS:
                signal.signal(name, signal.SIG_DFL)
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; unlike uvicorn, do not raise them again afterwards."""
        before = {name: signal.signal(name, self.handle_exit) for name in SIGNALS}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and refuses connections until a server listens on it.

    PolyprefixError if the address cannot be bound; nothing has been loaded yet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        door = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PolyprefixError(f"cannot listen on {host}: {error.strerror}") from error
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError as error:
        door.close()
        raise PolyprefixError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return door


def configuration(
    app: Any, trusted_proxies: str | None = None, *, connections: Connections | None = None
) -> BoundedConfig:
    """How uvicorn runs here: one process, no websockets, connections counted in `connections`.

    Forwarding headers are believed of `trusted_proxies`, addresses and networks, and no others.
    """
    counted = connections or Connections(MAX_CONNECTIONS, MAX_CONNECTIONS, trusted_proxies)
    config = BoundedConfig(
        app,
        http=BoundedHttpProtocol,
        backlog=counted.backlog,
        loop="uvloop",
        ws="none",
        lifespan="off",
        workers=1,
        access_log=False,
        log_config=None,
        proxy_headers=trusted_proxies is not None,
        forwarded_allow_ips=trusted_proxies or "",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
    )
    config.connections = counted
    return config
