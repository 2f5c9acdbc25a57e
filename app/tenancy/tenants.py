"""Tenants in the catalog: who there is, whether they may do anything, and their limits."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from app.db.change_log import ChangeKind, note
from app.db.database import Actor, Database
from app.db.paging import Page, check_limit, make_cursor, read_cursor
from app.db.schema import (
    alias_targets,
    aliases,
    prefixes,
    publications,
    retired_owners,
    tenants,
)
from app.errors import Conflict, NotFound
from app.prefix.reference import check_name
from app.tenancy.limits.limits import TenantLimits


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One tenant. Times are in seconds since 1970; `disabled_at` is None for one that may act."""

    id: str
    created_at: int
    disabled_at: int | None
    limits: TenantLimits = field(default_factory=TenantLimits)

    def to_json(self) -> dict[str, Any]:
        """As replies and commands show it."""
        return {**vars(self), "limits": self.limits.to_json()}


class Tenants:
    """Makes, changes and removes tenants. Synchronous and thread-safe.

    Any method may raise what the catalog raises; the writing ones have then changed nothing.
    They take the `actor` who makes the change, for the audit log.
    """

    def __init__(self, catalog: Database, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog, self._clock = catalog, clock

    def create(
        self, tenant: str, limits: TenantLimits | None = None, *, actor: Actor | None = None
    ) -> Tenant:
        """A new tenant. InvalidRequest if its id breaks the rules of names; Conflict if known."""
        check_name(tenant, "a tenant's id")
        row = {
            "id": tenant,
            "owner": secrets.token_hex(16),
            "created_at": int(self._clock()),
            "limits": (limits or TenantLimits()).to_json(),
        }
        with self._changing(tenant, actor) as connection:
            if connection.execute(_one(tenant)).first() is not None:
                raise Conflict(f"tenant '{tenant}' exists already", param="id")
            connection.execute(insert(tenants).values(row))
            return get_tenant(connection, tenant)

    def get(self, tenant: str) -> Tenant:
        """One tenant; NotFound."""
        with self._catalog.read() as connection:
            return get_tenant(connection, tenant)

    def list(self, cursor: str | None = None, limit: int = 20) -> Page[Tenant]:
        """Tenants by id. InvalidRequest if the cursor or the limit is wrong."""
        query = select(tenants).order_by(tenants.c.id).limit(check_limit(limit) + 1)
        if cursor is not None:
            query = query.where(tenants.c.id > read_cursor(cursor))
        with self._catalog.read() as connection:
            rows = connection.execute(query).all()
        more = make_cursor(rows[limit - 1].id) if len(rows) > limit else None
        return Page(tuple(_to_tenant(row) for row in rows[:limit]), more)

    def change(
        self,
        tenant: str,
        *,
        limits: Mapping[str, object] | None = None,
        disabled: bool | None = None,
        actor: Actor | None = None,
    ) -> Tenant:
        """Changes what is given. Of `limits` what is left out stays, and None is no limit.

        All keys of a disabled tenant are refused until it is enabled again. NotFound;
        InvalidRequest if a limit is none or out of bounds.
        """
        with self._changing(tenant, actor) as connection:
            known = get_tenant(connection, tenant)
            values: dict[str, Any] = {}
            if limits is not None:
                values["limits"] = TenantLimits.from_json(
                    {**known.limits.to_json(), **limits}
                ).to_json()
            if disabled is not None:
                since = known.disabled_at or int(self._clock())
                values["disabled_at"] = since if disabled else None
            if values:
                connection.execute(update(tenants).where(tenants.c.id == tenant).values(values))
            return get_tenant(connection, tenant)

    def delete(self, tenant: str, *, actor: Actor | None = None) -> None:
        """Forgets a tenant with its keys, prefixes and versions; NotFound.

        Their contents follow when garbage is collected. What it used and did stays on record.
        """
        with self._changing(tenant, actor) as connection:
            get_tenant(connection, tenant)
            owner = connection.scalar(select(tenants.c.owner).where(tenants.c.id == tenant))
            owned = select(prefixes.c.id).where(prefixes.c.tenant_id == tenant)
            for table in (alias_targets, aliases):  # they refer to versions, which go with prefixes
                connection.execute(delete(table).where(table.c.prefix_id.in_(owned)))
            # a later tenant of this id inherits nothing
            connection.execute(delete(publications).where(publications.c.grantee == tenant))
            connection.execute(delete(tenants).where(tenants.c.id == tenant))
            retired = {"owner": owner, "retired_at": int(self._clock())}
            connection.execute(insert(retired_owners).values(retired))

    @contextmanager
    def _changing(self, tenant: str, actor: Actor | None) -> Iterator[Connection]:
        with self._catalog.write(actor) as (connection, epoch):
            note(connection, epoch, ChangeKind.TENANT, tenant)
            yield connection


def get_tenant(connection: Connection, tenant: str) -> Tenant:
    """One tenant as this transaction sees it; NotFound, InvalidRequest for what is no id."""
    check_name(tenant, "a tenant's id")
    row = connection.execute(_one(tenant)).one_or_none()
    if row is None:
        raise NotFound(f"tenant '{tenant}' does not exist")
    return _to_tenant(row)


def _one(tenant: str) -> Any:
    return select(tenants).where(tenants.c.id == tenant)


def _to_tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        id=row.id,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        limits=TenantLimits.from_json(row.limits),
    )
