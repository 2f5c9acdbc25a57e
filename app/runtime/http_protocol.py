"""HTTP/1.1 connections with bounds: on heads, time, requests sent ahead and unread replies."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import cast

from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.runtime.connections import Connections

MAX_HEAD_BYTES = 64 * 1024
"""A request line with its headers; beyond it the connection ends with 431."""

CLIENT_TIMEOUT_S = 30.0
"""How long a client may take over a whole request head, pause in a body, or not read a reply."""

MIN_BODY_RATE = 4096
"""Bytes per second that a body must come at, on average; the client's timeout is the slack."""

MAX_PIPELINED = 16
"""Requests of one connection that are parsed before the one that runs is answered."""

MAX_UNPARSED_BYTES = 1 << 20
"""What may wait behind them; reading stops, so more can only come with each answer."""

LINGER_S = 1.0
"""How long what a refused client still sends is dropped, so that it does not lose the answer."""

PIECE_BYTES = 16 * 1024


class BoundedConfig(Config):
    """Uvicorn's configuration, and the connections that its protocols are counted in."""

    connections: Connections


class BoundedHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 in which no client can send an endless head, fall silent, trickle, or stop reading.

    Uvicorn by itself buffers a header of any size, waits for ever, and parses all that is sent
    ahead.
    """

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    _deadline = 0.0
    _in_body = False
    _head_bytes = 0
    _progress = 0
    _unparsed = b""
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, or end it; start the clock of the first head."""
        super().connection_made(transport)
        self._open = cast(BoundedConfig, self.config).connections
        if not self._open.admit(self, self.client[0] if self.client else None):
            content = _error_response(503, "overloaded", "too many connections; try again later")
            self.transport.write(content)
            self._close()
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock, and tell the request that runs; what waits behind it never starts."""
        self._open.forget(self)
        self._stop_timer()
        self._stop_write_timer()
        self._unparsed = b""
        self.pipeline.clear()
        super().connection_lost(exc)
        self._tell_running()  # uvicorn tells the request that was parsed last

    def shed(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what may be parsed now; the rest waits for answers."""
        if self._is_refused:
            return
        if self._unparsed:
            data = self._unparsed + data
            if len(data) > MAX_UNPARSED_BYTES:
                self._refuse(
                    429, "rate_limit_exceeded", "too many requests sent ahead; wait for answers"
                )
                return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Feed the parser piece by piece, until enough requests wait."""
        place = 0
        while place < len(data) and len(self.pipeline) < MAX_PIPELINED:
            if self._is_refused or self.transport.is_closing():
                return
            self._feed(data[place : place + PIECE_BYTES])
            place += PIECE_BYTES
        self._unparsed = data[place:]
        if self._unparsed:
            self.flow.pause_reading()

    def _feed(self, piece: bytes) -> None:
        """Count the bytes of a head that is not complete, and the time that a body's bytes buy."""
        now = self.loop.time()
        if self._timer is None:
            self._expect()
        elif self._in_body:
            earned = self._deadline + len(piece) / MIN_BODY_RATE
            self._deadline = min(earned, now + CLIENT_TIMEOUT_S)
        progress = self._progress
        super().data_received(piece)
        if progress != self._progress or self._in_body:
            return
        self._head_bytes += len(piece)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                431, "headers_too_large", f"the headers are larger than {MAX_HEAD_BYTES} bytes"
            )

    def on_message_begin(self) -> None:
        """A head begins: it must be whole in time."""
        super().on_message_begin()
        if self._timer is None:
            self._expect()

    def on_headers_complete(self) -> None:
        """The head is whole: from here on the body is timed."""
        self._progress += 1
        self._head_bytes = 0
        self._in_body = True
        self._deadline = self.loop.time() + CLIENT_TIMEOUT_S
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole: the client owes nothing."""
        self._progress += 1
        self._in_body = False
        self._stop_timer()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self._open.work(self)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start what waits; without anything the connection is idle."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
            return
        if self._unparsed:
            self._parse(self._unparsed)
        if self._running is None or self._running.response_complete:
            self._open.rest(self)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def pause_writing(self) -> None:
        """The client does not read what it asked for: it has a while to go on."""
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        """The client has read on."""
        if not (self._is_refused or self.transport.is_closing()):
            self._stop_write_timer()
        super().resume_writing()

    def _close(self) -> None:
        """Close once all is sent; a client that does not read it does not keep the connection."""
        self.transport.close()
        self._start_write_timer()

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(CLIENT_TIMEOUT_S, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expect(self) -> None:
        """From now on the client owes something."""
        self._deadline = self.loop.time() + CLIENT_TIMEOUT_S
        self._timer = self.loop.call_at(self._deadline, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        if self._in_body and self.flow.read_paused:  # it is us who do not read
            self._expect()
        elif self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._on_timer)
        else:
            self._refuse(408, "request_timeout", "the request was not received in time")

    def _tell_running(self) -> None:
        """The request that runs has lost its client."""
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Say why, unless an answer is on its way already; then end the connection."""
        self._stop_timer()
        self._unparsed = b""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        running = self._running
        has_begun = running and running.response_started and not running.response_complete
        self._tell_running()
        if has_begun:
            self._close()
            return
        self.transport.write(_error_response(status, code, message))
        self.transport.write_eof()
        self.flow.resume_reading()
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(LINGER_S, self.transport.abort)
        self._open.rest(self)


def _error_response(status: int, code: str, message: str) -> bytes:
    """A whole HTTP response that says so in OpenAI's shape."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    content = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + content
