"""`/v1/prefixes/{name}/publication` and `/v1/published`: prefixes that tenants let others use.

Those others call them `acme/e2e`, with any alias or digest, alone or in compositions. They can't
download, list or change versions.
"""

from __future__ import annotations

from fastapi import Response

from app.api.dependencies import CallerDep, RegistryDep
from app.api.routes.prefixes.prefixes import Cursor, Limit
from app.api.routing import Router
from app.api.schemas.prefixes import (
    PublicationBody,
    PublicationDeleted,
    PublicationReply,
    PublishedPage,
    PublishedReply,
)
from app.tenancy.auth.principal import Scope

router = Router("publications")

_PATH = "/v1/prefixes/{name}/publication"


@router.route("GET", _PATH, answers=PublicationReply, scopes=[Scope.PREFIXES_READ])
async def get_publication(name: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """Who may use the prefix besides its owner."""
    found = await caller.read(registry.publications.get, caller.tenant, name)
    return PublicationReply.of(found).response()


@router.route("PUT", _PATH, answers=PublicationReply, scopes=[Scope.PREFIXES_WRITE])
async def set_publication(
    name: str, body: PublicationBody, registry: RegistryDep, caller: CallerDep
) -> Response:
    """Let these tenants use the prefix, or everyone, and nobody else any more."""
    publish = registry.publications.set
    made = await caller.write(publish, caller.tenant, name, body.tenants, everyone=body.everyone)
    return PublicationReply.of(made).response()


@router.route("DELETE", _PATH, answers=PublicationDeleted, scopes=[Scope.PREFIXES_WRITE])
async def delete_publication(name: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """Let nobody else use the prefix any more; rows that run finish with it."""
    await caller.write(registry.publications.set, caller.tenant, name, (), everyone=False)
    return PublicationDeleted(name=name).response()


@router.route(
    "GET",
    "/v1/published",
    answers=PublishedPage,
    scopes=[(Scope.GENERATE, Scope.PREFIXES_READ)],
    errors=[404],
)
async def list_published(
    registry: RegistryDep, caller: CallerDep, cursor: Cursor = None, limit: Limit = 20
) -> Response:
    """What others publish to the caller, in the order in which it was made, a page at a time."""
    page = await caller.read(registry.publications.offered, caller.tenant, cursor, limit)
    data = [PublishedReply.of(prefix, id=f"{prefix.tenant}/{prefix.name}") for prefix in page.items]
    return PublishedPage.of(page, data=data).response()
