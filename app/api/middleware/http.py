"""The outermost ASGI layer: request ids, metrics, the access log, and what follows a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from contextvars import ContextVar
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import internal_error
from app.api.middleware.audit import record_refusal
from app.errors import RateLimited, RequestCancelled

ACCESS = "polyprefix.access"
"""The logger of the access log: one line per request, without queries, bodies, prompts or keys."""

QUIET = ("/health/live", "/health/ready", "/metrics")
"""Paths that are asked again and again by machines: logged at DEBUG."""

_COUNTED_REFUSALS = frozenset({400, 404, 409, 412, 413, 415, 422})
"""Statuses of requests that are refused for what they say, and count as requests."""
_CLIENT_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_LINGER_BYTES = 1 << 20
"""How much of a body is read and dropped once its request is refused; times four with a key."""
_LINGER_S = 5.0
"""How long a client may take over the rest of a body that is refused."""
_COUNTED = "counted"
_MAX_PATH = 256
_PLAIN = re.compile(r"[!-~]*")
_SAFE = "/:@!$&'()*+,;=-._~"

_log = logging.getLogger(ACCESS)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request() -> str | None:
    """The id of the request that is served here, if one is; all its log lines carry it."""
    return _request_id.get()


async def count_request(scope: Scope) -> None:
    """Counts the request as one of its tenant's, unless it is counted already; RateLimited."""
    state = scope["state"]
    if state.get(_COUNTED):
        return
    state[_COUNTED] = True
    principal = state["principal"]
    reservation = await state["limiter"].reserve(
        principal.tenant, principal.limits, tokens=0, rows=0
    )
    reservation.settle(0)


class RequestMiddleware:
    """Gives every request an id (`x-request-id`), counts and times it, and answers in any case."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.status:  # the reply has begun; the server cuts the connection
                raise
            await internal_error(error, scope)(scope, exchange.receive, exchange.send)
        finally:
            exchange.end()


class _Exchange:
    """One request and its reply, as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._started = time.monotonic()
        self.status, self._size = 0, 0
        self._left = self._body_is_read = self._lingers = False
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self._client_id = given if _CLIENT_ID.fullmatch(given) else None
        request_id = scope["request_id"] = f"req-{secrets.token_hex(12)}"
        self._shown_id = self._client_id or request_id.encode()
        _request_id.set(request_id)

    async def receive(self) -> Message:
        """ASGI's `receive`."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left = self._body_is_read = True
        elif not message.get("more_body", False):
            self._body_is_read = True
        return message

    async def send(self, message: Message) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self._shown_id)]
            if self.status >= 400:
                await self._refuse()
                if self._lingers:
                    headers.append((b"connection", b"close"))
            message["headers"] = headers
        else:
            self._size += len(message.get("body", b""))
            if self._lingers and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def end(self) -> None:
        """Counts the request by what the app defines: clients choose neither route nor method."""
        seconds = time.monotonic() - self._started
        status = self.status or (RequestCancelled.status if self._left else 500)
        scope = self._scope
        metrics = scope.get("state", {}).get("metrics")
        if metrics is not None:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = "any" if route == "unmatched" or status == 405 else scope["method"]
            metrics.http_requests.labels(route, method, str(status)).inc()
            metrics.http_seconds.labels(route).observe(seconds)
        level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
        if _log.isEnabledFor(level):
            fields = self._fields(status, seconds)
            _log.log(level, "%s", _Line(fields), extra={"access": fields})

    async def _refuse(self) -> None:
        """Sees to what a refusal leaves behind, before the client hears of it."""
        scope = self._scope
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and self.status in _COUNTED_REFUSALS:
            with contextlib.suppress(RateLimited):
                await count_request(scope)
        await record_refusal(scope, self.status)
        names = {name for name, _ in scope["headers"]}
        has_body = not names.isdisjoint((b"content-length", b"transfer-encoding"))
        self._lingers = has_body and not self._body_is_read

    async def _linger(self) -> None:
        """Lets the client finish sending within bounds.

        A connection that is closed while its client still sends often loses the answer too.
        """
        has_key = self._scope["state"].get("principal") is not None
        left = _LINGER_BYTES * (4 if has_key else 1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and not self._body_is_read:
                    left -= len((await self.receive()).get("body", b""))

    def _fields(self, status: int, seconds: float) -> dict[str, object]:
        """What the access log says."""
        scope = self._scope
        principal, client = scope.get("state", {}).get("principal"), scope.get("client")
        fields = {
            "method": scope["method"],
            "path": _shown(scope["path"]),
            "status": status,
            "ms": round(seconds * 1000, 1),
            "bytes": self._size,
            "client": _shown(client[0]) if client else "-",
            "tenant": principal.tenant if principal else "-",
        }
        if self._client_id is not None:
            fields["client_request_id"] = self._client_id.decode()
        return fields


class _Line:
    """The fields as text, made only where a line of text is written."""

    def __init__(self, fields: dict[str, object]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        named = dict(self._fields)
        head = f"{named.pop('method')} {named.pop('path')} {named.pop('status')}"
        return " ".join([head, *(f"{name}={value}" for name, value in named.items())])


def _shown(path: str) -> str:
    """A path in printable ASCII without blanks, cut if it is long."""
    cut = path[:_MAX_PATH]
    shown = cut if _PLAIN.fullmatch(cut) else quote(cut, safe=_SAFE, errors="replace")
    return shown if len(path) <= _MAX_PATH else shown + "…"
