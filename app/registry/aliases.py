"""Aliases in the catalog: where they point, how they move, how a move is taken back.

An alias points at one version or is split over several by weight. Works inside a transaction that
the caller holds, on a prefix that the caller has found for its tenant. Knows nothing about files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, insert, select, update

from app.db.schema import (
    alias_history,
    alias_targets,
    aliases,
    prefixes,
    tenants,
    versions,
)
from app.errors import Conflict, NotFound, PreconditionFailed
from app.registry.types import LATEST, Alias, AliasChange

MAX_HISTORY = 100
"""Moves that are remembered per alias."""
MAX_ALIASES = 100
"""Aliases that one prefix may have."""

Weights = Mapping[str, int]
"""Digests with their weights; one alone is where an alias simply points."""

_IS_SPLIT = exists().where(
    alias_targets.c.prefix_id == aliases.c.prefix_id, alias_targets.c.alias == aliases.c.name
)


def find_alias(connection: Connection, prefix_id: int, alias: str) -> Row[Any] | None:
    """The alias with `digest`, that of its (main) version, `is_split` and its tenant's `owner` key;
    None if the prefix has none of that name."""
    query = (
        select(aliases, versions.c.digest, _IS_SPLIT.label("is_split"), tenants.c.owner)
        .join(versions, versions.c.id == aliases.c.version_id)
        .join(prefixes, prefixes.c.id == aliases.c.prefix_id)
        .join(tenants, tenants.c.id == prefixes.c.tenant_id)
        .where(aliases.c.prefix_id == prefix_id, aliases.c.name == alias)
    )
    return connection.execute(query).one_or_none()


def get(connection: Connection, prefix_id: int, alias: str) -> Alias:
    """The alias; NotFound if the prefix has none of that name."""
    row = find_alias(connection, prefix_id, alias)
    if row is None:
        raise NotFound(f"the prefix has no alias '{alias}'", param="alias")
    weights = _weights(connection, row)
    return Alias(
        name=alias,
        digest=row.digest,
        etag=_etag(row),
        updated_at=row.updated_at,
        split=weights if len(weights) > 1 else None,
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
    weights = {version.digest: 1}
    split(connection, epoch, version.prefix_id, alias, weights, reason=reason, now=now)


def split(
    connection: Connection,
    epoch: int,
    prefix_id: int,
    alias: str,
    weights: Weights,
    *,
    reason: str,
    now: int,
) -> None:
    """Splits an alias over versions of the prefix that exist; no change if it is so already."""
    present = find_alias(connection, prefix_id, alias)
    if present is None:
        _check_number(connection, prefix_id)
    elif _weights(connection, present) == weights:
        return
    _point(connection, epoch, prefix_id, alias, weights, now=now)
    _remember(connection, prefix_id, alias, weights, reason, undoable=True, now=now)


def undo(connection: Connection, epoch: int, prefix_id: int, alias: str, *, now: int) -> None:
    """Points an alias at where it pointed before; repeated, it goes further back.

    Conflict if there is nothing before that still exists.
    """
    present = find_alias(connection, prefix_id, alias)
    weights = {} if present is None else _weights(connection, present)
    mine = (alias_history.c.prefix_id == prefix_id) & (alias_history.c.alias == alias)
    query = select(alias_history).where(mine, alias_history.c.undoable)
    for target in connection.execute(query.order_by(alias_history.c.id.desc())).all():
        before = _weights_of(target)
        if before != weights and len(ids_of(connection, prefix_id, before)) == len(before):
            break
    else:
        raise Conflict(f"alias '{alias}' has no earlier version to return to", param="alias")
    undone = update(alias_history).where(mine, alias_history.c.id > target.id)
    connection.execute(undone.values(undoable=False))
    _point(connection, epoch, prefix_id, alias, before, now=now)
    _remember(connection, prefix_id, alias, before, "rollback", undoable=False, now=now)


def history(connection: Connection, prefix_id: int, alias: str) -> tuple[AliasChange, ...]:
    """The moves of an alias that are remembered, the latest first."""
    query = (
        select(alias_history)
        .where(alias_history.c.prefix_id == prefix_id, alias_history.c.alias == alias)
        .order_by(alias_history.c.id.desc())
    )
    return tuple(
        AliasChange(
            digest=row.digest, reason=row.reason, changed_at=row.changed_at, split=row.split
        )
        for row in connection.execute(query)
    )


def pointing_at(connection: Connection, version_id: int) -> list[str]:
    """Names of the aliases that point at a version, and at no other, `latest` first."""
    query = select(aliases.c.name).where(aliases.c.version_id == version_id, ~_IS_SPLIT)
    return sorted(connection.scalars(query), key=lambda name: (name != LATEST, name))


def splitting_to(connection: Connection, version_id: int) -> list[str]:
    """Names of the aliases that are split over a version and others."""
    query = select(alias_targets.c.alias).where(alias_targets.c.version_id == version_id)
    return sorted(connection.scalars(query))


def points_at(connection: Connection, prefix_id: int, alias: str, weights: Weights) -> bool:
    """Whether the alias is there and serves these versions by these weights."""
    row = find_alias(connection, prefix_id, alias)
    return row is not None and _weights(connection, row) == weights


def forget_digest(connection: Connection, prefix_id: int, digest: str) -> None:
    """Takes a version that is about to go, and splits with it, out of reach of rollbacks."""
    mine = (alias_history.c.prefix_id == prefix_id) & alias_history.c.undoable
    remembered = connection.execute(select(alias_history).where(mine)).all()
    gone = [row.id for row in remembered if digest in _weights_of(row)]
    connection.execute(
        update(alias_history).where(alias_history.c.id.in_(gone)).values(undoable=False)
    )


def splits_of(
    connection: Connection, prefix_ids: Collection[int]
) -> dict[int, dict[str, dict[str, int]]]:
    """The splits of some prefixes: prefix → alias → digest → weight, the most weight first."""
    query = (
        select(alias_targets, versions.c.digest)
        .join(versions, versions.c.id == alias_targets.c.version_id)
        .where(alias_targets.c.prefix_id.in_(prefix_ids))
        .order_by(alias_targets.c.alias, alias_targets.c.weight.desc(), versions.c.digest)
    )
    found: dict[int, dict[str, dict[str, int]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.prefix_id, {}).setdefault(row.alias, {})[row.digest] = row.weight
    return found


def _etag(row: Row[Any]) -> str:
    # keyed, since revisions count what all tenants change and a few numbers are soon guessed
    state = f"{row.prefix_id}/{row.name}/{row.revision}/{row.digest}".encode()
    return f'"{hashlib.blake2b(state, digest_size=8, key=row.owner.encode()).hexdigest()}"'


def _weights(connection: Connection, alias: Row[Any]) -> dict[str, int]:
    """Where an alias, as found, points."""
    if not alias.is_split:
        return {alias.digest: 1}
    return splits_of(connection, [alias.prefix_id])[alias.prefix_id][alias.name]


def _weights_of(remembered: Row[Any]) -> dict[str, int]:
    """Where a row of the history says that its alias pointed."""
    return remembered.split or {remembered.digest: 1}


def ids_of(connection: Connection, prefix_id: int, digests: Collection[str]) -> dict[str, int]:
    """The numbers of those versions that exist, by digest."""
    query = select(versions.c.digest, versions.c.id).where(
        versions.c.prefix_id == prefix_id, versions.c.digest.in_(list(digests))
    )
    return {row.digest: row.id for row in connection.execute(query)}


def _main(weights: Weights) -> str:
    """The digest that stands for all where there is place for one: the one with most weight."""
    return min(weights, key=lambda digest: (-weights[digest], digest))


def _point(
    connection: Connection, epoch: int, prefix_id: int, alias: str, weights: Weights, *, now: int
) -> None:
    """Makes or repoints an alias."""
    ids = ids_of(connection, prefix_id, weights)
    where = {"prefix_id": prefix_id, "name": alias}
    target = {"version_id": ids[_main(weights)], "revision": epoch, "updated_at": now}
    same = (aliases.c.prefix_id == prefix_id) & (aliases.c.name == alias)
    if connection.execute(update(aliases).where(same).values(target)).rowcount == 0:
        connection.execute(insert(aliases).values(where | target))
    old = (alias_targets.c.prefix_id == prefix_id) & (alias_targets.c.alias == alias)
    connection.execute(delete(alias_targets).where(old))
    if len(weights) > 1:
        rows = [
            {"prefix_id": prefix_id, "alias": alias, "version_id": ids[digest], "weight": weight}
            for digest, weight in weights.items()
        ]
        connection.execute(insert(alias_targets), rows)


def _check_number(connection: Connection, prefix_id: int) -> None:
    query = select(aliases.c.name).where(aliases.c.prefix_id == prefix_id).limit(MAX_ALIASES)
    if len(connection.execute(query).all()) >= MAX_ALIASES:
        raise Conflict(f"a prefix has at most {MAX_ALIASES} aliases", param="alias")


def _remember(
    connection: Connection,
    prefix_id: int,
    alias: str,
    weights: Weights,
    reason: str,
    *,
    undoable: bool,
    now: int,
) -> None:
    row = {
        "prefix_id": prefix_id,
        "alias": alias,
        "digest": _main(weights),
        "split": dict(weights) if len(weights) > 1 else None,
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
