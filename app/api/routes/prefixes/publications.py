"""`/v1/prefixes/{name}/publication` and `/v1/published`: prefixes that tenants let others use.

Those others call them `acme/e2e`, with any alias or digest, alone or in compositions. They can't
download, list or change versions.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.dependencies import ActorDep, TenantDep, requires
from app.api.errors import StrictJSONResponse
from app.api.routes.prefixes.prefixes import Cursor, Limit
from app.api.schemas.generation import PublicationBody
from app.api.schemas.prefixes import publication_object, published_object
from app.api.services import ServicesDep
from app.tenancy.auth.principal import Scope

router = APIRouter()

_PATH = "/v1/prefixes/{name}/publication"


@router.get(_PATH, dependencies=requires(Scope.PREFIXES_READ))
async def get_publication(name: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """Who may use the prefix besides its owner."""
    found = await services.workers.catalog.run(
        tenant, services.registry.publications.get, tenant, name
    )
    return StrictJSONResponse(publication_object(found))


@router.put(_PATH, dependencies=requires(Scope.PREFIXES_WRITE))
async def set_publication(
    name: str, body: PublicationBody, services: ServicesDep, tenant: TenantDep, actor: ActorDep
) -> Response:
    """Let these tenants use the prefix, or everyone, and nobody else any more."""
    made = await services.workers.writes.finish(
        tenant,
        services.registry.publications.set,
        tenant,
        name,
        body.tenants,
        everyone=body.everyone,
        actor=actor,
    )
    return StrictJSONResponse(publication_object(made))


@router.delete(_PATH, dependencies=requires(Scope.PREFIXES_WRITE))
async def delete_publication(
    name: str, services: ServicesDep, tenant: TenantDep, actor: ActorDep
) -> Response:
    """Let nobody else use the prefix any more; rows that run finish with it."""
    await services.workers.writes.finish(
        tenant, services.registry.publications.withdraw, tenant, name, actor=actor
    )
    return StrictJSONResponse({"object": "prefix.publication", "name": name, "deleted": True})


@router.get("/v1/published", dependencies=requires(Scope.GENERATE, Scope.PREFIXES_READ))
async def list_published(
    services: ServicesDep, tenant: TenantDep, cursor: Cursor = None, limit: Limit = 20
) -> Response:
    """What others publish to the caller, in the order in which it was made, a page at a time."""
    page = await services.workers.catalog.run(
        tenant, services.registry.publications.offered, tenant, cursor, limit
    )
    data = [published_object(prefix) for prefix in page.items]
    return StrictJSONResponse({"object": "list", "data": data, "next_cursor": page.next_cursor})
