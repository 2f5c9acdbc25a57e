"""ASGI layers around the app: request ids and metrics; bodies checked before they are parsed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response, internal_error
from app.api.metrics import Metrics
from app.api.middleware.access_log import begin_request, log_request
from app.api.middleware.body_scan import check_body
from app.api.middleware.request_rate import REFUSALS, check_requests_left, count_refusal
from app.errors import (
    FileTooLarge,
    PolyprefixError,
    RequestCancelled,
    UnsupportedMediaType,
)

_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LINGER_FACTOR = 4
"""How many times the largest body is read and dropped once it is refused."""
_LINGER_S = 5.0
"""How long a client may take over the rest of a body that is refused."""
_UPLOAD = re.compile(r"/v1/prefixes/[^/]+/versions")


class RequestMiddleware:
    """Gives every request an id (`x-request-id`), counts and times it, and answers in any case."""

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics | None]) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, size, left = time.monotonic(), 0, 0, False
        request_id = scope["request_id"] = f"req-{secrets.token_hex(12)}"
        client_id = _client_id(scope)
        shown = client_id or request_id
        begin_request(request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", shown.encode())]
            else:
                size += len(message.get("body", b""))
            await send(message)

        async def receive_noting() -> Message:
            nonlocal left
            message = await receive()
            left |= message["type"] == "http.disconnect"
            return message

        try:
            await self._app(scope, receive_noting, send_with_id)
        except Exception as error:
            if status:  # the reply has begun; the server cuts the connection
                raise
            await internal_error(error, scope["path"])(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            status = status or (RequestCancelled.status if left else 500)
            self._count(scope, status, seconds)
            log_request(scope, client_id=client_id, status=status, seconds=seconds, size=size)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """Label by what the app defines: clients choose neither route nor method."""
        metrics = self._metrics()
        if metrics is None:
            return
        route = getattr(scope.get("route"), "path", "unmatched")
        method = "any" if route == "unmatched" or status == 405 else scope["method"]
        metrics.http_requests.labels(route, method, str(status)).inc()
        metrics.http_seconds.labels(route).observe(seconds)


class BodyLimitMiddleware:
    """Refuses bodies that are too large, compressed or not JSON, before anything parses them.

    Bodies are read here, counted, and replayed to the app; uploads are left to their route, which
    counts them while it streams them to disk. A tenant whose requests are used up is refused before
    its body is looked at, and a request that is refused for what it says counts as one.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body = Body(receive)
        upload = _UPLOAD.fullmatch(scope["path"]) is not None
        send = _counting_refusals(scope, send)
        try:
            _check_encoding(headers)
            content = b"" if upload else await self._read(headers, body)
            if content:
                _check_json(headers)
                check_requests_left(scope)
                await check_body(content)
        except PolyprefixError as error:
            await refuse(error, scope, body, send, linger_bytes=_LINGER_FACTOR * self._max_bytes)
            return
        if not body.gone:
            await self._app(scope, receive if upload else _replay(content, receive), send)

    async def _read(self, headers: dict[bytes, bytes], body: Body) -> bytes:
        """The whole body, unless the client goes away while sending it."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while not body.complete:
            parts.append(await body.next())
            size += len(parts[-1])
            if size > self._max_bytes:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> FileTooLarge:
        return FileTooLarge(f"the body is larger than {self._max_bytes} bytes")


def _counting_refusals(scope: Scope, send: Send) -> Send:
    """A `send` that counts the request if it is answered with a refusal of its content."""

    async def send_counted(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in REFUSALS:
            await count_refusal(scope)
        await send(message)

    return send_counted


async def refuse(
    error: PolyprefixError, scope: Scope, body: Body, send: Send, *, linger_bytes: int
) -> None:
    """Answer at once, and let the client finish sending within bounds before the end.

    A connection that is closed while its client still sends often loses the answer too.
    """

    async def send_without_end(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        else:
            message["more_body"] = True
        await send(message)

    await error_response(error, scope["path"])(scope, body.receive, send_without_end)
    left = linger_bytes
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while left > 0 and not body.complete:
                left -= len(await body.next())
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class Body:
    """A request's body as it comes; `gone` says that the client left before it was `complete`."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.complete = self.gone = False

    async def next(self) -> bytes:
        """The next part; call only while it is not complete."""
        message = await self.receive()
        self.gone = message["type"] == "http.disconnect"
        self.complete = self.gone or not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part


def _check_encoding(headers: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise UnsupportedMediaType("compressed bodies are not taken; send the body as it is")
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        raise UnsupportedMediaType("multipart bodies are not taken; send JSON or the raw file")


def _check_json(headers: dict[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise UnsupportedMediaType("send the body as JSON, with content-type: application/json")


def _client_id(scope: Scope) -> str | None:
    """The client's own request id, if it may be echoed."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _CLIENT_ID.fullmatch(text) else None
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what the connection says."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
