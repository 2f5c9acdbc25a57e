"""An ASGI layer that tells the audit log who asks for what, and how it ended."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_response
from app.api.services import Services
from app.errors import PolyprefixError, Unavailable
from app.tenancy.audit.log import AuditedCall, AuditLog, printable
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


def audited_call(scope: Scope, log: AuditLog) -> AuditedCall:
    """The request as the audit log sees it, the same for the route and for this middleware.

    It is made when it is first needed, once the caller and the route are known.
    """
    state = scope.setdefault("state", {})
    call: AuditedCall | None = state.get("audited_call")
    if call is None:
        principal, client = _principal(scope), scope.get("client")
        kid = None if principal is None else principal.kid
        peer = str(client[0]) if client else None
        target = scope.get("path_params", {})
        facts = {
            "action": _action(scope),
            "kid": kid,
            "target": {name: printable(str(value)) for name, value in target.items()},
            "request_id": scope.get("request_id"),
            "peer": peer,
        }
        tenant = "" if principal is None else principal.tenant
        call = state["audited_call"] = AuditedCall(log, facts, tenant, kid, peer)
    return call


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
        begun = replaced = False

        async def send_audited(message: Message) -> None:
            nonlocal begun, replaced
            if message["type"] == "http.response.start" and not begun:
                begun = True
                error = await _conclude(services, scope, message["status"])
                if error is not None:
                    replaced = True
                    await error_response(error, scope["path"])(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_audited)
        except Exception:
            if not begun:
                await _conclude(services, scope, 500)
            raise


async def _conclude(services: Services, scope: Scope, status: int) -> PolyprefixError | None:
    """Sees to the call's record; the error to answer instead if there can be none."""
    action = _action(scope)
    changes = action is not None and scope["method"] in CHANGING and action not in UNRECORDED
    if status < 400 and not changes:
        return None
    log, writes = services.audit, services.workers.writes
    call, code = audited_call(scope, log), scope.get("error_code")
    if status < 400:
        try:
            await writes.finish(call.tenant, log.granted, call)
        except PolyprefixError:
            if call.link is None:
                return Unavailable("the audit log cannot be written; nothing was changed")
    elif action is None or not call.tenant:
        if status in _DENIED or (call.tenant and status not in _NO_ROUTE):
            log.count(call, status, code)
    elif changes or status == 403:
        try:
            await writes.finish(call.tenant, log.refused, call, status, code)
        except PolyprefixError:  # too many wait to be recorded
            log.count(call, status, code)
    return None


def _action(scope: Scope) -> str | None:
    """The name of the route, None if none was reached."""
    endpoint = scope.get("endpoint")
    return None if endpoint is None else str(endpoint.__name__)


def _principal(scope: Scope) -> Principal | None:
    principal = scope["state"].get("principal")
    return principal if isinstance(principal, Principal) else None
