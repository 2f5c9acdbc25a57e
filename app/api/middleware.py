"""ASGI layers around the app: request ids and metrics; bodies bounded before they are parsed."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response
from app.api.metrics import Metrics
from app.errors import FileTooLarge, PolyprefixError, UnsupportedMediaType

_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,128}")
_UPLOAD = re.compile(r"/v1/prefixes/[^/]+/versions")


class Observe:
    """Gives every request an id (`x-request-id`), counts and times it."""

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics | None]) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500
        request_id = scope["request_id"] = f"req-{secrets.token_hex(12)}"
        shown = _client_id(scope) or request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", shown.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            metrics = self._metrics()
            if metrics is not None:
                route = getattr(scope.get("route"), "path", "unmatched")
                method = scope["method"] if route != "unmatched" else "any"
                metrics.http_requests.labels(route, method, str(status)).inc()
                metrics.http_seconds.labels(route).observe(time.monotonic() - started)


class BoundBodies:
    """Refuses bodies that are too large, compressed or multipart, before anything parses them.

    Bodies are read here, counted, and replayed to the app; uploads are left to their route, which
    counts them while it streams them to disk.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            _check_encoding(headers)
            if _UPLOAD.fullmatch(scope["path"]):
                await self._app(scope, receive, send)
                return
            body, gone = await self._read(headers, receive)
        except PolyprefixError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        if not gone:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> tuple[bytes, bool]:
        """The whole body, and whether the client went away while sending it."""
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"", True
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts), False

    def _too_large(self) -> FileTooLarge:
        return FileTooLarge(f"the body is larger than {self._max_bytes} bytes")


def _check_encoding(headers: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise UnsupportedMediaType("compressed bodies are not taken; send the body as it is")
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        raise UnsupportedMediaType("multipart bodies are not taken; send JSON or the raw file")


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
