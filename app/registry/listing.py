"""Lists of prefixes and versions, in pages, each in a constant number of queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from app.db.database import Database
from app.db.paging import (
    Page,
    check_limit,
    make_cursor,
    make_number_cursor,
    read_cursor,
    read_number_cursor,
)
from app.db.schema import aliases, prefixes, versions
from app.prefix.reference import check_name
from app.registry import scope
from app.registry.aliases import splits_of
from app.registry.types import LATEST, PrefixRecord, Version
from app.registry.versions import to_version


class Listing:
    """Lists of a registry. Any call may raise what the registry's calls may."""

    def __init__(self, catalog: Database) -> None:
        self._catalog = catalog

    def list_versions(
        self, tenant: str, name: str, cursor: str | None = None, limit: int = 20
    ) -> Page[Version]:
        """A prefix's versions, the newest first; PrefixNotFound, InvalidRequest."""
        check_name(name)
        with self._catalog.read() as connection:
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            owner = scope.get_owner(connection, tenant)
            query = scope.versions_of(tenant).where(versions.c.prefix_id == prefix_id)
            if cursor is not None:
                query = query.where(versions.c.id < read_number_cursor(cursor, owner))
            query = query.order_by(versions.c.id.desc()).limit(check_limit(limit) + 1)
            rows = connection.execute(query).all()
        more = make_number_cursor(rows[limit - 1].id, owner) if len(rows) > limit else None
        return Page(tuple(to_version(row) for row in rows[:limit]), more)

    def list_prefixes(
        self,
        tenant: str,
        cursor: str | None = None,
        limit: int = 20,
        user: str | None = None,
    ) -> Page[PrefixRecord]:
        """The tenant's prefixes by name, or those of one user.

        InvalidRequest if the cursor or the limit is wrong.
        """
        query = scope.prefixes_of(tenant)
        if user is not None:
            query = query.where(prefixes.c.user == user)
        if cursor is not None:
            query = query.where(prefixes.c.name > read_cursor(cursor))
        query = query.order_by(prefixes.c.name).limit(check_limit(limit) + 1)
        with self._catalog.read() as connection:
            rows = connection.execute(query).all()
            more = make_cursor(rows[limit - 1].name) if len(rows) > limit else None
            return Page(_to_records(connection, rows[:limit]), more)

    def list_names(self, tenant: str, limit: int) -> list[tuple[str, int]]:
        """The first of the tenant's prefixes by name, each with when it was made."""
        query = scope.prefixes_of(tenant, prefixes.c.name, prefixes.c.created_at)
        with self._catalog.read() as connection:
            rows = connection.execute(query.order_by(prefixes.c.name).limit(limit))
            return [(row.name, row.created_at) for row in rows]

    def get_prefix(self, tenant: str, name: str) -> PrefixRecord:
        """One prefix; PrefixNotFound."""
        check_name(name)
        query = scope.prefixes_of(tenant).where(prefixes.c.name == name)
        with self._catalog.read() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise scope.prefix_not_found(name)
            return _to_records(connection, [row])[0]


def _to_records(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[PrefixRecord, ...]:
    ids = [row.id for row in rows]
    counts = _version_counts(connection, ids)
    named = _aliases(connection, ids)
    splits = splits_of(connection, ids)
    return tuple(
        PrefixRecord(
            tenant=row.tenant_id,
            name=row.name,
            created_at=row.created_at,
            versions=counts[row.id],
            aliases=named[row.id],
            splits=splits.get(row.id, {}),
        )
        for row in rows
    )


def _version_counts(connection: Connection, ids: list[int]) -> dict[int, int]:
    query = (
        select(versions.c.prefix_id, func.count().label("number"))
        .where(versions.c.prefix_id.in_(ids))
        .group_by(versions.c.prefix_id)
    )
    return {row.prefix_id: row.number for row in connection.execute(query)}


def _aliases(connection: Connection, ids: list[int]) -> dict[int, dict[str, str]]:
    query = (
        select(aliases.c.prefix_id, aliases.c.name, versions.c.digest)
        .join(versions, versions.c.id == aliases.c.version_id)
        .where(aliases.c.prefix_id.in_(ids))
        .order_by(aliases.c.name != LATEST, aliases.c.name)
    )
    named: dict[int, dict[str, str]] = {key: {} for key in ids}
    for row in connection.execute(query):
        named[row.prefix_id][row.name] = row.digest
    return named
