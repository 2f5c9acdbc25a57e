"""Requests per minute of what no generation counts: other work, and requests that are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from fastapi import Depends, Request, params
from starlette.types import Scope

from app.api.services import Services
from app.errors import RateLimited
from app.tenancy.auth.principal import Principal

REFUSALS = frozenset({400, 404, 409, 412, 413, 415, 422})
"""Statuses of requests that are refused for what they say."""

_COUNTED = "counted"


async def count_request(request: Request) -> None:
    """One of the tenant's requests per minute, for what no generation counts; RateLimited."""
    await _count(request.scope)


COUNTED: Sequence[params.Depends] = (Depends(count_request),)
"""Further `dependencies` of a route that is counted without generating."""


def check_requests_left(scope: Scope) -> None:
    """RateLimited if the tenant has no request left; costs nothing and counts nothing."""
    found = _caller(scope)
    if found is not None:
        services, principal = found
        services.limiter.check(principal.tenant, principal.limits, rows=0)


async def count_refusal(scope: Scope) -> None:
    """Count a request that was refused, unless it is counted already."""
    with contextlib.suppress(RateLimited):
        await _count(scope)


async def _count(scope: Scope) -> None:
    found = _caller(scope)
    if found is None or scope["state"].get(_COUNTED):
        return
    services, principal = found
    scope["state"][_COUNTED] = True
    reservation = await services.limiter.reserve(
        principal.tenant, principal.limits, tokens=0, rows=0
    )
    reservation.settle(0)


def _caller(scope: Scope) -> tuple[Services, Principal] | None:
    state = scope.get("state", {})
    services, principal = state.get("services"), state.get("principal")
    if isinstance(services, Services) and isinstance(principal, Principal):
        return services, principal
    return None
