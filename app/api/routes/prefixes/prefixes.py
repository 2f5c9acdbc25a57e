"""`/v1/prefixes`: list, read, download, pin and delete prefixes and their versions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, BinaryIO

from fastapi import Depends, Query, Response
from fastapi.responses import StreamingResponse

from app.api.dependencies import Caller, CallerDep, ModelDep, PrefixCacheDep, RegistryDep
from app.api.routing import FILE, Answer, Router
from app.api.schemas.prefixes import (
    PrefixDeleted,
    PrefixPage,
    PrefixReply,
    VersionDeleted,
    VersionPage,
    VersionReply,
)
from app.api.schemas.users import UserQuery
from app.errors import PolyprefixError
from app.jobs.rows import check_unneeded
from app.prefix.header import LENGTH_BYTES, MAX_HEADER_BYTES, header_length, parse_header
from app.prefix.spec import MODULES
from app.registry.registry import Registry
from app.registry.types import Version
from app.runtime.prefix_cache import PrefixCache, PrefixKey
from app.runtime.workers import WorkerPool
from app.tenancy.auth.principal import Scope

router = Router("prefixes", "/v1/prefixes")

Cursor = Annotated[str | None, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=100)]

_READING, _WRITING = [Scope.PREFIXES_READ], [Scope.PREFIXES_WRITE]
_CONTENT = Answer({FILE: None}, ("etag", "content-disposition", "accept-ranges"))
_VERSION = "/{name}/versions/{digest}"
_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class VersionReplies:
    """Makes replies of the caller's versions, with the number of positions in each module.

    The catalog knows those numbers for all versions but old ones. Of these only decoder
    self-attention is known; the rest is in the header of their file, which is read if the base
    model has other modules.
    """

    registry: Registry
    caller: Caller
    is_decoder_alone: bool

    async def of(self, version: Version) -> VersionReply:
        """The reply; what is known without the file is answered if that is lost or damaged."""
        lengths = version.lengths
        if lengths is None and not self.is_decoder_alone:
            store = self.caller.workers.store
            with suppress(PolyprefixError):
                lengths = await store.run(self.caller.tenant, self._lengths_in_file, version)
        return VersionReply.of(version, lengths=lengths or {"decoder": version.length})

    def _lengths_in_file(self, version: Version) -> Mapping[str, int]:
        most = LENGTH_BYTES + MAX_HEADER_BYTES
        start = self.registry.content_start(self.caller.tenant, version, most)
        length = header_length(start[:LENGTH_BYTES], most)
        raw = start[LENGTH_BYTES : LENGTH_BYTES + length]
        header = parse_header(raw, LENGTH_BYTES + len(raw) + version.nbytes)
        keys = {module: header.tensors.get(f"{module}.keys") for module in MODULES}
        return {
            module: entry.shape[2]
            for module, entry in keys.items()
            if entry is not None and len(entry.shape) == 4
        }


async def get_version_replies(
    registry: RegistryDep, caller: CallerDep, model: ModelDep
) -> VersionReplies:
    """Replies of this server's versions."""
    return VersionReplies(registry, caller, model.spec.modules.keys() <= {"decoder"})


RepliesDep = Annotated[VersionReplies, Depends(get_version_replies)]


@router.route("GET", "", answers=PrefixPage, scopes=_READING)
async def list_prefixes(
    registry: RegistryDep,
    caller: CallerDep,
    cursor: Cursor = None,
    limit: Limit = 20,
    user: UserQuery = None,
) -> Response:
    """The caller's prefixes by name, a page at a time; with `user`, those of that user."""
    page = await caller.read(registry.list_prefixes, caller.tenant, cursor, limit, user)
    return PrefixPage.of(page, data=list(map(PrefixReply.of, page.items))).response()


@router.route("GET", "/{name}", answers=PrefixReply, scopes=_READING)
async def get_prefix(name: str, registry: RegistryDep, caller: CallerDep) -> Response:
    """One prefix with its aliases."""
    record = await caller.read(registry.get_prefix, caller.tenant, name)
    return PrefixReply.of(record).response()


@router.route("DELETE", "/{name}", answers=PrefixDeleted, scopes=_WRITING, errors=[409])
async def delete_prefix(
    name: str, registry: RegistryDep, prefix_cache: PrefixCacheDep, caller: CallerDep
) -> Response:
    """Delete a prefix with all its versions and aliases; rows that run finish with it.

    While a job that has not ended is trained behind one of the versions, that is 409.
    """
    await forget_prefix(registry, prefix_cache, caller, name)
    return PrefixDeleted(name=name).response()


@router.route("GET", "/{name}/versions", answers=VersionPage, scopes=_READING)
async def list_versions(
    name: str,
    registry: RegistryDep,
    replies: RepliesDep,
    caller: CallerDep,
    cursor: Cursor = None,
    limit: Limit = 20,
) -> Response:
    """A prefix's versions, the newest first, a page at a time."""
    page = await caller.read(registry.list_versions, caller.tenant, name, cursor, limit)
    data = [await replies.of(version) for version in page.items]
    return VersionPage.of(page, data=data).response()


@router.route("GET", _VERSION, answers=VersionReply, scopes=_READING)
async def get_version(
    name: str, digest: str, registry: RegistryDep, replies: RepliesDep, caller: CallerDep
) -> Response:
    """One version by its digest or a unique start of it."""
    version = await caller.read(registry.get_version, caller.tenant, name, digest)
    return (await replies.of(version)).response()


@router.route("GET", f"{_VERSION}/content", answers=_CONTENT, scopes=_READING)
async def download_version(
    name: str, digest: str, registry: RegistryDep, caller: CallerDep
) -> Response:
    """The version's file, as it was uploaded; always whole."""
    tenant, workers = caller.tenant, caller.workers
    version = await caller.read(registry.get_version, tenant, name, digest)
    file = await workers.store.run(tenant, registry.open_content, tenant, version)
    headers = {
        "content-disposition": f'attachment; filename="{name}-{version.digest[:12]}.safetensors"',
        "etag": f'"{version.digest}"',
        "accept-ranges": "none",
    }
    return StreamingResponse(_pieces(workers.files, tenant, file), 200, headers, FILE)


@router.route("DELETE", _VERSION, answers=VersionDeleted, scopes=_WRITING, errors=[409])
async def delete_version(
    name: str,
    digest: str,
    registry: RegistryDep,
    prefix_cache: PrefixCacheDep,
    caller: CallerDep,
) -> Response:
    """Delete one version; `latest` falls back to the newest that is left.

    While another alias, or a job that has not ended, needs the version, that is 409.
    """
    guard = partial(check_unneeded, caller.tenant, name)
    version = await caller.write(registry.delete_version, caller.tenant, name, digest, guard=guard)
    prefix_cache.evict(PrefixKey(version.owner, version.digest))
    return VersionDeleted(name=name, digest=version.digest).response()


@router.route("POST", f"{_VERSION}/pin", answers=VersionReply, scopes=_WRITING)
async def pin_version(
    name: str, digest: str, registry: RegistryDep, replies: RepliesDep, caller: CallerDep
) -> Response:
    """Keep the version in memory once it has been used."""
    version = await caller.write(registry.pin, caller.tenant, name, digest)
    return (await replies.of(version)).response()


@router.route("DELETE", f"{_VERSION}/pin", answers=VersionReply, scopes=_WRITING)
async def unpin_version(
    name: str, digest: str, registry: RegistryDep, replies: RepliesDep, caller: CallerDep
) -> Response:
    """Let the version be evicted from memory again."""
    version = await caller.write(registry.pin, caller.tenant, name, digest, pinned=False)
    return (await replies.of(version)).response()


async def forget_prefix(
    registry: Registry, prefix_cache: PrefixCache, caller: Caller, name: str
) -> None:
    """Delete a prefix from the catalog and from memory; InUse if an open job needs it."""
    guard = partial(check_unneeded, caller.tenant, name)
    for owner, digest in await caller.write(
        registry.delete_prefix, caller.tenant, name, guard=guard
    ):
        prefix_cache.evict(PrefixKey(owner, digest))


async def _pieces(pool: WorkerPool, tenant: str, file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await pool.run(tenant, file.read, _READ_BYTES):
            yield piece
