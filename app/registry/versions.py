"""Versions in the catalog: finding, publishing, forgetting, inside the caller's transaction.

What a tenant stores is counted as rows come and go, and its quota checked in the same transaction:
if two uploads fit one by one, but not together, only one of them is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from app.db.change_log import Change, ChangeKind, read_epoch
from app.db.database import Database
from app.db.schema import aliases, prefixes, tenants, versions
from app.errors import Conflict, InvalidRequest, PrefixNotFound, QuotaExceeded
from app.prefix.reference import check_name, looks_hexadecimal
from app.prefix.strict_json import printable
from app.registry import scope
from app.registry.types import SHIPPED_OWNER, ContentKey, Quota, Version, VersionInfo

_SAME_NAME = tuple(field.name for field in fields(Version) if field.name != "tenant")
"""The fields of a version that a row has under the same name."""
_MAY_PIN = {ChangeKind.PREFIX, ChangeKind.TENANT}


def to_version(row: Row[Any]) -> Version:
    """A row of `scope.versions_of`, as the rest of the program sees it."""
    values = {name: getattr(row, name) for name in _SAME_NAME}
    return Version(**values, tenant=row.tenant_id)


def get_row(connection: Connection, tenant: str, name: str, start: str) -> Row[Any]:
    """The row whose digest begins so; PrefixNotFound, or InvalidRequest if several do."""
    check_name(name)
    if not looks_hexadecimal(start):
        raise PrefixNotFound(
            f"digest: {printable(start)} is not a version's digest, or the first 6 or more of its "
            f"64 characters 0-9, a-f; list versions with GET /v1/prefixes/{name}/versions",
            param="digest",
        )
    query = scope.versions_of(tenant).where(
        prefixes.c.name == name,
        versions.c.digest >= start,
        versions.c.digest < start + "g",  # what follows the last digit, "f"
    )
    rows = connection.execute(query.limit(2)).all()
    if len(rows) > 1:
        message = f"'{name}@{start}' is ambiguous: several versions begin so"
        raise InvalidRequest(message, param="model")
    if not rows:
        raise scope.prefix_not_found(f"{name}@{start}")
    return rows[0]


def ids_of(connection: Connection, prefix_id: int, digests: Collection[str]) -> dict[str, int]:
    """The numbers of those versions that exist, by digest."""
    query = select(versions.c.digest, versions.c.id).where(
        versions.c.prefix_id == prefix_id, versions.c.digest.in_(list(digests))
    )
    return {row.digest: row.id for row in connection.execute(query)}


def digests(connection: Connection, prefix_id: int) -> Sequence[str]:
    """The digests of a prefix's versions."""
    query = select(versions.c.digest).where(versions.c.prefix_id == prefix_id)
    return connection.scalars(query).all()


def newest_row(connection: Connection, prefix_id: int, *, without: int) -> Row[Any] | None:
    """The version that came last, but for one; None if there is no other."""
    query = select(versions).where(versions.c.prefix_id == prefix_id, versions.c.id != without)
    return connection.execute(query.order_by(versions.c.id.desc()).limit(1)).one_or_none()


def sibling_row(connection: Connection, tenant: str, name: str, digest: str) -> Row[Any] | None:
    """A version of the tenant with this content: of this prefix if it has one, else of another."""
    mine = scope.versions_of(tenant).where(prefixes.c.name == name, versions.c.digest == digest)
    found = connection.execute(mine).one_or_none()
    if found is not None:
        return found
    owner = scope.get_owner(connection, tenant)
    for stored_under, most in ((owner, 1), (SHIPPED_OWNER, None)):
        # first by the content alone: a tenant may have very many prefixes; of its own any will do
        same = select(versions.c.id).where(
            versions.c.owner == stored_under, versions.c.digest == digest
        )
        for number in connection.scalars(same.limit(most)).all():
            query = scope.versions_of(tenant).where(versions.c.id == number)
            found = connection.execute(query).one_or_none()
            if found is not None:
                return found
    return None


def publish(
    connection: Connection,
    tenant: str,
    name: str,
    owner: str,
    info: VersionInfo,
    *,
    file_nbytes: int,
    now: int,
    replaced: bool = False,
    user: str | None = None,
) -> tuple[Row[Any], bool]:
    """The row of a content that is in the store, and whether it had to be made.

    A new prefix is the `user`'s; Conflict if the prefix is there and not this user's.

    The catalog says of a content what its file says: where the tenant has it already and the file
    is the one of then, its description stays; otherwise, and if the file was `replaced`, all its
    versions take the new one.
    """
    _check_user(connection, tenant, name, user)
    known = sibling_row(connection, tenant, name, info.digest)
    before = _content_nbytes(connection, owner, info.digest)
    described = {
        "file_nbytes": file_nbytes,
        "base_model": info.base_model,
        "provenance": dict(info.provenance),
        "lengths": None if info.lengths is None else dict(info.lengths),
    }
    same_file = known is not None and known.owner == owner and known.file_nbytes == file_nbytes
    is_described = False
    if known is not None and same_file and not replaced:
        described |= {"base_model": known.base_model, "provenance": known.provenance}
        is_described = known.lengths is not None or info.lengths is None
        described["lengths"] = known.lengths or described["lengths"]
    made_prefix, created = False, known is None or known.name != name
    if created:
        prefix_id = scope.find_prefix_id(connection, tenant, name)
        made_prefix = prefix_id is None
        if prefix_id is None:
            made = insert(prefixes).values(tenant_id=tenant, name=name, created_at=now, user=user)
            prefix_id = connection.execute(made.returning(prefixes.c.id)).scalar_one()
        _insert_version(connection, prefix_id, owner, info, described, now)
    if not is_described:
        same = (versions.c.owner == owner) & (versions.c.digest == info.digest)
        connection.execute(update(versions).where(same).values(described))
    grown = _content_nbytes(connection, owner, info.digest) - before
    _count(connection, tenant, owner, prefixes=int(made_prefix), nbytes=grown)
    return get_row(connection, tenant, name, info.digest), created


def _check_user(connection: Connection, tenant: str, name: str, user: str | None) -> None:
    query = scope.prefixes_of(tenant, prefixes.c.user).where(prefixes.c.name == name)
    row = connection.execute(query).one_or_none()
    if user is not None and row is not None and row.user != user:
        raise Conflict(
            f"prefix '{name}' is there and is not this user's: give it another name, or delete it"
            " first"
        )


def _insert_version(
    connection: Connection,
    prefix_id: int,
    owner: str,
    info: VersionInfo,
    described: dict[str, Any],
    now: int,
) -> None:
    row = {field.name: getattr(info, field.name) for field in fields(VersionInfo)}
    row |= {"prefix_id": prefix_id, "owner": owner, "pinned": False, "created_at": now}
    row["decoding"] = dict(info.decoding)
    connection.execute(insert(versions).values(row | described))


def set_pinned(connection: Connection, version_id: int, epoch: int, pinned: bool) -> None:
    """Whether caches are to keep the version."""
    values = {"pinned": pinned, "pinned_epoch": epoch}
    connection.execute(update(versions).where(versions.c.id == version_id).values(values))


def pinned(connection: Connection, limit: int) -> tuple[ContentKey, ...]:
    """The contents that were pinned last, the oldest of these pins first.

    Where there are more, every tenant has as many as the others, if it has so many.
    """
    order = versions.c.pinned_epoch.desc(), versions.c.id.desc()
    rank = func.row_number().over(partition_by=versions.c.owner, order_by=order)
    ranked = select(
        versions.c.owner,
        versions.c.digest,
        versions.c.pinned_epoch,
        versions.c.id,
        rank.label("rank"),
    ).where(versions.c.pinned)
    mine = ranked.subquery()
    query = select(mine).order_by(mine.c.rank, mine.c.pinned_epoch.desc(), mine.c.id.desc())
    found = connection.execute(query.limit(limit)).all()
    found = sorted(found, key=lambda row: (row.pinned_epoch, row.id))
    return tuple(ContentKey(row.owner, row.digest) for row in found)


class PinFollower:
    """Knows whether pins may have changed since a look at them. Thread-safe."""

    def __init__(self, catalog: Database, limit: int) -> None:
        """`limit` bounds the pins that are told: the ones that were made last."""
        self._catalog, self._limit = catalog, limit
        self._changed_at = -1

    def start(self, wake: Callable[[], None]) -> None:
        """From now on `wake` is called when `look` may find something new; it must not raise."""

        def notice(epoch: int, changes: Sequence[Change] | None) -> None:
            if changes is None or any(change.kind in _MAY_PIN for change in changes):
                self._changed_at = epoch
                wake()

        self._catalog.feed.subscribe(notice)

    def look(self) -> tuple[int, tuple[ContentKey, ...]]:
        """The epoch, and the contents to keep as of then. Raises what the catalog raises."""
        with self._catalog.read() as connection:
            return read_epoch(connection), pinned(connection, self._limit)

    def is_outdated(self, epoch: int) -> bool:
        """Whether pins may have changed after this epoch; then another look follows.

        Other changes do not count: no look follows them, so what was found still holds.
        """
        return self._changed_at > epoch


def delete_version(connection: Connection, row: Row[Any]) -> None:
    """Forgets a version that no alias needs, given as its row."""
    connection.execute(delete(versions).where(versions.c.id == row.id))
    if not is_referenced(connection, row.owner, row.digest):
        _count(connection, row.tenant_id, row.owner, nbytes=-row.file_nbytes)


def delete_prefix(connection: Connection, tenant: str, prefix_id: int) -> list[ContentKey]:
    """Forgets a prefix with its aliases and versions; what they were."""
    query = select(versions.c.owner, versions.c.digest, versions.c.file_nbytes)
    contents = connection.execute(query.where(versions.c.prefix_id == prefix_id)).all()
    connection.execute(delete(aliases).where(aliases.c.prefix_id == prefix_id))
    connection.execute(delete(prefixes).where(prefixes.c.id == prefix_id))
    _count(connection, tenant, "", prefixes=-1)
    for owner, digest, file_nbytes in contents:
        if not is_referenced(connection, owner, digest):
            _count(connection, tenant, owner, nbytes=-file_nbytes)
    return [ContentKey(owner, digest) for owner, digest, _ in contents]


def is_referenced(connection: Connection, owner: str, digest: str) -> bool:
    """Whether any version, of whatever tenant, needs this content."""
    needed = exists().where(versions.c.owner == owner, versions.c.digest == digest)
    return bool(connection.scalar(select(needed)))


def _content_nbytes(connection: Connection, owner: str, digest: str) -> int:
    """Bytes of the file of a content that some version needs, 0 if none does."""
    query = select(versions.c.file_nbytes).where(
        versions.c.owner == owner, versions.c.digest == digest
    )
    return connection.scalar(query.limit(1)) or 0


def _count(
    connection: Connection, tenant: str, owner: str, *, prefixes: int = 0, nbytes: int = 0
) -> None:
    """Adds to what the tenant stores; what came with the store costs it nothing."""
    nbytes = 0 if owner == SHIPPED_OWNER else nbytes
    if prefixes or nbytes:
        changed = {
            "prefix_count": tenants.c.prefix_count + prefixes,
            "stored_nbytes": tenants.c.stored_nbytes + nbytes,
        }
        connection.execute(update(tenants).where(tenants.c.id == tenant).values(changed))


def stored(connection: Connection, tenant: str) -> tuple[int, int]:
    """(prefixes, bytes of files) of a tenant that exists."""
    query = select(tenants.c.prefix_count, tenants.c.stored_nbytes).where(tenants.c.id == tenant)
    row = connection.execute(query).one()
    return row.prefix_count, row.stored_nbytes


def check_new(
    connection: Connection, tenant: str, name: str, *, user: str | None, quota: Quota
) -> None:
    """Raises what a new version of the prefix would meet now: Conflict if the prefix is there and
    not this user's, QuotaExceeded if nothing more can be stored."""
    _check_user(connection, tenant, name, user)
    is_new = scope.find_prefix_id(connection, tenant, name) is None
    for what, most, used, added in zip(
        ("prefixes", "bytes"),
        (quota.max_prefixes, quota.max_bytes),
        stored(connection, tenant),
        (int(is_new), 1),
        strict=True,
    ):
        if most is not None and added and used + added > most:
            raise QuotaExceeded(
                f"the tenant's quota is {most} {what}, and {used} are used: delete something first"
            )


def check_quota(connection: Connection, tenant: str, quota: Quota, before: tuple[int, int]) -> None:
    """QuotaExceeded if the tenant stores more than its quota, and more than `before`."""
    for what, most, now, then in zip(
        ("prefixes", "bytes"),
        (quota.max_prefixes, quota.max_bytes),
        stored(connection, tenant),
        before,
        strict=True,
    ):
        if most is not None and now > most and now > then:
            raise QuotaExceeded(
                f"the tenant's quota is {most} {what}; {then} are used, and with this upload it "
                f"would be {now}: delete something first"
            )
