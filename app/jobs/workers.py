"""Which workers there are: those that have lately asked for jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from app.db.schema import training_workers

_NOTED_S = 15
"""A worker is noted again after so many seconds."""
_GONE_S = 60
_FORGOTTEN_S = 86_400


def is_known(connection: Connection, worker: str, base_fingerprint: str, now: float) -> bool:
    """Whether the worker was noted a short time ago."""
    query = select(training_workers.c.seen_at).where(
        training_workers.c.name == worker[:64],
        training_workers.c.base_fingerprint == base_fingerprint,
    )
    seen = connection.scalar(query)
    return seen is not None and now - seen < _NOTED_S


def note_seen(connection: Connection, worker: str, base_fingerprint: str, now: float) -> None:
    """Notes that the worker asks for jobs of this base model; forgets those that are long gone."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = {"name": worker[:64], "base_fingerprint": base_fingerprint, "seen_at": int(now)}
    statement = dialect.insert(training_workers).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=row))
    old = training_workers.c.seen_at < now - _FORGOTTEN_S
    connection.execute(delete(training_workers).where(old))


def is_any(connection: Connection, base_fingerprint: str, now: float) -> bool:
    """Whether some worker trains this base model."""
    query = select(training_workers.c.name).where(
        training_workers.c.base_fingerprint == base_fingerprint,
        training_workers.c.seen_at >= now - _GONE_S,
    )
    return connection.execute(query.limit(1)).first() is not None
