"""`GET /admin/audit`: what was changed and what was refused, of all tenants."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from app.api.dependencies import CallerDep, RegistryDep
from app.api.routing import Router
from app.api.schemas.tenants import AuditPage, AuditRecordReply
from app.tenancy.audit.chain import list_records
from app.tenancy.auth.principal import Scope

router = Router("operations")

Seconds = Annotated[int | None, Query(ge=0, le=2**40)]


@router.route("GET", "/admin/audit", answers=AuditPage, scopes=[Scope.ADMIN])
async def list_audit(
    registry: RegistryDep,
    caller: CallerDep,
    tenant: Annotated[str | None, Query(max_length=64)] = None,
    start: Seconds = None,
    end: Seconds = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Response:
    """Records of the audit log by time (seconds since 1970), a page at a time."""
    page = await caller.read(
        list_records,
        registry.catalog,
        tenant=tenant,
        start=start or 0,
        end=end,
        cursor=cursor,
        limit=limit,
    )
    data = [AuditRecordReply(**record) for record in page.items]
    return AuditPage.of(page, data=data).response()
