"""Which prefixes tenants let others use, and what a tenant is let use.

To a tenant that may not use it, a prefix looks exactly like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select, union

from app.db.database import Actor, Database
from app.db.paging import Page, check_limit, make_number_cursor, read_number_cursor
from app.db.schema import prefixes, publications, tenants
from app.errors import InvalidRequest
from app.prefix.reference import check_name
from app.registry import scope
from app.registry.scope import EVERYONE
from app.registry.types import Publication, PublishedPrefix

MAX_GRANTEES = 100
"""Tenants that one prefix may be published to by name."""


class Publications:
    """Publishing and withdrawing. Any call may raise what the registry's calls may."""

    def __init__(self, catalog: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog, self._clock = catalog, clock

    def get(self, tenant: str, name: str) -> Publication:
        """Who may use the tenant's prefix besides it, nobody at first; PrefixNotFound."""
        check_name(name)
        with self._catalog.read() as connection:
            return _read(connection, scope.get_prefix_id(connection, tenant, name), name)

    def set(
        self,
        tenant: str,
        name: str,
        grantees: Collection[str],
        *,
        everyone: bool,
        actor: Actor | None = None,
    ) -> Publication:
        """Publishes the prefix to these tenants, or to all, and to nobody else any more.

        The tenants need not exist, and nobody learns whether they do. InvalidRequest if one breaks
        the rules of names, is the owner, or if they are too many; PrefixNotFound.
        """
        _check(tenant, grantees)
        with scope.changing(self._catalog, tenant, name, actor) as (connection, _):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            wanted = {*grantees, EVERYONE} if everyone else set(grantees)
            mine = publications.c.prefix_id == prefix_id
            present = set(connection.scalars(select(publications.c.grantee).where(mine)))
            gone = publications.c.grantee.in_(sorted(present - wanted))
            connection.execute(delete(publications).where(mine, gone))
            row = {"prefix_id": prefix_id, "created_at": int(self._clock())}
            added = [{**row, "grantee": grantee} for grantee in sorted(wanted - present)]
            if added:
                connection.execute(insert(publications), added)
            return _read(connection, prefix_id, name)

    def offered(
        self, tenant: str, cursor: str | None = None, limit: int = 20
    ) -> Page[PublishedPrefix]:
        """What others publish to the tenant, in the order in which the prefixes were made.

        InvalidRequest if the cursor or the limit is wrong; NotFound if there is no such tenant.
        """
        count = check_limit(limit) + 1
        with self._catalog.read() as connection:
            owner = scope.get_owner(connection, tenant)
            after = 0 if cursor is None else read_number_cursor(cursor, owner)
            rows = connection.execute(_offered(tenant, after, count)).all()
        found = tuple(
            PublishedPrefix(tenant=row.tenant_id, name=row.name, created_at=row.created_at)
            for row in rows[:limit]
        )
        more = make_number_cursor(rows[limit - 1].id, owner) if len(rows) > limit else None
        return Page(found, more)


def _offered(tenant: str, after: int, count: int) -> Select[Any]:
    """The next prefixes that others publish to the tenant or to everyone."""
    ids = union(
        *(
            select(_published_to(grantee, tenant, after, count).subquery().c.id)
            for grantee in (tenant, EVERYONE)
        )
    ).subquery()
    return (
        select(prefixes.c.id, prefixes.c.tenant_id, prefixes.c.name, prefixes.c.created_at)
        .join(ids, ids.c.id == prefixes.c.id)
        .order_by(prefixes.c.id)
        .limit(count)
    )


def _published_to(grantee: str, caller: str, after: int, count: int) -> Select[Any]:
    """Numbers of the next prefixes that other tenants, not disabled, publish to a grantee."""
    return (
        select(publications.c.prefix_id.label("id"))
        .join(prefixes, prefixes.c.id == publications.c.prefix_id)
        .join(tenants, tenants.c.id == prefixes.c.tenant_id)
        .where(
            publications.c.grantee == grantee,
            publications.c.prefix_id > after,
            prefixes.c.tenant_id != caller,
            tenants.c.disabled_at.is_(None),
        )
        .order_by(publications.c.prefix_id)
        .limit(count)
    )


def _read(connection: Connection, prefix_id: int, name: str) -> Publication:
    query = select(publications.c.grantee).where(publications.c.prefix_id == prefix_id)
    grantees = set(connection.scalars(query))
    named = tuple(sorted(grantees - {EVERYONE}))
    return Publication(name=name, tenants=named, everyone=EVERYONE in grantees)


def _check(tenant: str, grantees: Collection[str]) -> None:
    if len(grantees) > MAX_GRANTEES:
        raise InvalidRequest(
            f"a prefix is published to at most {MAX_GRANTEES} tenants by name, not to "
            f"{len(grantees)}; to all with everyone",
            param="tenants",
        )
    for grantee in grantees:
        check_name(grantee, "a tenant's id")
        if grantee == tenant:
            raise InvalidRequest(
                "a prefix is not published to the tenant that owns it", param="tenants"
            )
