"""An ASGI layer that gives the audit log its calls: who asks for what, and how it ended.

Knows nothing about how records are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response
from app.api.services import Services
from app.errors import PolyprefixError, Unavailable
from app.tenancy.audit.chain import Link
from app.tenancy.audit.context import audit_context, printable
from app.tenancy.auth.principal import Principal

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods whose routes leave a record."""

UNRECORDED = frozenset(
    {
        "create_completion",
        "generate",
        "generate_stream",
        "compat_generate",
        "tokenize",
        "detokenize",
        "evaluate_version",
        "compare_versions",
    }
)
"""The names of routes that have such a method and change nothing."""

_DENIED = (401, 403, 429)
_NO_ROUTE = (404, 405)


class HttpCall:
    """One request as the audit log sees it; what the router finds is known once it has."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.link: Link | None = None

    @property
    def action(self) -> str | None:
        """The name of the route, None if none was reached."""
        endpoint = self._scope.get("endpoint")
        return None if endpoint is None else str(endpoint.__name__)

    @property
    def mutates(self) -> bool:
        """As in `Call`."""
        action = self.action
        return action is not None and self._scope["method"] in CHANGING and action not in UNRECORDED

    @property
    def tenant(self) -> str:
        """As in `Call`."""
        principal = self._principal
        return "" if principal is None else principal.tenant

    @property
    def kid(self) -> str | None:
        """As in `Call`."""
        principal = self._principal
        return None if principal is None else principal.kid

    @property
    def peer(self) -> str | None:
        """As in `Call`."""
        client = self._scope.get("client")
        return str(client[0]) if client else None

    @property
    def code(self) -> str | None:
        """The code of the error that it was answered with."""
        code: str | None = self._scope.get("error_code")
        return code

    @property
    def facts(self) -> Mapping[str, Any]:
        """As in `Call`."""
        target = self._scope.get("path_params", {})
        return {
            "action": self.action,
            "kid": self.kid,
            "target": {name: printable(str(value)) for name, value in target.items()},
            "request_id": self._scope.get("request_id"),
            "peer": self.peer,
        }

    @property
    def _principal(self) -> Principal | None:
        principal = self._scope.get("state", {}).get("principal")
        return principal if isinstance(principal, Principal) else None


class AuditMiddleware:
    """Lets no call that changes something be answered before it is on record."""

    def __init__(self, app: ASGIApp, services: Callable[[], Services | None]) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        services = self._services()
        if scope["type"] != "http" or services is None:
            await self._app(scope, receive, send)
            return
        call = HttpCall(scope)
        begun = replaced = False

        async def send_audited(message: Message) -> None:
            nonlocal begun, replaced
            if message["type"] == "http.response.start" and not begun:
                begun = True
                error = await _conclude(services, call, message["status"])
                if error is not None:
                    replaced = True
                    await error_response(error, scope["path"])(scope, receive, send)
            if not replaced:
                await send(message)

        with audit_context(call):
            try:
                await self._app(scope, receive, send_audited)
            except Exception:
                if not begun:
                    await _conclude(services, call, 500)
                raise


async def _conclude(services: Services, call: HttpCall, status: int) -> PolyprefixError | None:
    """Sees to the call's record; the error to answer instead if there can be none."""
    log, writes = services.audit, services.workers.writes
    if status < 400:
        if not call.mutates:
            return None
        try:
            await writes.finish(call.tenant, log.granted, call)
        except PolyprefixError:
            if call.link is None:
                return Unavailable("the audit log cannot be written; nothing was changed")
        return None
    if call.action is None or not call.tenant:
        if status in _DENIED or (call.tenant and status not in _NO_ROUTE):
            log.count(call, status, call.code)
    elif call.mutates or status == 403:
        try:
            await writes.finish(call.tenant, log.refused, call, status, call.code)
        except PolyprefixError:  # too many wait to be recorded
            log.count(call, status, call.code)
    return None
