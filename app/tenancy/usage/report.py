"""What a tenant has used, by hour, day, prefix or version."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, literal_column, select, tuple_

from app.db.database import Database
from app.db.paging import Page, check_limit, make_cursor, read_cursor
from app.db.schema import usage_hours
from app.errors import InvalidRequest
from app.tenancy.usage.ledger import DAY, TOTALS, UsageLedger, UsageTotals

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


@dataclass(frozen=True)
class UsageRow:
    """One group, by the name of what it is grouped by, with its sums."""

    group: dict[str, int | str]
    sums: UsageTotals


def read_usage(
    catalog: Database, ledger: UsageLedger, query: UsageQuery, cursor: str | None, limit: int
) -> Page[UsageRow]:
    """A page of groups in their order; what this process has not written yet is written first.

    InvalidRequest if the cursor or the limit is wrong.
    """
    check_limit(limit)
    after = None if cursor is None else _read_cursor(cursor, query.groups)
    ledger.flush()
    with catalog.read() as connection:
        rows = _read(connection, query, after, limit + 1)
    more = make_cursor(json.dumps(rows[limit - 1][0])) if len(rows) > limit else None
    found = (
        UsageRow(dict(zip(query.groups, key, strict=True)), totals) for key, totals in rows[:limit]
    )
    return Page(tuple(found), more)


def _read(
    connection: Connection, query: UsageQuery, after: Key | None, limit: int
) -> list[tuple[Key, UsageTotals]]:
    columns = _columns(connection, query.groups)
    hour = usage_hours.c.hour
    totals = [func.sum(usage_hours.c[name]) for name in TOTALS]
    statement = select(*columns, *totals).where(
        usage_hours.c.tenant_id == query.tenant, hour >= query.start, hour < query.end
    )
    if query.prefix is not None:
        statement = statement.where(usage_hours.c.prefix == query.prefix)
    if after is not None:
        statement = statement.where(tuple_(*columns) > tuple_(*after))
    statement = statement.group_by(*columns).order_by(*columns).limit(limit)
    found = []
    for row in connection.execute(statement):
        key, sums = tuple(row[: len(columns)]), row[len(columns) :]
        if sums[0] is not None:  # without groups there is a row even of nothing
            found.append((key, UsageTotals(*(int(total) for total in sums))))
    return found


def _columns(connection: Connection, names: tuple[str, ...]) -> list[ColumnElement[Any]]:
    """What rows are grouped and ordered by; texts in the order of their characters' numbers."""
    plain = "C" if connection.dialect.name == "postgresql" else "BINARY"
    columns: dict[str, ColumnElement[Any]] = {
        "hour": usage_hours.c.hour,
        "day": usage_hours.c.hour - usage_hours.c.hour % literal_column(str(DAY)),
        "prefix": usage_hours.c.prefix.collate(plain),
        "version": usage_hours.c.version.collate(plain),
    }
    return [columns[name] for name in names]


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
