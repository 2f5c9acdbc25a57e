"""`/v1/prefixes`: list, read, download, pin and delete prefixes and their versions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO

from fastapi import Query, Response
from fastapi.responses import StreamingResponse

from app.api.dependencies import (
    ActorDep,
    PrefixCacheDep,
    RegistryDep,
    TenantDep,
    WorkersDep,
)
from app.api.lengths import LengthsDep
from app.api.routing import FILE, Answer, Router
from app.api.schemas.prefixes import (
    PrefixDeleted,
    PrefixPage,
    PrefixReply,
    VersionDeleted,
    VersionPage,
    VersionReply,
)
from app.db.database import Actor
from app.registry.registry import Registry
from app.runtime.prefix_cache import PrefixCache, PrefixKey
from app.runtime.workers import WorkerPool, Workers
from app.tenancy.auth.principal import Scope

router = Router("prefixes", "/v1/prefixes")

Cursor = Annotated[str | None, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=100)]

_READING, _WRITING = [Scope.PREFIXES_READ], [Scope.PREFIXES_WRITE]
_CONTENT = Answer({FILE: None}, ("etag", "content-disposition", "accept-ranges"))
_READ_BYTES = 1 << 18


@router.route("GET", "", answers=PrefixPage, scopes=_READING)
async def list_prefixes(
    registry: RegistryDep,
    workers: WorkersDep,
    tenant: TenantDep,
    cursor: Cursor = None,
    limit: Limit = 20,
) -> Response:
    """The caller's prefixes by name, a page at a time."""
    page = await workers.catalog.run(tenant, registry.list_prefixes, tenant, cursor, limit)
    data = [PrefixReply.of(record) for record in page.items]
    return PrefixPage.of(page, data=data).response()


@router.route("GET", "/{name}", answers=PrefixReply, scopes=_READING)
async def get_prefix(
    name: str, registry: RegistryDep, workers: WorkersDep, tenant: TenantDep
) -> Response:
    """One prefix with its aliases."""
    record = await workers.catalog.run(tenant, registry.get_prefix, tenant, name)
    return PrefixReply.of(record).response()


@router.route("DELETE", "/{name}", answers=PrefixDeleted, scopes=_WRITING)
async def delete_prefix(
    name: str,
    registry: RegistryDep,
    workers: WorkersDep,
    prefix_cache: PrefixCacheDep,
    tenant: TenantDep,
    actor: ActorDep,
) -> Response:
    """Delete a prefix with all its versions and aliases; rows that run finish with it."""
    await forget_prefix(registry, workers, prefix_cache, tenant, name, actor)
    return PrefixDeleted(name=name).response()


@router.route("GET", "/{name}/versions", answers=VersionPage, scopes=_READING)
async def list_versions(
    name: str,
    registry: RegistryDep,
    workers: WorkersDep,
    lengths: LengthsDep,
    tenant: TenantDep,
    cursor: Cursor = None,
    limit: Limit = 20,
) -> Response:
    """A prefix's versions, the newest first, a page at a time."""
    page = await workers.catalog.run(tenant, registry.list_versions, tenant, name, cursor, limit)
    data = [
        VersionReply.of(version, lengths=await lengths.of(tenant, version))
        for version in page.items
    ]
    return VersionPage.of(page, data=data).response()


@router.route("GET", "/{name}/versions/{digest}", answers=VersionReply, scopes=_READING)
async def get_version(
    name: str,
    digest: str,
    registry: RegistryDep,
    workers: WorkersDep,
    lengths: LengthsDep,
    tenant: TenantDep,
) -> Response:
    """One version by its digest or a unique start of it."""
    version = await workers.catalog.run(tenant, registry.get_version, tenant, name, digest)
    return VersionReply.of(version, lengths=await lengths.of(tenant, version)).response()


@router.route("GET", "/{name}/versions/{digest}/content", answers=_CONTENT, scopes=_READING)
async def download_version(
    name: str, digest: str, registry: RegistryDep, workers: WorkersDep, tenant: TenantDep
) -> Response:
    """The version's file, as it was uploaded; always whole."""
    version = await workers.catalog.run(tenant, registry.get_version, tenant, name, digest)
    file = await workers.store.run(tenant, registry.open_content, tenant, version)
    headers = {
        "content-disposition": f'attachment; filename="{name}-{version.digest[:12]}.safetensors"',
        "etag": f'"{version.digest}"',
        "accept-ranges": "none",
    }
    return StreamingResponse(_pieces(workers.files, tenant, file), 200, headers, FILE)


@router.route(
    "DELETE",
    "/{name}/versions/{digest}",
    answers=VersionDeleted,
    scopes=_WRITING,
    errors=[409],
)
async def delete_version(
    name: str,
    digest: str,
    registry: RegistryDep,
    workers: WorkersDep,
    prefix_cache: PrefixCacheDep,
    tenant: TenantDep,
    actor: ActorDep,
) -> Response:
    """Delete one version; `latest` falls back to the newest that is left."""
    version = await workers.writes.finish(
        tenant, registry.delete_version, tenant, name, digest, actor=actor
    )
    prefix_cache.evict(PrefixKey(version.owner, version.digest))
    return VersionDeleted(name=name, digest=version.digest).response()


@router.route("POST", "/{name}/versions/{digest}/pin", answers=VersionReply, scopes=_WRITING)
async def pin_version(
    name: str,
    digest: str,
    registry: RegistryDep,
    workers: WorkersDep,
    lengths: LengthsDep,
    tenant: TenantDep,
    actor: ActorDep,
) -> Response:
    """Keep the version in memory once it has been used."""
    version = await workers.writes.finish(tenant, registry.pin, tenant, name, digest, actor=actor)
    return VersionReply.of(version, lengths=await lengths.of(tenant, version)).response()


@router.route("DELETE", "/{name}/versions/{digest}/pin", answers=VersionReply, scopes=_WRITING)
async def unpin_version(
    name: str,
    digest: str,
    registry: RegistryDep,
    workers: WorkersDep,
    lengths: LengthsDep,
    tenant: TenantDep,
    actor: ActorDep,
) -> Response:
    """Let the version be evicted from memory again."""
    version = await workers.writes.finish(tenant, registry.unpin, tenant, name, digest, actor=actor)
    return VersionReply.of(version, lengths=await lengths.of(tenant, version)).response()


async def forget_prefix(
    registry: Registry,
    workers: Workers,
    prefix_cache: PrefixCache,
    tenant: str,
    name: str,
    actor: Actor,
) -> None:
    """Delete a prefix from the catalog and from memory."""
    gone = await workers.writes.finish(tenant, registry.delete_prefix, tenant, name, actor=actor)
    for owner, digest in gone:
        prefix_cache.evict(PrefixKey(owner, digest))


async def _pieces(pool: WorkerPool, tenant: str, file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await pool.run(tenant, file.read, _READ_BYTES):
            yield piece
