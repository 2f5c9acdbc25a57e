"""`/v1/prefixes`: list, read, download, pin and delete prefixes and their versions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from app.api.dependencies import ActorDep, TenantDep, requires
from app.api.errors import StrictJSONResponse
from app.api.lengths import known_lengths, module_lengths
from app.api.schemas.prefixes import prefix_object, version_object
from app.api.services import Services, ServicesDep
from app.db.database import Actor
from app.registry.types import Version
from app.runtime.prefix_cache import PrefixKey
from app.tenancy.auth.principal import Scope

router = APIRouter(prefix="/v1/prefixes")

Cursor = Annotated[str | None, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=100)]

_READING = requires(Scope.PREFIXES_READ)
_WRITING = requires(Scope.PREFIXES_WRITE)
_READ_BYTES = 1 << 18


@router.get("", dependencies=_READING)
async def list_prefixes(
    services: ServicesDep, tenant: TenantDep, cursor: Cursor = None, limit: Limit = 20
) -> Response:
    """The caller's prefixes by name, a page at a time."""
    page = await services.workers.catalog.run(
        tenant, services.registry.list_prefixes, tenant, cursor, limit
    )
    data = [prefix_object(record) for record in page.items]
    return StrictJSONResponse({"object": "list", "data": data, "next_cursor": page.next_cursor})


@router.get("/{name}", dependencies=_READING)
async def get_prefix(name: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """One prefix with its aliases."""
    record = await services.workers.catalog.run(tenant, services.registry.get_prefix, tenant, name)
    return StrictJSONResponse(prefix_object(record))


@router.delete("/{name}", dependencies=_WRITING)
async def delete_prefix(
    name: str, services: ServicesDep, tenant: TenantDep, actor: ActorDep
) -> Response:
    """Delete a prefix with all its versions and aliases; rows that run finish with it."""
    await forget_prefix(services, tenant, name, actor)
    return StrictJSONResponse({"object": "prefix", "name": name, "deleted": True})


@router.get("/{name}/versions", dependencies=_READING)
async def list_versions(
    name: str,
    services: ServicesDep,
    tenant: TenantDep,
    cursor: Cursor = None,
    limit: Limit = 20,
) -> Response:
    """A prefix's versions, the newest first, a page at a time."""
    page = await services.workers.catalog.run(
        tenant, services.registry.list_versions, tenant, name, cursor, limit
    )
    data = await _version_objects(services, tenant, page.items)
    return StrictJSONResponse({"object": "list", "data": data, "next_cursor": page.next_cursor})


@router.get("/{name}/versions/{digest}", dependencies=_READING)
async def get_version(name: str, digest: str, services: ServicesDep, tenant: TenantDep) -> Response:
    """One version by its digest or a unique start of it."""
    version = await services.workers.catalog.run(
        tenant, services.registry.get_version, tenant, name, digest
    )
    [content] = await _version_objects(services, tenant, [version])
    return StrictJSONResponse(content)


@router.get("/{name}/versions/{digest}/content", dependencies=_READING)
async def download_version(
    name: str, digest: str, services: ServicesDep, tenant: TenantDep
) -> Response:
    """The version's file, as it was uploaded; always whole."""
    version = await services.workers.catalog.run(
        tenant, services.registry.get_version, tenant, name, digest
    )
    file = await services.workers.store.run(tenant, services.registry.open_content, tenant, version)
    headers = {
        "content-disposition": f'attachment; filename="{name}-{version.digest[:12]}.safetensors"',
        "etag": f'"{version.digest}"',
        "accept-ranges": "none",
    }
    return StreamingResponse(
        _pieces(services, tenant, file), 200, headers, "application/octet-stream"
    )


@router.delete("/{name}/versions/{digest}", dependencies=_WRITING)
async def delete_version(
    name: str, digest: str, services: ServicesDep, tenant: TenantDep, actor: ActorDep
) -> Response:
    """Delete one version; `latest` falls back to the newest that is left."""
    version = await services.workers.writes.finish(
        tenant, services.registry.delete_version, tenant, name, digest, actor=actor
    )
    services.tiers.evict(PrefixKey(version.owner, version.digest))
    return StrictJSONResponse(
        {"object": "prefix.version", "name": name, "digest": version.digest, "deleted": True}
    )


@router.post("/{name}/versions/{digest}/pin", dependencies=_WRITING)
async def pin_version(
    name: str, digest: str, services: ServicesDep, tenant: TenantDep, actor: ActorDep
) -> Response:
    """Keep the version in memory once it has been used."""
    version = await services.workers.writes.finish(
        tenant, services.registry.pin, tenant, name, digest, actor=actor
    )
    [content] = await _version_objects(services, tenant, [version])
    return StrictJSONResponse(content)


@router.delete("/{name}/versions/{digest}/pin", dependencies=_WRITING)
async def unpin_version(
    name: str, digest: str, services: ServicesDep, tenant: TenantDep, actor: ActorDep
) -> Response:
    """Let the version be evicted from memory again."""
    version = await services.workers.writes.finish(
        tenant, services.registry.unpin, tenant, name, digest, actor=actor
    )
    [content] = await _version_objects(services, tenant, [version])
    return StrictJSONResponse(content)


async def forget_prefix(services: Services, tenant: str, name: str, actor: Actor) -> None:
    """Delete a prefix from the catalog and from memory."""
    gone = await services.workers.writes.finish(
        tenant, services.registry.delete_prefix, tenant, name, actor=actor
    )
    for owner, digest in gone:
        services.tiers.evict(PrefixKey(owner, digest))


async def _version_objects(
    services: Services, tenant: str, versions: Sequence[Version]
) -> list[dict[str, Any]]:
    """As replies show them; the store is asked only for what the catalog does not know."""
    found = []
    for version in versions:
        lengths = known_lengths(services, version)
        if lengths is None:
            lengths = await services.workers.store.run(
                tenant, module_lengths, services, tenant, version
            )
        found.append(version_object(version, lengths))
    return found


async def _pieces(services: Services, tenant: str, file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await services.workers.files.run(tenant, file.read, _READ_BYTES):
            yield piece
