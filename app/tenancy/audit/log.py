"""The audit log: one record of every call that changes something or is refused.

The record of a change is written in the transaction of the change itself, so that there is never
one without the other. Calls that change nothing are recorded before they are answered. Records
hold no prompts, tensors or secrets.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, select

from app.db.change_log import ChangeKind, read_epoch
from app.db.database import Database
from app.db.schema import alias_history, aliases, catalog_changes, prefixes
from app.errors import PolyprefixError
from app.tenancy.audit import chain
from app.tenancy.audit.chain import Link
from app.tenancy.audit.refusals import Refusal, Refusals
from app.tenancy.auth.keys import redact_keys

_log = logging.getLogger(__name__)

DONE: Mapping[str, Any] = {"status": "done"}
"""The outcome of a call that has changed something."""
_MAX_CHANGES = 16
"""Changes that one record names."""
_MAX_VALUE = 128
_PLAIN = re.compile(r"[A-Za-z0-9._@:+-]*", re.ASCII)
_KEY = re.compile(r"(pfx_[A-Za-z0-9]{1,16})_.*", re.ASCII | re.DOTALL)


@dataclass(eq=False)
class AuditedCall:
    """One call, the `Actor` of the transactions that it makes.

    `facts` is what a record says of it, besides its time and tenant. `tenant` is empty if the
    caller is unknown, `kid` is the public part of the key, `peer` the address of the caller.
    """

    log: AuditLog
    facts: Mapping[str, Any]
    tenant: str = ""
    kid: str | None = None
    peer: str | None = None
    link: Link | None = field(default=None, init=False)
    """The record that was written with the first change, if that was committed."""

    def record(self, connection: Connection) -> None:
        """As in `Actor`: the first transaction of the call that is committed gets the record."""
        if self.link is None or not chain.contains(connection, self.link):
            facts = {**self.facts, "outcome": DONE, **_changes(connection)}
            self.link = self.log.append(connection, self.tenant, facts)


class AuditLog:
    """The chain of one replica. Thread-safe."""

    def __init__(
        self,
        catalog: Database,
        replica: str,
        *,
        refusals: Refusals | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog, self._replica, self._clock = catalog, replica, clock
        self._refusals = refusals or Refusals()

    def granted(self, call: AuditedCall) -> None:
        """Records a call that is about to succeed, if it has changed nothing and has no record yet.

        Raises what the catalog raises if that cannot be written; then the call must be refused.
        """
        if not self._is_recorded(call, default=True):
            self._append_call(call, {"status": "unchanged"})

    def refused(self, call: AuditedCall, status: int, code: str | None) -> None:
        """Records a call, of a caller who is known, that is about to be refused; never raises.

        The refusal is counted instead if this key has had many of them in this minute, or if the
        record cannot be written.
        """
        if self._is_recorded(call, default=False):
            return
        if self._refusals.allows_record(call.tenant, call.kid, self._clock()):
            with suppress(PolyprefixError):
                self._append_call(call, {"status": status, "code": code})
                return
        self.count(call, status, code)

    def count(self, call: AuditedCall, status: int, code: str | None) -> None:
        """Counts a refusal among others, without any I/O."""
        reason = code or str(status)
        self._refusals.add(self._clock(), reason, tenant=call.tenant, kid=call.kid, peer=call.peer)

    def flush(self, *, everything: bool = False) -> None:
        """Writes the counts of refusals of past minutes, or all; raises what the catalog raises."""
        counts = self._refusals.take(None if everything else self._clock())
        if not counts:
            return
        try:
            with self._catalog.append() as connection:
                for refusal, count in counts.items():
                    self.append(connection, refusal.tenant, _counted(refusal, count))
        except BaseException:
            self._refusals.restore(counts)
            raise

    def close(self) -> None:
        """Writes all counts of refusals that are left, as far as the catalog takes them."""
        try:
            self.flush(everything=True)
        except PolyprefixError as error:
            _log.error("the last counts of refusals could not be written: %s", error)

    def append(self, connection: Connection, tenant: str, facts: Mapping[str, Any]) -> Link:
        """Adds a record inside the transaction that the caller holds."""
        now = int(self._clock())
        return chain.append(connection, self._replica, now, tenant, facts)

    def _append_call(self, call: AuditedCall, outcome: Mapping[str, Any]) -> None:
        with self._catalog.append() as connection:
            self.append(connection, call.tenant, {**call.facts, "outcome": outcome})

    def _is_recorded(self, call: AuditedCall, *, default: bool) -> bool:
        """Whether a change of the call was committed with its record; `default` if nobody knows."""
        if call.link is None:
            return False
        try:
            with self._catalog.read() as connection:
                return chain.contains(connection, call.link)
        except PolyprefixError:
            return default


def printable(value: str) -> str:
    """A caller's word as records have it: names and digests are whole, all else is not repeated.

    Of what looks like an API key only the public part is left.
    """
    if "pfx_" in value:
        key = _KEY.fullmatch(value)
        if key is not None:
            return key[1]
        if redact_keys(value) != value:
            return "?"
    return value if len(value) <= _MAX_VALUE and _PLAIN.fullmatch(value) else "?"


def _counted(refusal: Refusal, count: int) -> dict[str, Any]:
    return {
        "action": "refusals",
        "kid": refusal.kid,
        "minute": refusal.minute,
        "peer": refusal.network,
        "count": count,
        "outcome": {"status": "refused", "code": refusal.reason},
    }


def _changes(connection: Connection) -> dict[str, Any]:
    """What a writing transaction has changed until now.

    `changed`: [kind, tenant, name] of each note; `moved`: aliases with versions before and after. A
    version is a digest, or a split as {digest: weight}; None where there was none.
    """
    epoch = read_epoch(connection)
    query = (
        select(catalog_changes.c.kind, catalog_changes.c.tenant_id, catalog_changes.c.name)
        .where(catalog_changes.c.epoch == epoch)
        .order_by(catalog_changes.c.id)
        .limit(_MAX_CHANGES)
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
        .limit(_MAX_CHANGES)
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
