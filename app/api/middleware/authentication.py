"""The gate: nobody gets in without a key, before any of the body is read or any route is chosen.

Deny by default: what is not on the list of open paths needs a valid key, routes that do not exist
included. What a key allows is then each route's to say. Knows nothing about scopes or tenants.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import error_response
from app.api.middleware.http import Body, refuse
from app.api.services import Services
from app.errors import PolyprefixError, Unavailable
from app.tenancy.auth.principal import Principal

OPEN = frozenset({"/health/live", "/health/ready", "/ping"})
"""All that may be read without a key, compared with the path that the router sees, in full."""

_READING = ("GET", "HEAD")
_SCHEME = b"bearer "
_NOT_HERE = 1008
_MAX_PRESENTED = 512
"""Characters that are looked at; no key is as long."""
_LINGER_BYTES = 1 << 20


class AuthenticationMiddleware:
    """Finds out who sends a request and puts it into the request's state, as `principal`."""

    def __init__(self, app: ASGIApp, services: Callable[[], Services | None]) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _NOT_HERE})
            return
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            principal = await self._admit(scope)
        except PolyprefixError as error:
            await _refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> Principal:
        services = self._services()
        if services is None:
            raise Unavailable("the server is starting")
        presented, peer = _presented(scope), _peer(scope)
        principal = services.authentication.authenticate_cached(presented, peer)
        if principal is not None:
            return principal
        return await services.workers.keys.run(
            peer, services.authentication.authenticate, presented, peer
        )


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN and scope["method"] in _READING


async def _refuse(error: PolyprefixError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without the body, if there is one; then the connection is of no more use."""
    names = {name for name, _ in scope["headers"]}
    if names.isdisjoint((b"content-length", b"transfer-encoding")):
        await error_response(error, scope["path"])(scope, receive, send)
    else:
        await refuse(error, scope, Body(receive), send, linger_bytes=_LINGER_BYTES)


def _presented(scope: Scope) -> str | None:
    """What stands behind `Bearer`; None if nothing does, or more than one header speaks."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
        return None
    token: bytes = values[0][len(_SCHEME) :].strip()
    return token[:_MAX_PRESENTED].decode("latin-1")


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
