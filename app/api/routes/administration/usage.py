"""`GET /v1/usage`: what the caller's tenant has used."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Response

from app.api.dependencies import CallerDep, RegistryDep, TenantsDep, UsageDep
from app.api.routing import Router
from app.api.schemas.tenants import UsagePage, UsageReply
from app.errors import InvalidRequest
from app.tenancy.auth.principal import Scope, insufficient_scope
from app.tenancy.usage.ledger import HOUR
from app.tenancy.usage.report import GROUPS, UsageQuery, UsageRow, read_usage

router = Router("usage")

Time = Annotated[str | None, Query(max_length=40)]

_MAX_TIME = 2**40
_DEFAULT_S = 30 * 86_400
_SECONDS = re.compile(r"[0-9]{1,13}", re.ASCII)
_PERIODS = {"hour": HOUR, "day": 86_400}


@router.route("GET", "/v1/usage", answers=UsagePage, errors=[403])
async def get_usage(
    registry: RegistryDep,
    tenants: TenantsDep,
    usage: UsageDep,
    caller: CallerDep,
    start: Time = None,
    end: Time = None,
    group_by: Annotated[str | None, Query(max_length=64)] = None,
    prefix: Annotated[str | None, Query(max_length=1100)] = None,
    tenant: Annotated[str | None, Query(max_length=64)] = None,
    cursor: Annotated[str | None, Query(max_length=4096)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Response:
    """Requests, tokens and mean times of whole hours, up to the last request.

    `start` and `end` are seconds since 1970 or RFC 3339, the last 30 days if not given; the hour
    of `start` counts whole, the one that begins at `end` does not. `group_by` is a list of `hour`,
    `day`, `prefix`, `version`; without it there is one row. Another `tenant` needs an admin key;
    without one nobody sees what a tenant of the same id used that was deleted before.
    """
    is_admin = Scope.ADMIN in caller.principal.scopes
    if tenant not in (None, caller.tenant) and not is_admin:
        raise insufficient_scope([Scope.ADMIN])
    now = int(time.time())
    since = _read_time(start, "start", now - _DEFAULT_S)
    if not is_admin:
        own = await caller.read(tenants.get, caller.tenant)
        since = max(since, own.created_at)
    query = UsageQuery(
        tenant or caller.tenant,
        start=since // HOUR * HOUR,
        end=_read_time(end, "end", now + HOUR),
        groups=_read_groups(group_by),
        prefix=prefix,
    )
    page = await caller.read(read_usage, registry.catalog, usage, query, cursor, limit)
    data = [_usage_reply(row) for row in page.items]
    return UsagePage.of(page, data=data).response()


def _usage_reply(row: UsageRow) -> UsageReply:
    sums, group = row.sums, dict(row.group)
    well = sums.requests - sums.failed
    shown: dict[str, Any] = {name: group[name] for name in ("prefix", "version") if name in group}
    period = next((name for name in ("hour", "day") if name in group), None)
    if period is not None:
        start = int(group[period])
        shown |= {"start": start, "end": start + _PERIODS[period]}
    return UsageReply.of(
        sums,
        mean_first_token_ms=round(sums.first_token_ms / well, 3) if well else None,
        mean_total_ms=round(sums.total_ms / well, 3) if well else None,
        **shown,
    )


def _read_groups(text: str | None) -> tuple[str, ...]:
    wanted = [] if not text else text.split(",")
    unknown = [name for name in wanted if name not in GROUPS]
    if unknown:
        raise InvalidRequest(f"group_by is a list of {', '.join(GROUPS)}", param="group_by")
    return tuple(name for name in GROUPS if name in wanted)


def _read_time(text: str | None, param: str, default: int) -> int:
    """Seconds since 1970; InvalidRequest if it is neither that nor a date with a time zone."""
    if text is None:
        return default
    if _SECONDS.fullmatch(text):
        return _bounded(int(text), param)
    try:
        # a plus that was not escaped arrives as a blank
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest(
            f"{param} is in seconds since 1970, or a date as 2026-11-25T00:00:00Z", param=param
        )
    return _bounded(int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()), param)


def _bounded(seconds: int, param: str) -> int:
    if not 0 <= seconds <= _MAX_TIME:
        raise InvalidRequest(f"{param} is too early or too late", param=param)
    return seconds
