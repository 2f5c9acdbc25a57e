"""What a reference stands for, to whom: from the cache, or by one query.

The caller's own prefixes and those that are published to it are found in the same way, and what is
not there and what is not the caller's cost the same queries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from app.db.change_log import Change, ChangeKind
from app.db.database import Database
from app.db.epoch_cache import EpochCache
from app.db.schema import alias_targets, aliases, prefixes, tenants, versions
from app.errors import InvalidRequest
from app.prefix.reference import PrefixReference
from app.registry import scope
from app.registry.splits import Split
from app.registry.types import LATEST, Resolved

_COLUMNS = (
    versions.c.owner,
    versions.c.digest,
    versions.c.base_model,
    versions.c.base_fingerprint,
    versions.c.created_at,
)
_PREFIX = (
    (prefixes.c.tenant_id == bindparam("owner"))
    & (prefixes.c.name == bindparam("name"))
    & scope.usable_by(bindparam("caller"))
)
# Built once: these are the queries behind every request that names a prefix for the first time.
_BY_ALIAS = (
    select(*_COLUMNS, alias_targets.c.weight)
    .select_from(prefixes)
    .join(tenants, tenants.c.id == prefixes.c.tenant_id)
    .join(aliases, aliases.c.prefix_id == prefixes.c.id)
    .outerjoin(
        alias_targets,
        (alias_targets.c.prefix_id == aliases.c.prefix_id)
        & (alias_targets.c.alias == aliases.c.name),
    )
    .join(
        versions, versions.c.id == func.coalesce(alias_targets.c.version_id, aliases.c.version_id)
    )
    .where(_PREFIX, aliases.c.name == bindparam("selector"))
)
_BY_DIGEST = (
    select(*_COLUMNS)
    .select_from(prefixes)
    .join(tenants, tenants.c.id == prefixes.c.tenant_id)
    .join(versions, versions.c.prefix_id == prefixes.c.id)
    .where(
        _PREFIX,
        versions.c.digest >= bindparam("selector"),
        versions.c.digest < bindparam("end"),
    )
    .limit(2)
)


_Key = tuple[str, PrefixReference]
"""Who asks, for what."""


class Resolver:
    """References to versions, with a cache in front. Thread-safe."""

    def __init__(self, catalog: Database, *, known: int = 131_072, unknown: int = 2048) -> None:
        """`known` and `unknown` bound the references that are kept: what stands for something and
        what does not."""
        self._feed = catalog.feed
        self.cache = EpochCache[_Key, Resolved | Split](
            catalog, _depends_on, known=known, unknown=unknown
        )

    def resolve(self, tenant: str, reference: PrefixReference, user: str | None = None) -> Resolved:
        """The version that a reference stands for now; of a split, the one for this user.

        PrefixNotFound, the same for what is another tenant's and not published to this one and for
        what does not exist; InvalidRequest if several versions begin with the digits given.
        """
        self._feed.refresh()
        known, entry = self.cache.get((tenant, reference))
        if not known:
            key = (sys.intern(tenant), reference)
            entry = self.cache.read(key, partial(_find, tenant, reference))
        return _chosen(tenant, reference, entry, user)

    def resolve_cached(
        self, tenant: str, reference: PrefixReference, user: str | None = None
    ) -> Resolved | None:
        """As `resolve`, without any I/O: None if that needs a look at the catalog."""
        known, entry = self.cache.get_fresh((tenant, reference))
        return _chosen(tenant, reference, entry, user) if known else None


def is_usable(connection: Connection, caller: str, reference: PrefixReference) -> bool:
    """Whether a reference stands for a version that the caller may use."""
    return _find(caller, reference, connection) is not None


def _depends_on(key: _Key, _: Resolved | Split | None) -> tuple[Change, ...]:
    """The prefix, its owner, who may be disabled or go, and the caller."""
    caller, reference = key
    owner = reference.tenant or caller
    prefix = Change(ChangeKind.PREFIX, owner, reference.name)
    return prefix, *(Change(ChangeKind.TENANT, tenant, "") for tenant in {owner, caller})


def _chosen(
    tenant: str, reference: PrefixReference, entry: Resolved | Split | None, user: str | None
) -> Resolved:
    if entry is None:
        raise scope.prefix_not_found(str(reference))
    if isinstance(entry, Split):
        return entry.choose(tenant, reference.selector or LATEST, user)
    return entry


def _find(
    caller: str, reference: PrefixReference, connection: Connection
) -> Resolved | Split | None:
    selector = reference.selector or LATEST
    wanted = {
        "owner": reference.tenant or caller,
        "name": reference.name,
        "caller": caller,
        "selector": selector,
    }
    rows: Sequence[Any]
    if reference.selects_digest:
        # what follows the last digit, "f"
        rows = connection.execute(_BY_DIGEST, {**wanted, "end": selector + "g"}).all()
        if len(rows) > 1:
            message = f"'{reference}' is ambiguous: several versions begin so"
            raise InvalidRequest(message, param="model")
    else:
        rows = connection.execute(_BY_ALIAS, wanted).all()
    found = tuple(_to_resolved(row, wanted["owner"], reference.name) for row in rows)
    if len(found) > 1:
        return Split(found, tuple(row.weight for row in rows))
    return found[0] if found else None


def _to_resolved(row: Any, tenant: str, name: str) -> Resolved:
    """A row as a small value: entries of a cache share the texts that many of them have."""
    return Resolved(
        tenant=sys.intern(tenant),
        name=name,
        owner=sys.intern(row.owner),
        digest=row.digest,
        base_model=None if row.base_model is None else sys.intern(row.base_model),
        base_fingerprint=None if row.base_fingerprint is None else sys.intern(row.base_fingerprint),
        created_at=row.created_at,
    )
