"""Authentication: nobody gets in without a key, before any body is read or any route is chosen.

A path needs a valid key unless its route is open, also if there is no route. What a key allows is
then checked by the route.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import error_response
from app.api.routing import READING
from app.errors import PolyprefixError, Unavailable

_SCHEME = b"bearer "
_POLICY_VIOLATION = 1008
_MAX_PRESENTED = 512
"""Characters that are looked at; no key is as long."""


class AuthenticationMiddleware:
    """Finds out who sends a request and puts it into the request's state, as `principal`."""

    def __init__(self, app: ASGIApp, open_paths: Callable[[], Collection[str]]) -> None:
        """What `open_paths` gives once the first request comes may be read without a key."""
        self._app, self._open = app, open_paths()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        is_open = scope["type"] != "http" or (
            scope["path"] in self._open and scope["method"] in READING
        )
        if not is_open:
            try:
                await _authenticate(scope)
            except PolyprefixError as error:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _authenticate(scope: Scope) -> None:
    state, client = scope.setdefault("state", {}), scope.get("client")
    authentication = state.get("authentication")
    if authentication is None:
        raise Unavailable("the server is starting")
    # exactly one header may hold a key
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    presented = None
    if len(values) == 1 and values[0][: len(_SCHEME)].lower() == _SCHEME:
        presented = values[0][len(_SCHEME) :].strip()[:_MAX_PRESENTED].decode("latin-1")
    peer = str(client[0]) if client else "unknown"
    principal = authentication.authenticate_cached(presented, peer)
    if principal is None:
        principal = await state["workers"].keys.run(
            peer, authentication.authenticate, presented, peer
        )
    state["principal"] = principal
