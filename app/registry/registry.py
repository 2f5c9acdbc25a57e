"""Durable truth about prefixes: names, versions and aliases in a catalog, contents in a store.

A content is in the store before a row refers to it, and rows go before contents do; so whatever
dies in between, every name stands for its old version or for its new one. Every call names the
tenant first and sees nothing of others. Synchronous and thread-safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection

from app.db.change_log import Change, ChangeKind, note
from app.db.database import Actor, Database
from app.errors import Conflict, InUse, PolyprefixError
from app.prefix.reference import check_alias, check_name
from app.registry import aliases, scope, versions
from app.registry.aliases import Aliases
from app.registry.listing import Listing
from app.registry.publications import Publications
from app.registry.quality_gates import NO_SCORES, QualityGates, Scores, Unscored
from app.registry.resolver import Resolver
from app.registry.storage import contents
from app.registry.storage.garbage import GarbageCollector
from app.registry.storage.store import ObjectStore, StagedFile
from app.registry.types import (
    LATEST,
    NO_QUOTA,
    ContentKey,
    Quota,
    Version,
    VersionInfo,
)

DeletionGuard = Callable[[Connection, Sequence[str]], None]
"""Is told the digests of versions that are about to be deleted; it raises what is against it."""


class Registry:
    """What prefixes there are and what their names stand for.

    Besides the errors that each method names, any may raise Unavailable (the catalog is busy) and
    the writing ones InsufficientStorage; then nothing has changed. The writing ones take the
    `actor` of the change, for the audit log. `aliases` moves names, `publications` shares prefixes
    with other tenants, `gates` says which versions aliases refuse. `resolve` and `resolve_cached`
    are those of `Resolver`; `list_names`, `list_prefixes`, `get_prefix` and `list_versions` those
    of `Listing`.
    """

    def __init__(
        self,
        catalog: Database,
        objects: ObjectStore,
        *,
        resolver: Resolver | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970."""
        self.catalog = catalog
        self.objects = objects
        self.aliases = Aliases(catalog, clock)
        self.publications = Publications(catalog, clock)
        self.gates = QualityGates(catalog, clock)
        resolver = resolver or Resolver(catalog)
        self.resolve, self.resolve_cached = resolver.resolve, resolver.resolve_cached
        listing = Listing(catalog)
        self.list_names, self.list_prefixes = listing.list_names, listing.list_prefixes
        self.get_prefix, self.list_versions = listing.get_prefix, listing.list_versions
        self._clock = clock

    def close(self) -> None:
        """Closes the catalog's connections, and ends what looks after the store."""
        self.objects.close()
        self.catalog.close()

    # Tenants

    def ensure_tenant(self, tenant: str) -> str:
        """The owner key of the tenant, which is made if it is new.

        InvalidRequest if the id breaks the rules of names.
        """
        check_name(tenant, "a tenant's id")
        with self.catalog.read() as connection:
            found = scope.find_owner(connection, tenant)
        if found is not None:
            return found
        with self.catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.TENANT, tenant)
            return scope.make_tenant(connection, tenant, int(self._clock()))

    # Uploads

    def stage(self) -> AbstractContextManager[StagedFile]:
        """A file to receive an upload into; gone at the end of the block unless it was added."""
        return self.objects.stage()

    def add_version(
        self,
        tenant: str,
        name: str,
        info: VersionInfo,
        staged: Path,
        *,
        alias: str | None = None,
        quota: Quota = NO_QUOTA,
        scores: Scores = NO_SCORES,
        user: str | None = None,
        guard: Callable[[Connection], None] | None = None,
        actor: Actor | None = None,
    ) -> tuple[Version, bool]:
        """Makes a staged, validated file a version of the prefix, and whether it is a new one.

        `latest` and, if given, `alias` move to it, also if they were split. The same content again
        is the same version, whose file is put back if it is missing, cut short or altered. A new
        prefix is that of `user`, if one is named; Conflict if an old one is not. What `guard`
        raises, in the transaction of the change, undoes it.
        InvalidRequest if the name or the alias breaks the rules; QuotaExceeded; GateNotPassed or
        Unscored if the alias has a gate and `scores` do not pass it.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        info.check()
        with self.catalog.read() as connection:
            prefix_id = scope.find_prefix_id(connection, tenant, name)
            self._check_gate(connection, prefix_id, alias, info.digest, scores)
        now = int(self._clock())
        stored = contents.put(self.catalog, self.objects, tenant, name, info, staged, now=now)
        with scope.changing(self.catalog, tenant, name, actor) as (connection, epoch):
            if guard is not None:
                guard(connection)
            contents.check_present(connection, stored.noted)
            before = versions.stored(connection, tenant)
            row, created = versions.publish(
                connection,
                tenant,
                name,
                stored.owner,
                info,
                file_nbytes=stored.nbytes,
                now=now,
                replaced=stored.replaced,
                user=user,
            )
            versions.check_quota(connection, tenant, quota, before)
            self._check_gate(connection, row.prefix_id, alias, info.digest, scores, late=True)
            weights = {info.digest: 1}
            for moved in (LATEST,) if alias is None else (LATEST, alias):
                aliases.move(
                    connection, epoch, row.prefix_id, moved, weights, reason="upload", now=now
                )
            return versions.to_version(row), created

    def _check_gate(
        self,
        connection: Connection,
        prefix_id: int | None,
        alias: str | None,
        digest: str,
        scores: Scores,
        *,
        late: bool = False,
    ) -> None:
        """As `gates.check`; Conflict if it is too late for more scores: the file is put away."""
        if prefix_id is None or alias is None:
            return
        try:
            aliases.check_gate(connection, prefix_id, alias, {digest: 1}, scores, keep=late)
        except Unscored as error:
            if not late:
                raise
            raise Conflict("the alias's gate was changed meanwhile; send it again") from error

    # Reading

    def get_version(self, tenant: str, name: str, digest: str) -> Version:
        """A version by its digest or a unique start of it; PrefixNotFound, InvalidRequest."""
        with self.catalog.read() as connection:
            return versions.to_version(versions.get_row(connection, tenant, name, digest))

    def find_content(self, tenant: str, name: str, digest: str) -> ContentKey | None:
        """Where the tenant's versions with this digest lie; None if it has none."""
        with self.catalog.read() as connection:
            found = versions.sibling_row(connection, tenant, name, digest)
        return None if found is None else ContentKey(found.owner, digest)

    def open_content(self, tenant: str, version: Version) -> BinaryIO:
        """The version's file for reading, to the end even if the version is deleted meanwhile.

        PrefixNotFound if it is another tenant's; PolyprefixError if the store has lost it.
        """
        _check_owned(tenant, version)
        file = self.objects.open(version.owner, version.digest)
        if file is None:
            raise _lost(version)
        return file

    def content_start(self, tenant: str, version: Version, nbytes: int) -> bytes:
        """The first bytes of the version's file; errors as of `open_content`."""
        _check_owned(tenant, version)
        start = self.objects.start(version.owner, version.digest, nbytes)
        if start is None:
            raise _lost(version)
        return start

    # Deleting

    def delete_version(
        self,
        tenant: str,
        name: str,
        digest: str,
        *,
        guard: DeletionGuard | None = None,
        actor: Actor | None = None,
    ) -> Version:
        """Forgets a version; `latest` falls back to the newest that is left, if it pointed there.

        With its last version a prefix is gone. InUse if another alias, or a split, needs it;
        PrefixNotFound. What `guard` raises, in the transaction of the change, prevents it. The
        content follows at a later `collect_garbage`.
        """
        with scope.changing(self.catalog, tenant, name, actor) as (connection, epoch):
            row = versions.get_row(connection, tenant, name, digest)
            if guard is not None:
                guard(connection, [row.digest])
            pointing = aliases.pointing_at(connection, row.id)
            named = [alias for alias in pointing if alias != LATEST]
            named += aliases.splitting_to(connection, row.id)
            if named:
                raise InUse(f"alias '{named[0]}' of '{name}' points at this version")
            now = int(self._clock())
            contents.release(connection, [(row.owner, row.digest)], now)
            aliases.forget_digest(connection, row.prefix_id, row.digest)
            left = versions.newest_row(connection, row.prefix_id, without=row.id)
            if left is None:
                versions.delete_prefix(connection, tenant, row.prefix_id)
                return versions.to_version(row)
            if pointing:
                aliases.move(
                    connection,
                    epoch,
                    row.prefix_id,
                    LATEST,
                    {left.digest: 1},
                    reason="fallback",
                    now=now,
                )
            versions.delete_version(connection, row)
            return versions.to_version(row)

    def delete_prefix(
        self,
        tenant: str,
        name: str,
        *,
        guard: DeletionGuard | None = None,
        actor: Actor | None = None,
    ) -> list[ContentKey]:
        """Forgets a prefix with its aliases and all its versions, whose keys it returns.

        PrefixNotFound; `guard` as of `delete_version`.
        """
        with scope.changing(self.catalog, tenant, name, actor) as (connection, _):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            if guard is not None:
                guard(connection, versions.digests(connection, prefix_id))
            gone = versions.delete_prefix(connection, tenant, prefix_id)
            contents.release(connection, gone, int(self._clock()))
        return gone

    def collect_garbage(self, grace_s: float, is_over: Callable[[], bool] = lambda: False) -> int:
        """Removes contents that no version needs and that are older than the grace; how many.

        The grace lets running requests finish with a version that was deleted under them. May be
        called by many processes at once; returns soon after `is_over`.
        """
        return self._collector(grace_s, is_over).collect()

    def on_erasure(self, listener: Callable[[Sequence[ContentKey] | None], None]) -> None:
        """Tells `listener` which contents were erased, here or elsewhere; None if any may be.

        It is called by the thread that hears of it and must not raise.
        """

        def notice(_: int, changes: Sequence[Change] | None) -> None:
            if changes is None:
                listener(None)
            elif erased := [each for each in changes if each.kind is ChangeKind.ERASURE]:
                listener([ContentKey(each.tenant, each.name) for each in erased])

        self.catalog.feed.subscribe(notice)

    def gone_contents(self, keys: Collection[ContentKey]) -> list[ContentKey]:
        """Those that no version needs and whose files are gone, or are being removed."""
        with self.catalog.read() as connection:
            return [ContentKey(*key) for key in contents.gone_contents(connection, keys)]

    def finish_removals(self) -> None:
        """Ends the removals of contents that were cut short when a process died."""
        self._collector(0.0, lambda: False).finish()

    def _collector(self, grace_s: float, is_over: Callable[[], bool]) -> GarbageCollector:
        clock = self._clock
        return GarbageCollector(self.catalog, self.objects, grace_s, clock, is_over)

    # Pins

    def pin(
        self,
        tenant: str,
        name: str,
        digest: str,
        *,
        pinned: bool = True,
        actor: Actor | None = None,
    ) -> Version:
        """Marks a version as one that caches keep, or takes the mark away; PrefixNotFound."""
        with scope.changing(self.catalog, tenant, name, actor) as (connection, epoch):
            row = versions.get_row(connection, tenant, name, digest)
            versions.set_pinned(connection, row.id, epoch, pinned)
            return versions.to_version(versions.get_row(connection, tenant, name, row.digest))

    def pinned(self, limit: int = 1000) -> tuple[ContentKey, ...]:
        """The contents that caches keep: those that were pinned last, the oldest pin first."""
        with self.catalog.read() as connection:
            return versions.pinned(connection, limit)


def _check_owned(tenant: str, version: Version) -> None:
    if version.tenant != tenant:
        raise scope.prefix_not_found(f"{version.name}@{version.digest}")


def _lost(version: Version) -> PolyprefixError:
    where = f"'{version.name}@{version.digest[:12]}'"
    return PolyprefixError(f"the store has lost the file of {where}; upload it again to repair it")
