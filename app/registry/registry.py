"""Durable truth about prefixes: names, versions and aliases in a catalog, contents in a store.

A content is in the store before a row refers to it, and rows go before contents do; so whatever
dies in between, every name stands for its old version or for its new one. Every call names the
tenant first and sees nothing of others. Synchronous and thread-safe. Knows nothing about tensors,
models or HTTP.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection

from app.errors import InUse, PolyprefixError, Unavailable
from app.prefix.reference import PrefixReference, check_alias, check_name
from app.registry import aliases, garbage, listing, scope, versions
from app.registry.catalog import Catalog
from app.registry.changes import ChangeKind, note
from app.registry.feed import ChangeFeed
from app.registry.objects import ObjectStore, StagedFile
from app.registry.records import (
    LATEST,
    Alias,
    AliasChange,
    Page,
    PrefixRecord,
    Tenant,
    Version,
    VersionInfo,
)
from app.registry.resolving import ResolveCache


class Registry:
    """What prefixes there are and what their names stand for.

    Besides the errors that each method names, any may raise Unavailable (the catalog is busy) and
    the writing ones InsufficientStorage; then nothing has changed.
    """

    def __init__(
        self,
        catalog: Catalog,
        objects: ObjectStore,
        *,
        feed: ChangeFeed | None = None,
        cache: ResolveCache | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970; `feed` tells what others have written;
        `cache` holds what references stand for."""
        self.catalog = catalog
        self.objects = objects
        self.feed = feed or ChangeFeed(catalog)
        self._cache = cache or ResolveCache()
        self.feed.subscribe(self._cache.forget)
        self._clock = clock

    def close(self) -> None:
        """Closes the catalog's connections."""
        self.catalog.close()

    # Tenants

    def ensure_tenant(self, tenant: str) -> Tenant:
        """The tenant, made if it is new. InvalidRequest if the id breaks the rules of names."""
        check_name(tenant, "a tenant's id")
        with self.catalog.read() as connection:
            found = scope.find_tenant(connection, tenant)
        if found is not None:
            return found
        with self.transaction() as (connection, epoch):
            note(connection, epoch, ChangeKind.TENANT, tenant)
            return scope.make_tenant(connection, tenant, self._now())

    # Uploads

    def stage(self) -> AbstractContextManager[StagedFile]:
        """A file to receive an upload into; gone at the end of the block unless it was added."""
        return self.objects.stage()

    def add_version(
        self, tenant: str, name: str, info: VersionInfo, staged: Path, *, alias: str | None = None
    ) -> tuple[Version, bool]:
        """Makes a staged, validated file a version of the prefix, and whether it is a new one.

        `latest` and, if given, `alias` move to it. The same content again is the same version,
        whose file is put back if it is missing or cut short. InvalidRequest if the name or the
        alias breaks the rules.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        info.check()
        owner = self._store_content(tenant, name, info, staged)
        with self._changing(tenant, name) as (connection, epoch):
            size = self.objects.size(owner, info.digest)
            if size is None:
                raise Unavailable("the content was removed while it was uploaded; send it again")
            row, created = versions.publish(
                connection, tenant, name, owner, info, file_nbytes=size, now=self._now()
            )
            for moved in (LATEST,) if alias is None else (LATEST, alias):
                aliases.move(connection, epoch, row, moved, reason="upload", now=self._now())
            return versions.to_version(row), created

    def _store_content(self, tenant: str, name: str, info: VersionInfo, staged: Path) -> str:
        """Puts the content into the store unless it is there; the owner it is stored under."""
        with self.catalog.read() as connection:
            owner = scope.get_tenant(connection, tenant).owner
            known = versions.sibling_row(connection, tenant, name, info.digest)
        if known is None:
            self.objects.commit(owner, info.digest, staged)
            return owner
        if self.objects.size(known.owner, info.digest) != known.file_nbytes:
            self.objects.commit(known.owner, info.digest, staged)
        return str(known.owner)

    # Reading

    def resolve(self, tenant: str, reference: PrefixReference) -> Version:
        """The version that a reference stands for now.

        PrefixNotFound, the same for what is another tenant's and for what does not exist;
        InvalidRequest if several versions begin with the digits given.
        """
        if not self.feed.fresh():
            self.feed.poll()
        key = (tenant, reference)
        found, version = self._cache.get(key)
        if not found:
            version = self._look_up(tenant, reference)
        if version is None:
            raise scope.prefix_not_found(str(reference))
        return version

    def resolve_cached(self, tenant: str, reference: PrefixReference) -> Version | None:
        """As `resolve`, without any I/O: None if that needs a look at the catalog."""
        if not self.feed.fresh():
            return None
        found, version = self._cache.get((tenant, reference))
        if found and version is None:
            raise scope.prefix_not_found(str(reference))
        return version

    def _look_up(self, tenant: str, reference: PrefixReference) -> Version | None:
        version = None
        with self.catalog.read() as connection:
            epoch = self.feed.observe(connection)
            if reference.tenant in (None, tenant):
                version = versions.find(connection, tenant, reference.name, reference.selector)
        self._cache.put((tenant, reference), version, epoch)
        return version

    def list_prefixes(
        self, tenant: str, cursor: str | None = None, limit: int = 20
    ) -> Page[PrefixRecord]:
        """The tenant's prefixes by name. InvalidRequest if the cursor or the limit is wrong."""
        with self.catalog.read() as connection:
            return listing.list_prefixes(connection, tenant, cursor, limit)

    def get_prefix(self, tenant: str, name: str) -> PrefixRecord:
        """One prefix; PrefixNotFound."""
        check_name(name)
        with self.catalog.read() as connection:
            return listing.get_prefix(connection, tenant, name)

    def list_versions(
        self, tenant: str, name: str, cursor: str | None = None, limit: int = 20
    ) -> Page[Version]:
        """A prefix's versions, the newest first; PrefixNotFound, InvalidRequest."""
        check_name(name)
        with self.catalog.read() as connection:
            return listing.list_versions(connection, tenant, name, cursor, limit)

    def get_version(self, tenant: str, name: str, digest: str) -> Version:
        """A version by its digest or a unique start of it; PrefixNotFound, InvalidRequest."""
        with self.catalog.read() as connection:
            return versions.to_version(versions.get_row(connection, tenant, name, digest))

    def content_path(self, tenant: str, version: Version) -> Path:
        """The version's file; PolyprefixError if the store has lost it."""
        _check_owned(tenant, version)
        path = self.objects.path(version.owner, version.digest)
        if path is None:
            raise _lost(version)
        return path

    def open_content(self, tenant: str, version: Version) -> BinaryIO:
        """The version's file for reading, to the end even if the version is deleted meanwhile."""
        _check_owned(tenant, version)
        file = self.objects.open(version.owner, version.digest)
        if file is None:
            raise _lost(version)
        return file

    # Deleting

    def delete_version(self, tenant: str, name: str, digest: str) -> Version:
        """Forgets a version; `latest` falls back to the newest that is left, if it pointed there.

        With its last version a prefix is gone. InUse if another alias points at it; PrefixNotFound.
        The content follows at a later `collect_garbage`.
        """
        with self._changing(tenant, name) as (connection, epoch):
            row = versions.get_row(connection, tenant, name, digest)
            pointing = aliases.pointing_at(connection, row.id)
            named = [alias for alias in pointing if alias != LATEST]
            if named:
                raise InUse(f"alias '{named[0]}' of '{name}' points at this version")
            self._touch(row.owner, row.digest)
            aliases.forget_digest(connection, row.prefix_id, row.digest)
            left = versions.newest_row(connection, row.prefix_id, without=row.id)
            if left is None:
                versions.delete_prefix(connection, row.prefix_id)
                return versions.to_version(row)
            if pointing:
                aliases.move(connection, epoch, left, LATEST, reason="fallback", now=self._now())
            versions.delete_version(connection, row.id)
            return versions.to_version(row)

    def delete_prefix(self, tenant: str, name: str) -> None:
        """Forgets a prefix with all its versions and aliases; PrefixNotFound."""
        check_name(name)
        with self._changing(tenant, name) as (connection, _):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            for owner, digest in versions.contents_of(connection, prefix_id):
                self._touch(owner, digest)
            versions.delete_prefix(connection, prefix_id)

    def collect_garbage(self, grace_s: float) -> int:
        """Removes contents that no version needs and that are older than the grace; how many.

        The grace lets running requests finish with a version that was deleted under them.
        """
        return garbage.collect(self.catalog, self.objects, grace_s)

    def _touch(self, owner: str, digest: str) -> None:
        """Starts the grace of a content that is about to lose a row; only the grace is at stake."""
        with contextlib.suppress(PolyprefixError, OSError):
            self.objects.touch(owner, digest)

    # Aliases and pins

    def get_alias(self, tenant: str, name: str, alias: str) -> Alias:
        """Where an alias points; PrefixNotFound, NotFound."""
        _check_names(name, alias)
        with self.catalog.read() as connection:
            return aliases.get(connection, scope.get_prefix_id(connection, tenant, name), alias)

    def set_alias(
        self, tenant: str, name: str, alias: str, digest: str, *, if_match: str | None = None
    ) -> Alias:
        """Points an alias at a version, named by its digest or a unique start of it.

        `if_match` lists etags, or is `*`: PreconditionFailed unless the alias is in that state.
        InvalidRequest if the alias breaks the rules; PrefixNotFound.
        """
        _check_names(name, alias)
        with self._changing(tenant, name) as (connection, epoch):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            aliases.check_match(connection, prefix_id, alias, if_match)
            row = versions.get_row(connection, tenant, name, digest)
            aliases.move(connection, epoch, row, alias, reason="set", now=self._now())
            return aliases.get(connection, prefix_id, alias)

    def rollback_alias(
        self, tenant: str, name: str, alias: str, *, if_match: str | None = None
    ) -> Alias:
        """Points an alias at where it pointed before; again, further back.

        Conflict if nothing before that is left; PreconditionFailed, PrefixNotFound, NotFound.
        """
        _check_names(name, alias)
        with self._changing(tenant, name) as (connection, epoch):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            aliases.get(connection, prefix_id, alias)
            aliases.check_match(connection, prefix_id, alias, if_match)
            aliases.undo(connection, epoch, prefix_id, alias, now=self._now())
            return aliases.get(connection, prefix_id, alias)

    def alias_history(self, tenant: str, name: str, alias: str) -> tuple[AliasChange, ...]:
        """The moves of an alias that are remembered, the latest first; PrefixNotFound, NotFound."""
        _check_names(name, alias)
        with self.catalog.read() as connection:
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            aliases.get(connection, prefix_id, alias)
            return aliases.history(connection, prefix_id, alias)

    def pin(self, tenant: str, name: str, digest: str) -> Version:
        """Marks a version as one that caches keep; PrefixNotFound."""
        return self._set_pinned(tenant, name, digest, True)

    def unpin(self, tenant: str, name: str, digest: str) -> Version:
        """Takes the mark away; PrefixNotFound."""
        return self._set_pinned(tenant, name, digest, False)

    def pinned(self, tenant: str, limit: int = 1000) -> tuple[Version, ...]:
        """The tenant's pinned versions, for warming caches at start."""
        with self.catalog.read() as connection:
            return versions.pinned(connection, tenant, limit)

    def _set_pinned(self, tenant: str, name: str, digest: str, pinned: bool) -> Version:
        with self._changing(tenant, name) as (connection, _):
            row = versions.get_row(connection, tenant, name, digest)
            versions.set_pinned(connection, row.id, pinned)
            return versions.to_version(versions.get_row(connection, tenant, name, row.digest))

    @contextmanager
    def transaction(self) -> Iterator[tuple[Connection, int]]:
        """A writing transaction with its epoch, whose notes the caches follow."""
        try:
            with self.catalog.write() as (connection, epoch):
                yield connection, epoch
        except BaseException:
            self.feed.doubt()
            raise
        self.feed.written()

    @contextmanager
    def _changing(self, tenant: str, name: str) -> Iterator[tuple[Connection, int]]:
        """A writing transaction that changes one prefix of the tenant."""
        check_name(name)
        with self.transaction() as (connection, epoch):
            note(connection, epoch, ChangeKind.PREFIX, tenant, name)
            yield connection, epoch

    def _now(self) -> int:
        return int(self._clock())


def _check_names(name: str, alias: str) -> None:
    check_name(name)
    check_alias(alias)


def _check_owned(tenant: str, version: Version) -> None:
    if version.tenant != tenant:
        raise scope.prefix_not_found(f"{version.name}@{version.digest}")


def _lost(version: Version) -> PolyprefixError:
    where = f"'{version.name}@{version.digest[:12]}'"
    return PolyprefixError(f"the store has lost the file of {where}; upload it again to repair it")
