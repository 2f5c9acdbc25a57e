"""Sums of usage in the catalog: batches added once, read by group, forgotten when they are old.

Works inside a transaction that the caller holds; the same for SQLite and PostgreSQL.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, func, literal_column, select
from sqlalchemy import update as sql_update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.schema import usage_batches, usage_hours
from app.tenancy.usage.totals import Batch

DAY = 86_400
_WRITERS_KEPT_S = 7 * DAY
_ROWS_AT_ONCE = 500
_COLUMNS = ("requests", "failed", "tokens_in", "tokens_out", "first_token_ms", "total_ms")


def add_batch(
    connection: Connection,
    writer: str,
    sequence: int,
    batch: Batch,
    now: int,
) -> bool:
    """Adds a batch of sums unless it has been added; whether it had not."""
    if not _claim(connection, writer, sequence, now):
        return False
    rows = [
        {"tenant_id": key.tenant, "hour": key.hour, "prefix": key.prefix, "version": key.version}
        | {name: getattr(batch[key], name) for name in _COLUMNS}
        for key in sorted(batch)  # the same order for all, so that no two wait for each other
    ]
    statement = _insert(connection, usage_hours)
    added = {name: usage_hours.c[name] + statement.excluded[name] for name in _COLUMNS}
    statement = statement.on_conflict_do_update(index_elements=_key_columns(), set_=added)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        connection.execute(statement, rows[start : start + _ROWS_AT_ONCE])
    return True


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


def last_sequence(connection: Connection, writer: str) -> int:
    """The number of the last batch of a writer that was added, 0 if none was."""
    query = select(usage_batches.c.sequence).where(usage_batches.c.writer == writer)
    return connection.scalar(query) or 0


def prune(connection: Connection, now: int, keep_s: int) -> None:
    """Forgets hours that began more than `keep_s` seconds ago, and writers silent for a week."""
    connection.execute(delete(usage_hours).where(usage_hours.c.hour < now - keep_s))
    silent = usage_batches.c.written_at < now - _WRITERS_KEPT_S
    connection.execute(delete(usage_batches).where(silent))


def group_columns(connection: Connection, names: tuple[str, ...]) -> list[ColumnElement[Any]]:
    """What rows are grouped and ordered by; texts in the order of their characters' numbers."""
    plain = "C" if connection.dialect.name == "postgresql" else "BINARY"
    columns: dict[str, ColumnElement[Any]] = {
        "hour": usage_hours.c.hour,
        "day": usage_hours.c.hour - usage_hours.c.hour % literal_column(str(DAY)),
        "prefix": usage_hours.c.prefix.collate(plain),
        "version": usage_hours.c.version.collate(plain),
    }
    return [columns[name] for name in names]


def sums_by(columns: list[ColumnElement[Any]]) -> Select[Any]:
    """A query for the sums of each group, its columns first."""
    totals = [func.sum(usage_hours.c[name]).label(name) for name in _COLUMNS]
    return select(*columns, *totals).group_by(*columns).order_by(*columns)


def _key_columns() -> list[str]:
    return [column.name for column in usage_hours.primary_key.columns]


def _insert(connection: Connection, table: Any) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
