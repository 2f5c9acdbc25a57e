"""`/v1/prefixes/{name}/aliases`: movable names for versions, with ETag, If-Match and rollback.

An alias may be split over several versions, to try a new one on a part of the users.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from app.api.dependencies import ActorDep, PrincipalDep, TenantDep, requires
from app.api.errors import StrictJSONResponse
from app.api.gate_check import version_score, write_when_scored
from app.api.schemas.generation import AliasBody
from app.api.schemas.prefixes import alias_object, change_object
from app.api.services import ServicesDep
from app.registry.quality_gates import QualityGate
from app.registry.types import Alias
from app.tenancy.auth.principal import Scope

router = APIRouter(prefix="/v1/prefixes/{name}/aliases/{alias}")

IfMatch = Annotated[str | None, Header(max_length=1024)]


@router.get("", dependencies=requires(Scope.PREFIXES_READ))
async def get_alias(name: str, alias: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """Where an alias points; its state is the ETag."""
    found = await services.workers.catalog.run(
        tenant, services.registry.aliases.get, tenant, name, alias
    )
    return _reply(name, found)


@router.put("", dependencies=requires(Scope.PREFIXES_WRITE))
async def set_alias(
    name: str,
    alias: str,
    body: AliasBody,
    request: Request,
    services: ServicesDep,
    principal: PrincipalDep,
    actor: ActorDep,
    if_match: IfMatch = None,
) -> Response:
    """Point an alias at a version, or split it; with `If-Match` only if nobody moved it meanwhile.

    A `user` of requests stays with one version of a split; without one they are drawn. Versions
    that have not passed the alias's gate, if it has one, are scored first.
    """
    book = services.registry.aliases
    change = (
        partial(book.set, digest=body.version)
        if body.version
        else partial(book.split, split=body.split or {})
    )
    write = partial(change, principal.tenant, name, alias, if_match=if_match, actor=actor)

    async def score(digest: str, gate: QualityGate) -> float:
        return await version_score(services.evaluations, principal, name, digest, gate)

    pool = services.workers.writes
    moved = await write_when_scored(
        partial(pool.finish, principal.tenant, write), score, request.receive
    )
    return _reply(name, moved)


@router.post("/rollback", dependencies=requires(Scope.PREFIXES_WRITE))
async def rollback_alias(
    name: str,
    alias: str,
    services: ServicesDep,
    tenant: TenantDep,
    actor: ActorDep,
    if_match: IfMatch = None,
) -> Response:
    """Point an alias at the version before; again, further back."""
    moved = await services.workers.writes.finish(
        tenant,
        services.registry.aliases.rollback,
        tenant,
        name,
        alias,
        if_match=if_match,
        actor=actor,
    )
    return _reply(name, moved)


@router.get("/history", dependencies=requires(Scope.PREFIXES_READ))
async def alias_history(
    name: str, alias: str, services: ServicesDep, tenant: TenantDep
) -> Response:
    """The alias's last moves, at most 100, the latest first."""
    changes = await services.workers.catalog.run(
        tenant, services.registry.aliases.history, tenant, name, alias
    )
    return StrictJSONResponse(
        {"object": "list", "data": [change_object(change) for change in changes]}
    )


def _reply(name: str, alias: Alias) -> Response:
    return StrictJSONResponse(alias_object(name, alias), headers={"etag": alias.etag})
