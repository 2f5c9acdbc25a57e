"""Aliases: movable names for versions. An alias points at one version or is split over several.

The functions work inside a transaction that the caller holds, on a prefix that the caller has found
for its tenant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, exists, insert, select, update

from app.db.database import Actor, Database
from app.db.schema import alias_history, alias_targets, aliases, prefixes, tenants
from app.db.schema import versions as version_rows
from app.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed
from app.registry import quality_gates, scope, versions
from app.registry.quality_gates import NO_SCORES, Scores
from app.registry.splits import check_split
from app.registry.types import LATEST, Alias, AliasChange, Weights

MAX_HISTORY = 100
"""Moves that are remembered per alias."""
MAX_ALIASES = 100
"""Aliases that one prefix may have."""

_ROLLBACK = "rollback"
"""The reason of moves that a later rollback does not undo."""

_IS_SPLIT = exists().where(
    alias_targets.c.prefix_id == aliases.c.prefix_id, alias_targets.c.alias == aliases.c.name
)


class Aliases:
    """The aliases of a registry. Any call may raise what the registry's calls may."""

    def __init__(self, catalog: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog, self._clock = catalog, clock

    def get(self, tenant: str, name: str, alias: str) -> Alias:
        """Where an alias points; PrefixNotFound, NotFound."""
        scope.check_names(name, alias)
        with self._catalog.read() as connection:
            return get(connection, scope.get_prefix_id(connection, tenant, name), alias)

    def set(
        self,
        tenant: str,
        name: str,
        alias: str,
        target: str | Weights,
        *,
        if_match: str | None = None,
        scores: Scores = NO_SCORES,
        actor: Actor | None = None,
    ) -> Alias:
        """Points an alias at a version, or splits it over several by integer weights.

        Versions are named by their digests or unique starts of them. An upload ends a split of
        `latest`. `if_match` lists etags, or is `*`: PreconditionFailed unless the alias is in that
        state. `scores` are those by the alias's gate, if it has one: GateNotPassed, Unscored.
        InvalidRequest if the alias breaks the rules, or a split has too few or too many versions,
        a weight out of bounds, or two starts that name the same version; PrefixNotFound.
        """
        scope.check_names(name, alias)
        starts = {target: 1} if isinstance(target, str) else target
        if not isinstance(target, str):
            check_split(target)
        with scope.changing(self._catalog, tenant, name, actor) as (connection, epoch):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            _check_match(connection, prefix_id, alias, if_match)
            weights = {
                versions.get_row(connection, tenant, name, start).digest: weight
                for start, weight in starts.items()
            }
            if len(weights) < len(starts):
                raise InvalidRequest("the split names a version twice", param="split")
            check_gate(connection, prefix_id, alias, weights, scores, keep=True)
            now = int(self._clock())
            move(connection, epoch, prefix_id, alias, weights, reason="set", now=now)
            return get(connection, prefix_id, alias)

    def rollback(
        self,
        tenant: str,
        name: str,
        alias: str,
        *,
        if_match: str | None = None,
        actor: Actor | None = None,
    ) -> Alias:
        """Points an alias at where it pointed before, a split too; again, further back.

        At once, whatever its gate says: it has served this before, and what it serves now is bad.
        Conflict if nothing before that is left; PreconditionFailed, PrefixNotFound, NotFound.
        """
        scope.check_names(name, alias)
        with scope.changing(self._catalog, tenant, name, actor) as (connection, epoch):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            present = get(connection, prefix_id, alias)
            _check_match(connection, prefix_id, alias, if_match)
            weights, mine = present.split or {present.digest: 1}, _history_of(prefix_id, alias)
            query = select(alias_history).where(mine, alias_history.c.undoable)
            for target in connection.execute(query.order_by(alias_history.c.id.desc())).all():
                before = _weights_of(target)
                there = versions.ids_of(connection, prefix_id, before)
                if before != weights and len(there) == len(before):
                    break
            else:
                raise Conflict(
                    f"alias '{alias}' has no earlier version to return to", param="alias"
                )
            undone = update(alias_history).where(mine, alias_history.c.id > target.id)
            connection.execute(undone.values(undoable=False))
            now = int(self._clock())
            _write(connection, epoch, prefix_id, alias, before, _ROLLBACK, now)
            return get(connection, prefix_id, alias)

    def history(self, tenant: str, name: str, alias: str) -> tuple[AliasChange, ...]:
        """The moves of an alias that are remembered, the latest first; PrefixNotFound, NotFound."""
        scope.check_names(name, alias)
        with self._catalog.read() as connection:
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            get(connection, prefix_id, alias)
            mine = select(alias_history).where(_history_of(prefix_id, alias))
            query = mine.order_by(alias_history.c.id.desc())
            return tuple(
                AliasChange(
                    digest=row.digest, reason=row.reason, changed_at=row.changed_at, split=row.split
                )
                for row in connection.execute(query)
            )


def check_gate(
    connection: Connection,
    prefix_id: int,
    alias: str,
    weights: Weights,
    scores: Scores,
    *,
    keep: bool,
) -> None:
    """As `quality_gates.check`, if the alias would move."""
    row = find_alias(connection, prefix_id, alias)
    if row is None or _weights(connection, row) != weights:
        quality_gates.check(connection, prefix_id, alias, weights, scores, keep=keep)


def find_alias(connection: Connection, prefix_id: int, alias: str) -> Row[Any] | None:
    """The alias with `digest`, that of its (main) version, `is_split` and its tenant's `owner` key;
    None if the prefix has none of that name."""
    query = (
        select(aliases, version_rows.c.digest, _IS_SPLIT.label("is_split"), tenants.c.owner)
        .join(version_rows, version_rows.c.id == aliases.c.version_id)
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


def _check_match(connection: Connection, prefix_id: int, alias: str, if_match: str | None) -> None:
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
    connection: Connection,
    epoch: int,
    prefix_id: int,
    alias: str,
    weights: Weights,
    *,
    reason: str,
    now: int,
) -> None:
    """Points an alias at a version of the prefix, or splits it; no change if it is so already."""
    present = find_alias(connection, prefix_id, alias)
    if present is None:
        query = select(aliases.c.name).where(aliases.c.prefix_id == prefix_id)
        if len(connection.execute(query.limit(MAX_ALIASES)).all()) >= MAX_ALIASES:
            raise Conflict(f"a prefix has at most {MAX_ALIASES} aliases", param="alias")
    elif _weights(connection, present) == weights:
        return
    _write(connection, epoch, prefix_id, alias, weights, reason, now)


def pointing_at(connection: Connection, version_id: int) -> list[str]:
    """Names of the aliases that point at a version, and at no other, `latest` first."""
    query = select(aliases.c.name).where(aliases.c.version_id == version_id, ~_IS_SPLIT)
    return sorted(connection.scalars(query), key=lambda name: (name != LATEST, name))


def splitting_to(connection: Connection, version_id: int) -> list[str]:
    """Names of the aliases that are split over a version and others."""
    query = select(alias_targets.c.alias).where(alias_targets.c.version_id == version_id)
    return sorted(connection.scalars(query))


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
        select(alias_targets, version_rows.c.digest)
        .join(version_rows, version_rows.c.id == alias_targets.c.version_id)
        .where(alias_targets.c.prefix_id.in_(prefix_ids))
        .order_by(alias_targets.c.alias, alias_targets.c.weight.desc(), version_rows.c.digest)
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


def _main(weights: Weights) -> str:
    """The digest that stands for all where there is place for one: the one with most weight."""
    return min(weights, key=lambda digest: (-weights[digest], digest))


def _write(
    connection: Connection,
    epoch: int,
    prefix_id: int,
    alias: str,
    weights: Weights,
    reason: str,
    now: int,
) -> None:
    """Makes or repoints an alias, and remembers that."""
    ids, is_split = versions.ids_of(connection, prefix_id, weights), len(weights) > 1
    where = {"prefix_id": prefix_id, "name": alias}
    target = {"version_id": ids[_main(weights)], "revision": epoch, "updated_at": now}
    same = (aliases.c.prefix_id == prefix_id) & (aliases.c.name == alias)
    if connection.execute(update(aliases).where(same).values(target)).rowcount == 0:
        connection.execute(insert(aliases).values(where | target))
    old = (alias_targets.c.prefix_id == prefix_id) & (alias_targets.c.alias == alias)
    connection.execute(delete(alias_targets).where(old))
    if is_split:
        rows = [
            {"prefix_id": prefix_id, "alias": alias, "version_id": ids[digest], "weight": weight}
            for digest, weight in weights.items()
        ]
        connection.execute(insert(alias_targets), rows)
    row = {
        "prefix_id": prefix_id,
        "alias": alias,
        "digest": _main(weights),
        "split": dict(weights) if is_split else None,
        "reason": reason,
        "undoable": reason != _ROLLBACK,
        "changed_at": now,
    }
    connection.execute(insert(alias_history).values(row))
    mine = _history_of(prefix_id, alias)
    kept = select(alias_history.c.id).where(mine).order_by(alias_history.c.id.desc())
    oldest_kept = kept.offset(MAX_HISTORY - 1).limit(1).scalar_subquery()
    connection.execute(delete(alias_history).where(mine, alias_history.c.id < oldest_kept))


def _history_of(prefix_id: int, alias: str) -> ColumnElement[bool]:
    return (alias_history.c.prefix_id == prefix_id) & (alias_history.c.alias == alias)
