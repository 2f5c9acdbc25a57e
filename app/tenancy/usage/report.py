"""What a tenant has used, by hour, day, prefix or version: the catalog and what is not there yet.

Knows nothing about HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, tuple_

from app.db.database import Database
from app.db.paging import check_limit, make_cursor, read_cursor
from app.db.schema import usage_hours
from app.errors import InvalidRequest
from app.registry.types import Page
from app.tenancy.usage import table
from app.tenancy.usage.recorder import UsageLedger
from app.tenancy.usage.totals import UsageKey, UsageTotals

GROUPS = ("hour", "day", "prefix", "version")
"""What can be grouped by, in the order of a row's key."""
_MAX_CURSOR = 4096

Key = tuple[int | str, ...]


@dataclass(frozen=True)
class UsageQuery:
    """Hours that begin from `start` up to but not including `end`, in seconds since 1970.

    `groups` are some of `GROUPS`, in their order; with `prefix` only what that name served.
    """

    tenant: str
    start: int
    end: int
    groups: tuple[str, ...] = ()
    prefix: str | None = None

    def covers(self, key: UsageKey) -> bool:
        """Whether sums under this key are asked for."""
        return (
            key.tenant == self.tenant
            and self.start <= key.hour < self.end
            and self.prefix in (None, key.prefix)
        )

    def group_of(self, key: UsageKey) -> Key:
        """The row that sums under this key belong to."""
        values: dict[str, int | str] = {
            "hour": key.hour,
            "day": key.hour - key.hour % table.DAY,
            "prefix": key.prefix,
            "version": key.version,
        }
        return tuple(values[name] for name in self.groups)


@dataclass(frozen=True)
class UsageRow:
    """One group, by the name of what it is grouped by, with its sums."""

    group: dict[str, int | str]
    sums: UsageTotals


def read_usage(
    catalog: Database, ledger: UsageLedger, query: UsageQuery, cursor: str | None, limit: int
) -> Page[UsageRow]:
    """A page of groups in their order; what this process has not written yet is in it.

    InvalidRequest if the cursor or the limit is wrong.
    """
    check_limit(limit)
    after = None if cursor is None else _read_cursor(cursor, query.groups)
    pending = ledger.pending()
    with catalog.read() as connection:
        # the number and the sums are of one state, so each batch is counted here or there
        written = table.last_sequence(connection, ledger.writer)
        rows = _stored(connection, query, after, limit + 1)
    for sequence, batch in pending:
        if sequence > written:
            _merge(rows, query, after, batch.items())
    keys = sorted(rows)
    more = make_cursor(json.dumps(keys[limit - 1])) if len(keys) > limit else None
    found = (UsageRow(dict(zip(query.groups, key, strict=True)), rows[key]) for key in keys[:limit])
    return Page(tuple(found), more)


def _stored(
    connection: Connection, query: UsageQuery, after: Key | None, limit: int
) -> dict[Key, UsageTotals]:
    columns = table.group_columns(connection, query.groups)
    hour = usage_hours.c.hour
    statement = table.sums_by(columns).where(
        usage_hours.c.tenant_id == query.tenant, hour >= query.start, hour < query.end
    )
    if query.prefix is not None:
        statement = statement.where(usage_hours.c.prefix == query.prefix)
    if after is not None:
        statement = statement.where(_is_after(columns, after))
    found: dict[Key, UsageTotals] = {}
    for row in connection.execute(statement.limit(limit)):
        key, totals = tuple(row[: len(columns)]), row[len(columns) :]
        if totals[0] is not None:  # without groups there is a row even of nothing
            found[key] = UsageTotals(*(int(total) for total in totals))
    return found


def _is_after(columns: list[ColumnElement[Any]], after: Key) -> ColumnElement[bool]:
    return tuple_(*columns) > tuple_(*after)


def _merge(
    rows: dict[Key, UsageTotals],
    query: UsageQuery,
    after: Key | None,
    batch: Iterable[tuple[UsageKey, UsageTotals]],
) -> None:
    for key, sums in batch:
        group = query.group_of(key)
        if query.covers(key) and (after is None or group > after):
            rows.setdefault(group, UsageTotals()).add(sums)


def _read_cursor(cursor: str, groups: tuple[str, ...]) -> Key:
    """The key of the last row that was seen; InvalidRequest if it is of another list."""
    refused = InvalidRequest("the cursor is not one that this list has given", param="cursor")
    try:
        key = json.loads(read_cursor(cursor, longest=_MAX_CURSOR))
    except ValueError:
        raise refused from None
    kinds = [int if name in ("hour", "day") else str for name in groups]
    if not isinstance(key, list) or [type(part) for part in key] != kinds or not key:
        raise refused
    if any(isinstance(part, int) and not 0 <= part < 2**53 for part in key):
        raise refused
    return tuple(key)
