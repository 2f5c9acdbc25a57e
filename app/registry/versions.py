"""Versions in the catalog: finding, publishing, forgetting.

Works inside a transaction that the caller holds; knows nothing about files.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, insert, select, update

from app.errors import InvalidRequest
from app.prefix.reference import check_name, looks_hexadecimal
from app.registry import scope
from app.registry.records import LATEST, Version, VersionInfo
from app.registry.schema import aliases, prefixes, versions

# Built once: this is the query behind every request that names a prefix for the first time.
_BY_ALIAS = (
    scope.versions_of(bindparam("tenant"))
    .join(aliases, aliases.c.version_id == versions.c.id)
    .where(prefixes.c.name == bindparam("name"), aliases.c.name == bindparam("alias"))
)


def to_version(row: Row[Any]) -> Version:
    """A row of `scope.versions_of`, as the rest of the program sees it."""
    return Version(
        digest=row.digest,
        length=row.length,
        position_offset=row.position_offset,
        dtype=row.dtype,
        nbytes=row.nbytes,
        base_model=row.base_model,
        base_fingerprint=row.base_fingerprint,
        input_template=row.input_template,
        decoding=row.decoding,
        provenance=row.provenance,
        tenant=row.tenant_id,
        owner=row.owner,
        name=row.name,
        created_at=row.created_at,
        pinned=row.pinned,
    )


def find(connection: Connection, tenant: str, name: str, selector: str | None) -> Version | None:
    """What an alias or the start of a digest stands for (None: `latest`), None if nothing.

    InvalidRequest if several versions begin so.
    """
    if selector is not None and looks_hexadecimal(selector):
        row = find_row(connection, tenant, name, selector)
    else:
        wanted = {"tenant": tenant, "name": name, "alias": selector or LATEST}
        row = connection.execute(_BY_ALIAS, wanted).one_or_none()
    return None if row is None else to_version(row)


def find_row(connection: Connection, tenant: str, name: str, start: str) -> Row[Any] | None:
    """The row whose digest begins so, None if there is none; InvalidRequest if several do."""
    query = scope.versions_of(tenant).where(
        prefixes.c.name == name,
        versions.c.digest >= start,
        versions.c.digest < start + "g",  # what follows the last digit, "f"
    )
    rows = connection.execute(query.limit(2)).all()
    if len(rows) > 1:
        message = f"'{name}@{start}' is ambiguous: several versions begin so"
        raise InvalidRequest(message, param="model")
    return rows[0] if rows else None


def get_row(connection: Connection, tenant: str, name: str, digest: str) -> Row[Any]:
    """As `find_row`, but PrefixNotFound if there is none."""
    check_name(name)
    if not looks_hexadecimal(digest):
        raise scope.prefix_not_found(f"{name}@…")  # a stranger's text is not repeated
    row = find_row(connection, tenant, name, digest)
    if row is None:
        raise scope.prefix_not_found(f"{name}@{digest}")
    return row


def newest_row(connection: Connection, prefix_id: int, *, without: int) -> Row[Any] | None:
    """The version that came last, but for one; None if there is no other."""
    query = select(versions).where(versions.c.prefix_id == prefix_id, versions.c.id != without)
    return connection.execute(query.order_by(versions.c.id.desc()).limit(1)).one_or_none()


def sibling_row(connection: Connection, tenant: str, name: str, digest: str) -> Row[Any] | None:
    """A version of the tenant with this content: of this prefix if it has one, else of another."""
    query = scope.versions_of(tenant).where(versions.c.digest == digest)
    query = query.order_by(prefixes.c.name != name, versions.c.id).limit(1)
    return connection.execute(query).one_or_none()


def publish(
    connection: Connection,
    tenant: str,
    name: str,
    owner: str,
    info: VersionInfo,
    *,
    file_nbytes: int,
    now: int,
) -> tuple[Row[Any], bool]:
    """The row of a content that is in the store, and whether it had to be made.

    The catalog says of a content what its file says: where the tenant has it already and the file
    is the one of then, its description stays; otherwise all its versions take the new one.
    """
    known = sibling_row(connection, tenant, name, info.digest)
    created = known is None or known.name != name
    if created:
        prefix_id = scope.find_prefix_id(connection, tenant, name)
        if prefix_id is None:
            prefix_id = _insert_prefix(connection, tenant, name, now)
        _insert_version(connection, prefix_id, owner, info, file_nbytes, now)
    described = {
        "file_nbytes": file_nbytes,
        "base_model": info.base_model,
        "provenance": dict(info.provenance),
    }
    if known is not None and known.owner == owner and known.file_nbytes == file_nbytes:
        described |= {"base_model": known.base_model, "provenance": known.provenance}
    same = (versions.c.owner == owner) & (versions.c.digest == info.digest)
    connection.execute(update(versions).where(same).values(described))
    return get_row(connection, tenant, name, info.digest), created


def _insert_prefix(connection: Connection, tenant: str, name: str, now: int) -> int:
    row = {"tenant_id": tenant, "name": name, "created_at": now}
    return connection.execute(insert(prefixes).values(row).returning(prefixes.c.id)).scalar_one()


def _insert_version(
    connection: Connection,
    prefix_id: int,
    owner: str,
    info: VersionInfo,
    file_nbytes: int,
    now: int,
) -> None:
    row = {
        "prefix_id": prefix_id,
        "owner": owner,
        "digest": info.digest,
        "file_nbytes": file_nbytes,
        "length": info.length,
        "position_offset": info.position_offset,
        "dtype": info.dtype,
        "nbytes": info.nbytes,
        "base_model": info.base_model,
        "base_fingerprint": info.base_fingerprint,
        "input_template": info.input_template,
        "decoding": dict(info.decoding),
        "provenance": dict(info.provenance),
        "pinned": False,
        "created_at": now,
    }
    connection.execute(insert(versions).values(row))


def set_pinned(connection: Connection, version_id: int, pinned: bool) -> None:
    """Whether caches are to keep the version."""
    connection.execute(update(versions).where(versions.c.id == version_id).values(pinned=pinned))


def pinned(connection: Connection, tenant: str, limit: int) -> tuple[Version, ...]:
    """The tenant's pinned versions, oldest first."""
    query = scope.versions_of(tenant).where(versions.c.pinned).order_by(versions.c.id).limit(limit)
    return tuple(to_version(row) for row in connection.execute(query))


def delete_version(connection: Connection, version_id: int) -> None:
    """Forgets a version that no alias points at."""
    connection.execute(delete(versions).where(versions.c.id == version_id))


def delete_prefix(connection: Connection, prefix_id: int) -> None:
    """Forgets a prefix with its aliases and versions."""
    connection.execute(delete(aliases).where(aliases.c.prefix_id == prefix_id))
    connection.execute(delete(prefixes).where(prefixes.c.id == prefix_id))


def contents_of(connection: Connection, prefix_id: int) -> list[tuple[str, str]]:
    """(owner, digest) of every version of a prefix."""
    query = select(versions.c.owner, versions.c.digest).where(versions.c.prefix_id == prefix_id)
    return [(row.owner, row.digest) for row in connection.execute(query)]


def digests_of(connection: Connection, owner: str) -> set[str]:
    """The contents of an owner that any version needs."""
    return set(connection.scalars(select(versions.c.digest).where(versions.c.owner == owner)))


def is_referenced(connection: Connection, owner: str, digest: str) -> bool:
    """Whether any version, of whatever tenant, needs this content."""
    needed = exists().where(versions.c.owner == owner, versions.c.digest == digest)
    return bool(connection.scalar(select(needed)))
