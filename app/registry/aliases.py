"""Aliases in the catalog: where they point, how they move, how a move is taken back.

Works inside a transaction that the caller holds, on a prefix that the caller has found for its
tenant. Knows nothing about files.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from app.errors import Conflict, NotFound, PreconditionFailed
from app.registry.records import LATEST, Alias, AliasChange
from app.registry.schema import alias_history, aliases, versions

MAX_HISTORY = 100
"""Moves that are remembered per alias."""
MAX_ALIASES = 100
"""Aliases that one prefix may have."""


def find_alias(connection: Connection, prefix_id: int, alias: str) -> Row[Any] | None:
    """The alias with the digest of its version, None if the prefix has none of that name."""
    query = (
        select(aliases, versions.c.digest)
        .join(versions, versions.c.id == aliases.c.version_id)
        .where(aliases.c.prefix_id == prefix_id, aliases.c.name == alias)
    )
    return connection.execute(query).one_or_none()


def get(connection: Connection, prefix_id: int, alias: str) -> Alias:
    """The alias; NotFound if the prefix has none of that name."""
    row = find_alias(connection, prefix_id, alias)
    if row is None:
        raise NotFound(f"the prefix has no alias '{alias}'", param="alias")
    return Alias(
        name=alias,
        digest=row.digest,
        etag=_etag(row),
        updated_at=row.updated_at,
    )


def check_match(connection: Connection, prefix_id: int, alias: str, if_match: str | None) -> None:
    """PreconditionFailed unless the alias is in one of the states that `if_match` lists.

    `if_match` is a comma-separated list of etags, or `*` for "it exists", or None for no condition.
    """
    if if_match is None:
        return
    row = find_alias(connection, prefix_id, alias)
    wanted = {tag.strip() for tag in if_match.split(",")}
    if row is None or not ("*" in wanted or _etag(row) in wanted):
        raise PreconditionFailed(
            f"alias '{alias}' has been moved by someone else", param="if-match"
        )


def move(
    connection: Connection, epoch: int, version: Row[Any], alias: str, *, reason: str, now: int
) -> None:
    """Points an alias at a version, given as its row; no change if it points there already."""
    prefix_id = version.prefix_id
    present = find_alias(connection, prefix_id, alias)
    if present is not None and present.version_id == version.id:
        return
    if present is None:
        _check_number(connection, prefix_id)
        row = {"prefix_id": prefix_id, "name": alias, **_target(version.id, epoch, now)}
        connection.execute(insert(aliases).values(row))
    else:
        _repoint(connection, prefix_id, alias, _target(version.id, epoch, now))
    _remember(connection, prefix_id, alias, version.digest, reason, undoable=True, now=now)


def undo(connection: Connection, epoch: int, prefix_id: int, alias: str, *, now: int) -> None:
    """Points an alias at where it pointed before; repeated, it goes further back.

    Conflict if there is nothing before that still exists.
    """
    present = find_alias(connection, prefix_id, alias)
    digest = None if present is None else present.digest
    query = (
        select(alias_history.c.id, alias_history.c.digest, versions.c.id.label("version_id"))
        .join(
            versions,
            (versions.c.prefix_id == alias_history.c.prefix_id)
            & (versions.c.digest == alias_history.c.digest),
        )
        .where(
            alias_history.c.prefix_id == prefix_id,
            alias_history.c.alias == alias,
            alias_history.c.undoable,
        )
        .order_by(alias_history.c.id.desc())
    )
    target = next((row for row in connection.execute(query) if row.digest != digest), None)
    if target is None:
        raise Conflict(f"alias '{alias}' has no earlier version to return to", param="alias")
    connection.execute(
        update(alias_history)
        .where(
            alias_history.c.prefix_id == prefix_id,
            alias_history.c.alias == alias,
            alias_history.c.id > target.id,
        )
        .values(undoable=False)
    )
    _repoint(connection, prefix_id, alias, _target(target.version_id, epoch, now))
    _remember(connection, prefix_id, alias, target.digest, "rollback", undoable=False, now=now)


def history(connection: Connection, prefix_id: int, alias: str) -> tuple[AliasChange, ...]:
    """The moves of an alias that are remembered, the latest first."""
    query = (
        select(alias_history)
        .where(alias_history.c.prefix_id == prefix_id, alias_history.c.alias == alias)
        .order_by(alias_history.c.id.desc())
    )
    return tuple(
        AliasChange(digest=row.digest, reason=row.reason, changed_at=row.changed_at)
        for row in connection.execute(query)
    )


def pointing_at(connection: Connection, version_id: int) -> list[str]:
    """Names of the aliases that point at a version, `latest` first."""
    query = select(aliases.c.name).where(aliases.c.version_id == version_id)
    return sorted(connection.scalars(query), key=lambda name: (name != LATEST, name))


def forget_digest(connection: Connection, prefix_id: int, digest: str) -> None:
    """Takes a version that is about to go out of reach of rollbacks."""
    connection.execute(
        update(alias_history)
        .where(alias_history.c.prefix_id == prefix_id, alias_history.c.digest == digest)
        .values(undoable=False)
    )


def _etag(row: Row[Any]) -> str:
    state = f"{row.prefix_id}/{row.name}/{row.revision}/{row.digest}"
    return f'"{hashlib.sha256(state.encode()).hexdigest()[:16]}"'


def _target(version_id: int, epoch: int, now: int) -> dict[str, int]:
    return {"version_id": version_id, "revision": epoch, "updated_at": now}


def _repoint(connection: Connection, prefix_id: int, alias: str, target: dict[str, int]) -> None:
    connection.execute(
        update(aliases)
        .where(aliases.c.prefix_id == prefix_id, aliases.c.name == alias)
        .values(target)
    )


def _check_number(connection: Connection, prefix_id: int) -> None:
    query = select(aliases.c.name).where(aliases.c.prefix_id == prefix_id).limit(MAX_ALIASES)
    if len(connection.execute(query).all()) >= MAX_ALIASES:
        raise Conflict(f"a prefix has at most {MAX_ALIASES} aliases", param="alias")


def _remember(
    connection: Connection,
    prefix_id: int,
    alias: str,
    digest: str,
    reason: str,
    *,
    undoable: bool,
    now: int,
) -> None:
    row = {
        "prefix_id": prefix_id,
        "alias": alias,
        "digest": digest,
        "reason": reason,
        "undoable": undoable,
        "changed_at": now,
    }
    connection.execute(insert(alias_history).values(row))
    same = (alias_history.c.prefix_id == prefix_id) & (alias_history.c.alias == alias)
    oldest_kept = (
        select(alias_history.c.id)
        .where(same)
        .order_by(alias_history.c.id.desc())
        .offset(MAX_HISTORY - 1)
        .limit(1)
    )
    connection.execute(
        delete(alias_history).where(same, alias_history.c.id < oldest_kept.scalar_subquery())
    )
