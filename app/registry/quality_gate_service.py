"""The gates of a registry's aliases: read, set, taken away.

Knows nothing about how scores are computed.
"""

from __future__ import annotations

from app.db.database import Actor
from app.db.transactions import Transactions
from app.errors import InvalidRequest, NotFound
from app.prefix.reference import check_alias, check_name
from app.registry import quality_gates, scope
from app.registry.quality_gates import QualityGate
from app.registry.types import LATEST


class GateBook:
    """What versions must score for an alias. Any call may raise what the registry's calls may."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def get(self, tenant: str, name: str, alias: str) -> QualityGate:
        """The alias's gate; PrefixNotFound, NotFound."""
        _check_names(name, alias)
        with self._transactions.reading() as connection:
            found = quality_gates.find(
                connection, scope.get_prefix_id(connection, tenant, name), alias
            )
        if found is None:
            raise _no_gate(alias)
        return found

    def set(
        self,
        tenant: str,
        name: str,
        alias: str,
        gate: QualityGate,
        *,
        actor: Actor | None = None,
    ) -> QualityGate:
        """Gives the alias a gate, for its next moves; where it points now is left as it is.

        `latest` takes none: InvalidRequest. PrefixNotFound; Conflict if there are too many.
        """
        _check_names(name, alias)
        if alias == LATEST:
            raise InvalidRequest(
                f"'{LATEST}' is whatever was uploaded last and has no gate; give another alias one",
                param="alias",
            )
        with self._transactions.changing(tenant, name, actor) as (connection, _):
            prefix_id = scope.get_prefix_id(connection, tenant, name)
            quality_gates.put(connection, prefix_id, alias, gate, now=self._transactions.now())
            found = quality_gates.find(connection, prefix_id, alias)
        if found is None:
            raise _no_gate(alias)
        return found

    def remove(self, tenant: str, name: str, alias: str, *, actor: Actor | None = None) -> None:
        """Takes the alias's gate away; PrefixNotFound, NotFound."""
        _check_names(name, alias)
        with self._transactions.changing(tenant, name, actor) as (connection, _):
            if not quality_gates.remove(
                connection, scope.get_prefix_id(connection, tenant, name), alias
            ):
                raise _no_gate(alias)


def _check_names(name: str, alias: str) -> None:
    check_name(name)
    check_alias(alias)


def _no_gate(alias: str) -> NotFound:
    return NotFound(f"alias '{alias}' has no gate", param="alias")
