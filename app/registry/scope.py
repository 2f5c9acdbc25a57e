"""Whose a row is: the one place where a tenant is put into a query.

Prefixes are found through their tenant, versions and aliases through their prefix.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Select, exists, insert, select

from app.db.change_log import ChangeKind, note
from app.db.database import Actor, Database
from app.db.schema import prefixes, publications, tenants, versions
from app.errors import NotFound, PrefixNotFound
from app.prefix.reference import check_alias, check_name

EVERYONE = "*"
"""The grantee that stands for all tenants."""


@contextmanager
def changing(
    catalog: Database, tenant: str, name: str, actor: Actor | None
) -> Iterator[tuple[Connection, int]]:
    """A writing transaction, with its epoch, that changes one prefix of the tenant and nothing else
    that caches hold. InvalidRequest if the name breaks the rules."""
    check_name(name)
    with catalog.write(actor) as (connection, epoch):
        note(connection, epoch, ChangeKind.PREFIX, tenant, name)
        yield connection, epoch


def check_names(name: str, alias: str) -> None:
    """InvalidRequest if the name of the prefix or of the alias breaks the rules."""
    check_name(name)
    check_alias(alias)


def prefix_not_found(what: str) -> PrefixNotFound:
    """The one error for what is not there and for what is not the caller's."""
    return PrefixNotFound(f"prefix '{what}' does not exist", param="model")


def find_owner(connection: Connection, tenant: str) -> str | None:
    """The owner key of a tenant, None if there is no such tenant.

    It is the folder of the tenant's uploads: random, never made of the id.
    """
    return connection.scalar(select(tenants.c.owner).where(tenants.c.id == tenant))


def get_owner(connection: Connection, tenant: str) -> str:
    """As `find_owner`, but NotFound if there is no such tenant."""
    found = find_owner(connection, tenant)
    if found is None:
        raise NotFound("the tenant does not exist")
    return found


def make_tenant(connection: Connection, tenant: str, now: int) -> str:
    """The owner key of a tenant, which is made if it is new."""
    found = find_owner(connection, tenant)
    if found is not None:
        return found
    owner = secrets.token_hex(16)
    connection.execute(insert(tenants).values(id=tenant, owner=owner, created_at=now))
    return owner


def find_prefix_id(connection: Connection, tenant: str, name: str) -> int | None:
    """The number of the tenant's prefix, None if it has none of that name."""
    return connection.scalar(prefixes_of(tenant, prefixes.c.id).where(prefixes.c.name == name))


def get_prefix_id(connection: Connection, tenant: str, name: str) -> int:
    """As `find_prefix_id`, but PrefixNotFound if there is none."""
    found = find_prefix_id(connection, tenant, name)
    if found is None:
        raise prefix_not_found(name)
    return found


def prefixes_of(tenant: str, *columns: Any) -> Select[Any]:
    """A query over the tenant's prefixes: all columns unless some are named."""
    return select(*(columns or (prefixes,))).where(prefixes.c.tenant_id == tenant)


def versions_of(tenant: str) -> Select[Any]:
    """A query over the tenant's versions, with the columns `name` and `tenant_id` of the prefix."""
    joined = select(versions, prefixes.c.name, prefixes.c.tenant_id).join(
        prefixes, prefixes.c.id == versions.c.prefix_id
    )
    return joined.where(prefixes.c.tenant_id == tenant)


def usable_by(caller: BindParameter[Any]) -> ColumnElement[bool]:
    """Whether a prefix, in a query over `prefixes` and `tenants`, may be used by the caller.

    It may if it is the caller's own, or published to it by a tenant that is not disabled.
    """
    published = exists().where(
        publications.c.prefix_id == prefixes.c.id,
        publications.c.grantee.in_([caller, EVERYONE]),
    )
    return (prefixes.c.tenant_id == caller) | (tenants.c.disabled_at.is_(None) & published)
