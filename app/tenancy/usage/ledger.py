"""What requests have cost, summed in memory and added to the catalog in batches.

Each batch has a number and is added once, whatever is known of its fate. While the catalog does not
answer, sums are kept and merged.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete
from sqlalchemy import update as sql_update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.database import Database
from app.db.schema import usage_batches, usage_hours
from app.errors import PolyprefixError

_log = logging.getLogger(__name__)

WRITE_S = 2.0
"""Seconds between two calls of `flush`; a crash loses what came since the last one."""
DAY = 86_400
_WRITERS_KEPT_S = 7 * DAY
_ROWS_AT_ONCE = 500
OTHERS = "*"
"""The name under which a tenant's sums are merged when there are too many to tell apart."""

EARLY_KEYS = 1_000
"""So many different sums are written without waiting for the next turn."""
MAX_KEYS = 10_000
HOUR = 3600
"""Seconds of the time that sums are kept by."""


class UsageKey(NamedTuple):
    """What sums are kept by. `hour` is its beginning in seconds since 1970; see `usage_hours`."""

    tenant: str
    hour: int
    prefix: str
    version: str


@dataclass(slots=True)
class UsageTotals:
    """Requests, those of them that ended with an error, tokens, and milliseconds to the first
    token and to the end of those that did not; tokens that were trained on, which no request did.
    """

    requests: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    first_token_ms: int = 0
    total_ms: int = 0
    tokens_trained: int = 0

    def add(self, other: UsageTotals) -> None:
        """Take in others."""
        self.requests += other.requests
        self.failed += other.failed
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.first_token_ms += other.first_token_ms
        self.total_ms += other.total_ms
        self.tokens_trained += other.tokens_trained


Batch = Mapping[UsageKey, UsageTotals]

TOTALS = tuple(field.name for field in fields(UsageTotals))
"""The columns of the sums."""


class UsageLedger:
    """Sums of one process that are not in the catalog yet. Thread-safe.

    At most `max_keys` sums are told apart: beyond, a tenant's further ones are merged under
    `OTHERS`, and beyond twice as many, requests are counted as `lost`. `on_crowded` is called by
    whoever adds when there is enough to `flush` before the next turn.
    """

    def __init__(
        self,
        catalog: Database,
        *,
        max_keys: int = MAX_KEYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970."""
        self.writer = secrets.token_hex(16)
        self.lost = 0
        self.on_crowded: Callable[[], None] | None = None
        self._catalog, self._max_keys, self._clock = catalog, max_keys, clock
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._sums: dict[UsageKey, UsageTotals] = {}
        self._sent: dict[UsageKey, UsageTotals] = {}
        self._sequence = 0

    def add(
        self, tenant: str, names: Sequence[str], digests: Sequence[str], spent: UsageTotals
    ) -> None:
        """Counts what one request has cost; prefixes in their order, none for the base model."""
        hour = int(self._clock()) // HOUR * HOUR
        key = UsageKey(tenant, hour, "+".join(names), ",".join(digests))
        with self._lock:
            sums = self._sums.get(key) or self._room_for(key)
            if sums is None:
                self.lost += spent.requests
                return
            sums.add(spent)
            is_crowded = len(self._sums) >= EARLY_KEYS
        if is_crowded and self.on_crowded is not None:
            self.on_crowded()

    def _room_for(self, key: UsageKey) -> UsageTotals | None:
        """New sums, or those into which they are merged; None if there is no room at all."""
        held = len(self)
        if held >= self._max_keys:
            key = UsageKey(key.tenant, key.hour, OTHERS, OTHERS)
            if key not in self._sums and held >= 2 * self._max_keys:
                return None
        return self._sums.setdefault(key, UsageTotals())

    def __len__(self) -> int:
        """Sums that may not be in the catalog yet."""
        return len(self._sums) + len(self._sent)

    def flush(self) -> None:
        """Adds everything to the catalog; raises what the catalog raises, and then nothing is lost.

        A batch whose fate is not known is sent again first, unchanged.
        """
        with self._flushing:
            for _ in range(2):
                batch = self._next_batch()
                if not batch:
                    return
                with self._catalog.append() as connection:
                    _add_batch(connection, self.writer, self._sequence, batch, int(self._clock()))
                with self._lock:
                    self._sent = {}

    def prune(self, keep_s: float) -> None:
        """Forgets hours that are older than this many seconds, and writers that are long gone."""
        with self._catalog.append() as connection:
            now = int(self._clock())
            connection.execute(delete(usage_hours).where(usage_hours.c.hour < now - int(keep_s)))
            silent = usage_batches.c.written_at < now - _WRITERS_KEPT_S
            connection.execute(delete(usage_batches).where(silent))

    def close(self) -> None:
        """Writes all that is left, as far as the catalog takes it."""
        try:
            self.flush()
        except PolyprefixError as error:
            _log.error("the last usage could not be written: %s", error)
        if self.lost:
            _log.error("%d requests are not in the usage", self.lost)

    def _next_batch(self) -> Batch:
        with self._lock:
            if not self._sent and self._sums:
                self._sent, self._sums = self._sums, {}
                self._sequence += 1
            return self._sent


def _add_batch(connection: Connection, writer: str, sequence: int, batch: Batch, now: int) -> None:
    """Adds a batch of sums unless it has been added."""
    if not _claim(connection, writer, sequence, now):
        return
    rows = [
        {"tenant_id": key.tenant, "hour": key.hour, "prefix": key.prefix, "version": key.version}
        | {name: getattr(batch[key], name) for name in TOTALS}
        for key in sorted(batch)  # the same order for all, so that no two wait for each other
    ]
    statement = _insert(connection, usage_hours)
    added = {name: usage_hours.c[name] + statement.excluded[name] for name in TOTALS}
    statement = statement.on_conflict_do_update(
        index_elements=list(usage_hours.primary_key.columns), set_=added
    )
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        connection.execute(statement, rows[start : start + _ROWS_AT_ONCE])


def _claim(connection: Connection, writer: str, sequence: int, now: int) -> bool:
    """Takes the batch's number, waiting for another attempt that still runs in the database."""
    first = {"writer": writer, "sequence": 0, "written_at": now}
    statement = _insert(connection, usage_batches).values(first)
    connection.execute(statement.on_conflict_do_nothing())
    taken = (
        sql_update(usage_batches)
        .where(usage_batches.c.writer == writer, usage_batches.c.sequence < sequence)
        .values(sequence=sequence, written_at=now)
    )
    return connection.execute(taken).rowcount == 1


def _insert(connection: Connection, table: Any) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
