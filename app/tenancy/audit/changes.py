"""What a writing transaction has changed, as audit records say it: its notes and moved aliases.

Works inside a transaction that the caller holds, before its end.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, select

from app.db.change_log import ChangeKind, read_epoch
from app.db.schema import alias_history, aliases, catalog_changes, prefixes

_MOST = 16
"""Changes that one record names."""


def changes_of(connection: Connection) -> dict[str, Any]:
    """`changed`: [kind, tenant, name] of each note; `moved`: aliases with versions before, after.

    A version is a digest, or a split as {digest: weight}; None where there was none.
    """
    epoch = read_epoch(connection)
    query = (
        select(catalog_changes.c.kind, catalog_changes.c.tenant_id, catalog_changes.c.name)
        .where(catalog_changes.c.epoch == epoch)
        .order_by(catalog_changes.c.id)
        .limit(_MOST)
    )
    changed = [list(row) for row in connection.execute(query)]
    return {"changed": changed, "moved": _moved(connection, epoch)}


def _moved(connection: Connection, epoch: int) -> list[dict[str, Any]]:
    query = (
        select(aliases.c.prefix_id, aliases.c.name, prefixes.c.name.label("prefix"))
        .select_from(catalog_changes)
        .join(
            prefixes,
            and_(
                prefixes.c.tenant_id == catalog_changes.c.tenant_id,
                prefixes.c.name == catalog_changes.c.name,
            ),
        )
        .join(aliases, and_(aliases.c.prefix_id == prefixes.c.id, aliases.c.revision == epoch))
        .where(catalog_changes.c.epoch == epoch, catalog_changes.c.kind == ChangeKind.PREFIX.value)
        .order_by(aliases.c.name)
        .limit(_MOST)
    )
    return [
        {
            "prefix": row.prefix,
            "alias": row.name,
            **_last_move(connection, row.prefix_id, row.name),
        }
        for row in connection.execute(query).all()
    ]


def _last_move(connection: Connection, prefix_id: int, alias: str) -> dict[str, Any]:
    query = (
        select(alias_history.c.digest, alias_history.c.split)
        .where(alias_history.c.prefix_id == prefix_id, alias_history.c.alias == alias)
        .order_by(alias_history.c.id.desc())
        .limit(2)
    )
    states: list[Any] = [row.split or row.digest for row in connection.execute(query)]
    after, before = (*states, None, None)[:2]
    return {"before": before, "after": after}
