"""The audit log: one record of every call that changes something or is refused.

The record of a change is written in the transaction of the change itself, so that there is never
one without the other; calls that change nothing are written down before they are answered. Never
prompts, tensors or secrets. Knows nothing about HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from app.db.database import Database
from app.errors import PolyprefixError
from app.tenancy.audit import chain
from app.tenancy.audit.chain import Link
from app.tenancy.audit.changes import changes_of
from app.tenancy.audit.context import AuditCall, current_call
from app.tenancy.audit.refusals import Refusal, Refusals

DONE: Mapping[str, Any] = {"status": "done"}
"""The outcome of what was changed."""


class AuditLog:
    """The chain of one replica. Thread-safe; from its making on it hears of every change."""

    def __init__(
        self,
        catalog: Database,
        replica: str,
        *,
        denials: Refusals | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970."""
        self.catalog, self._replica, self._clock = catalog, replica, clock
        self._denials = denials or Refusals()
        catalog.before_commit(self._on_commit)

    def granted(self, call: AuditCall) -> None:
        """The call is about to be answered well: if it changed nothing it gets its record now.

        Raises what the catalog raises if that cannot be written; then the call must be refused.
        """
        if not self._is_recorded(call, default=True):
            self._append_call(call, {"status": "unchanged"})

    def refused(self, call: AuditCall, status: int, code: str | None) -> None:
        """The call, of a caller who is known, is about to be refused; never raises for it.

        It is counted if this key has had many refusals in this minute, or if its record cannot be
        written.
        """
        if self._is_recorded(call, default=False):
            return
        if self._denials.allows_record(call.tenant, call.kid, self._clock()):
            with suppress(PolyprefixError):
                self._append_call(call, {"status": status, "code": code})
                return
        self.count(call, status, code)

    def count(self, call: AuditCall, status: int, code: str | None) -> None:
        """Count a refusal among others, without any I/O."""
        reason = code or str(status)
        self._denials.add(self._clock(), reason, tenant=call.tenant, kid=call.kid, peer=call.peer)

    def flush(self, *, everything: bool = False) -> None:
        """Write the counts of refusals of past minutes, or all; raises what the catalog raises."""
        counts = self._denials.take(None if everything else self._clock())
        if not counts:
            return
        try:
            with self.catalog.append() as connection:
                for denial, count in counts.items():
                    self._append(connection, denial.tenant, _counted(denial, count))
        except BaseException:
            self._denials.restore(counts)
            raise

    def _on_commit(self, connection: Connection) -> None:
        """The end of a writing transaction: a call's first one that is committed gets a record."""
        call = current_call()
        if call is None or not call.mutates:
            return
        if call.link is not None and chain.stands(connection, call.link):
            return
        facts = {**call.facts, "outcome": DONE, **changes_of(connection)}
        call.link = self._append(connection, call.tenant, facts)

    def _append_call(self, call: AuditCall, outcome: Mapping[str, Any]) -> None:
        with self.catalog.append() as connection:
            self._append(connection, call.tenant, {**call.facts, "outcome": outcome})

    def _append(self, connection: Connection, tenant: str, facts: Mapping[str, Any]) -> Link:
        now = int(self._clock())
        return chain.append(connection, self._replica, now, tenant, facts)

    def _is_recorded(self, call: AuditCall, *, default: bool) -> bool:
        """Whether a change of the call was committed with its record; `default` if nobody knows."""
        if call.link is None:
            return False
        try:
            with self.catalog.read() as connection:
                return chain.stands(connection, call.link)
        except PolyprefixError:
            return default


def _counted(denial: Refusal, count: int) -> dict[str, Any]:
    return {
        "action": "refusals",
        "kid": denial.kid,
        "minute": denial.minute,
        "peer": denial.network,
        "count": count,
        "outcome": {"status": "refused", "code": denial.reason},
    }
