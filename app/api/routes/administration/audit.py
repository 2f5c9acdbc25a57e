"""`GET /admin/audit`: what was changed and what was refused, of all tenants."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.dependencies import TenantDep, requires
from app.api.errors import StrictJSONResponse
from app.api.services import ServicesDep
from app.tenancy.audit.chain import list_records
from app.tenancy.auth.principal import Scope

router = APIRouter(dependencies=requires(Scope.ADMIN))

Seconds = Annotated[int | None, Query(ge=0, le=2**40)]


@router.get("/admin/audit")
async def list_audit(
    services: ServicesDep,
    caller: TenantDep,
    tenant: Annotated[str | None, Query(max_length=64)] = None,
    start: Seconds = None,
    end: Seconds = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Response:
    """Records of the audit log by time (seconds since 1970), a page at a time."""
    page = await services.workers.catalog.run(
        caller,
        list_records,
        services.registry.catalog,
        tenant=tenant,
        start=start or 0,
        end=end,
        cursor=cursor,
        limit=limit,
    )
    data = [dict(record) for record in page.items]
    return StrictJSONResponse({"object": "list", "data": data, "next_cursor": page.next_cursor})
