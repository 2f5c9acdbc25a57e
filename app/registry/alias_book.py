"""The aliases of a registry: read, pointed, split, rolled back.

Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.db.database import Actor
from app.db.transactions import Transactions
from app.errors import InvalidRequest
from app.prefix.reference import check_alias, check_name
from app.registry import aliases, quality_gates, scope, versions
from app.registry.quality_gates import NO_SCORES, Scores
from app.registry.splits import check_split
from app.registry.types import Alias, AliasChange


class AliasBook:
    """Movable names for versions. Any call may raise what the registry's calls may."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def get(self, tenant: str, name: str, alias: str) -> Alias:
        """Where an alias points; PrefixNotFound, NotFound."""
        _check_names(name, alias)
        with self._transactions.reading() as connection:
            return aliases.get(connection, scope.get_prefix_id(connection, tenant, name), alias)

    def set(
        self,
        tenant: str,
        name: str,
        alias: str,
        digest: str,
        *,
        if_match: str | None = None,
        scores: Scores = NO_SCORES,
        actor: Actor | None = None,
    ) -> Alias:
        """Points an alias at a version, named by its digest or a unique start of it.

        `if_match` lists etags, or is `*`: PreconditionFailed unless the alias is in that state.
        `scores` are those by the alias's gate, if it has one: GateNotPassed, Unscored.
        InvalidRequest if the alias breaks the rules; PrefixNotFound.
        """
        _check_names(name, alias)
        with self._transactions.changing(tenant, name, actor) as (connection, epoch):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            aliases.check_match(connection, prefix_id, alias, if_match)
            row = versions.get_row(connection, tenant, name, digest)
            weights = {row.digest: 1}
            quality_gates.check(connection, prefix_id, alias, weights, scores)
            quality_gates.remember(connection, prefix_id, alias, weights, scores)
            now = self._transactions.now()
            aliases.move(connection, epoch, row, alias, reason="set", now=now)
            return aliases.get(connection, prefix_id, alias)

    def split(
        self,
        tenant: str,
        name: str,
        alias: str,
        split: Mapping[str, int],
        *,
        if_match: str | None = None,
        scores: Scores = NO_SCORES,
        actor: Actor | None = None,
    ) -> Alias:
        """Splits an alias over versions, digests or unique starts of them, by integer weights.

        As `set`; also InvalidRequest if there are too few or too many versions, if two starts name
        the same one, or if a weight is out of bounds. An upload ends a split of `latest`.
        """
        _check_names(name, alias)
        check_split(split)
        with self._transactions.changing(tenant, name, actor) as (connection, epoch):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            aliases.check_match(connection, prefix_id, alias, if_match)
            weights = {
                versions.get_row(connection, tenant, name, start).digest: weight
                for start, weight in split.items()
            }
            if len(weights) < len(split):
                raise InvalidRequest("the split names a version twice", param="split")
            quality_gates.check(connection, prefix_id, alias, weights, scores)
            quality_gates.remember(connection, prefix_id, alias, weights, scores)
            now = self._transactions.now()
            aliases.split(connection, epoch, prefix_id, alias, weights, reason="set", now=now)
            return aliases.get(connection, prefix_id, alias)

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
        _check_names(name, alias)
        with self._transactions.changing(tenant, name, actor) as (connection, epoch):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            aliases.get(connection, prefix_id, alias)
            aliases.check_match(connection, prefix_id, alias, if_match)
            aliases.undo(connection, epoch, prefix_id, alias, now=self._transactions.now())
            return aliases.get(connection, prefix_id, alias)

    def history(self, tenant: str, name: str, alias: str) -> tuple[AliasChange, ...]:
        """The moves of an alias that are remembered, the latest first; PrefixNotFound, NotFound."""
        _check_names(name, alias)
        with self._transactions.reading() as connection:
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            aliases.get(connection, prefix_id, alias)
            return aliases.history(connection, prefix_id, alias)


def _check_names(name: str, alias: str) -> None:
    check_name(name)
    check_alias(alias)
