"""`/v1/prefixes/{name}/aliases`: movable names for versions, with ETag, If-Match and rollback."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Response

from app.api.auth import TenantDep
from app.api.errors import StrictJSONResponse
from app.api.prefix_objects import alias_object
from app.api.schemas import AliasBody
from app.api.services import ServicesDep
from app.registry.records import Alias

router = APIRouter(prefix="/v1/prefixes/{name}/aliases/{alias}")

IfMatch = Annotated[str | None, Header(max_length=1024)]


@router.get("")
async def get_alias(name: str, alias: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """Where an alias points; its state is the ETag."""
    found = await asyncio.to_thread(services.registry.get_alias, tenant, name, alias)
    return _reply(name, found)


@router.put("")
async def set_alias(
    name: str,
    alias: str,
    body: AliasBody,
    services: ServicesDep,
    tenant: TenantDep,
    if_match: IfMatch = None,
) -> Response:
    """Point an alias at a version; with `If-Match` only if nobody moved it meanwhile."""
    moved = await asyncio.to_thread(
        lambda: services.registry.set_alias(tenant, name, alias, body.version, if_match=if_match)
    )
    return _reply(name, moved)


@router.post("/rollback")
async def rollback_alias(
    name: str, alias: str, services: ServicesDep, tenant: TenantDep, if_match: IfMatch = None
) -> Response:
    """Point an alias at the version before; again, further back."""
    moved = await asyncio.to_thread(
        lambda: services.registry.rollback_alias(tenant, name, alias, if_match=if_match)
    )
    return _reply(name, moved)


def _reply(name: str, alias: Alias) -> Response:
    return StrictJSONResponse(alias_object(name, alias), headers={"etag": alias.etag})
