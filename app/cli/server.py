"""The web server's process: bounded request heads, logs, and an orderly end.

Knows uvicorn and an ASGI application; knows nothing of prefixes, models or settings.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""A request line with its headers; beyond it the connection ends with 431."""

CLIENT_TIMEOUT_S = 30.0
"""How long a client may take over a whole request head, pause in a body, or not read a reply."""

KEEP_ALIVE_S = 75
"""How long an idle connection stays open between two requests."""

CLOSE_TIMEOUT_S = 5
"""How long connections get to close once nothing is computed for them any more."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 in which no client can send an endless head, fall silent, or stop reading.

    The parser by itself buffers a header of any size, and the transport waits for ever.
    """

    _write_timer: asyncio.TimerHandle | None = None
    _timer: asyncio.TimerHandle | None = None
    _in_body = False
    _head_bytes = 0
    _progress = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first head."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock."""
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; count the bytes of a head that is not complete yet."""
        if self._in_body or self._timer is None:
            self._start_timer()
        progress = self._progress
        super().data_received(data)
        if progress != self._progress or self._in_body:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        """The head is whole: from here on the body's pauses are timed."""
        self._progress += 1
        self._head_bytes = 0
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole: the client owes nothing."""
        self._progress += 1
        self._in_body = False
        self._stop_timer()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read what it asked for: it has a while to go on."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(CLIENT_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read on."""
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(CLIENT_TIMEOUT_S, self._on_silence)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_silence(self) -> None:
        if self._in_body and self.flow.read_paused:  # it is us who do not read
            self._start_timer()
        else:
            self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
        self.transport.close()


State = dict[str, Any]
"""What the application's lifespan has yielded."""


class Server(uvicorn.Server):
    """Uvicorn that says when it is ready, drains before it closes, and then exits with 0.

    `ready` gets the state and the port that was bound; `drain` ends when the running requests
    have. The first SIGINT or SIGTERM drains: what runs is finished, what is new is still accepted
    and told so. A second one ends the process at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        ready: Callable[[State, int], None],
        drain: Callable[[State], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._drain = drain

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Start, then report the port that was bound."""
        await super().startup(sockets)
        if self.started:
            self._ready(self.lifespan.state, int(self.servers[0].sockets[0].getsockname()[1]))

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Drain with the door open, so that new requests get an answer; then close."""
        drain = asyncio.ensure_future(self._drain(self.lifespan.state))
        while not drain.done() and not self.force_exit:
            await asyncio.wait({drain}, timeout=0.1)
        drain.cancel()
        (outcome,) = await asyncio.gather(drain, return_exceptions=True)
        if isinstance(outcome, Exception):
            logger.error("draining failed: %s", outcome)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """First signal: drain. Second: leave at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; unlike uvicorn, do not raise them again afterwards."""
        before = {
            name: signal.signal(name, self.handle_exit) for name in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def configuration(app: Any, *, host: str, port: int) -> uvicorn.Config:
    """How uvicorn runs here: one process, no websockets, no trust in proxy headers."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="on",
        workers=1,
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
    )


def configure_logging(level: str) -> None:
    """One line per event on stderr; the web server speaks up from WARNING."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            "loggers": {"uvicorn": {"level": "WARNING"}},
        }
    )
