"""Requests per minute of what no generation counts: other work, and requests that are refused."""

from __future__ import annotations

from starlette.types import Scope

_COUNTED = "counted"


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
