"""What the audit log hears of a request: who asks for what, and how it ends."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope, Send

from app.api.errors import error_response
from app.errors import PolyprefixError, Unavailable
from app.tenancy.audit.log import AuditedCall, AuditLog, printable
from app.tenancy.auth.principal import Principal

_DENIED = (401, 403, 429)
_NO_ROUTE = (404, 405)


def audited_call(scope: Scope, log: AuditLog) -> AuditedCall:
    """The request as the audit log sees it, the same for the route and for its reply.

    It is made when it is first needed, once the caller and the route are known.
    """
    state = scope.setdefault("state", {})
    call: AuditedCall | None = state.get("audited_call")
    if call is None:
        principal: Principal | None = state.get("principal")
        client, endpoint = scope.get("client"), scope.get("endpoint")
        kid = None if principal is None else principal.kid
        peer = str(client[0]) if client else None
        target = scope.get("path_params", {})
        facts = {
            "action": None if endpoint is None else endpoint.__name__,
            "kid": kid,
            "target": {name: printable(str(value)) for name, value in target.items()},
            "request_id": scope.get("request_id"),
            "peer": peer,
        }
        tenant = "" if principal is None else principal.tenant
        call = state["audited_call"] = AuditedCall(log, facts, tenant, kid, peer)
    return call


class AuditedSend:
    """A `send` that lets no call which changes something be answered before it is on record."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        """ASGI."""
        if message["type"] == "http.response.start" and message["status"] < 400:
            error = await _record_success(self._scope)
            if error is not None:
                self._is_replaced = True
                await error_response(error, self._scope)(self._scope, self._receive, self._send)
        if not self._is_replaced:
            await self._send(message)


async def _record_success(scope: Scope) -> PolyprefixError | None:
    """Sees to the record of a call that is about to succeed; the error if there can be none."""
    log, writes = scope["state"]["audit"], scope["state"]["workers"].writes
    call = audited_call(scope, log)
    try:
        await writes.finish(call.tenant, log.granted, call)
    except PolyprefixError:
        if call.link is None:
            return Unavailable("the audit log cannot be written; nothing was changed")
    return None


async def record_refusal(scope: Scope, status: int) -> None:
    """Records a call that is about to be refused, or counts it among others."""
    state = scope.get("state", {})
    log = state.get("audit")
    if log is None:
        return  # the server is starting
    route, call, code = scope.get("route"), audited_call(scope, log), scope.get("error_code")
    if route is None or status == 405 or not call.tenant:
        if status in _DENIED or (call.tenant and status not in _NO_ROUTE):
            log.count(call, status, code)
    elif getattr(route, "audited", False) or status == 403:
        try:
            await state["workers"].writes.finish(call.tenant, log.refused, call, status, code)
        except PolyprefixError:  # too many wait to be recorded
            log.count(call, status, code)
