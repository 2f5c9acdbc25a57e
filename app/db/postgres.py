"""Connections to PostgreSQL that do not wait for ever for a server that has stopped answering.

A server that is frozen or cut off keeps its connections open, and a client waits as long as it is
let. Here the wait for every answer is bounded. A connection that reaches the bound is closed, and
the pool makes another.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL

_CONNECT_S = 2
_STATEMENT_S = 4
_ANSWER_S = 5.0
"""The server ends a statement before the client gives the server up."""
_POOL_S = 5
_POOL_SIZE, _POOL_OVERFLOW = 8, 8

Result = TypeVar("Result")


class _BoundedConnection(psycopg.Connection[Any]):
    """A connection whose every wait for the server is bounded."""

    def wait(
        self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None
    ) -> Result:
        """As its parent; OperationalError, and a closed connection, if no answer comes in time."""
        bounded = _ANSWER_S if timeout is None else min(timeout, _ANSWER_S)
        try:
            return super().wait(gen, interval, bounded)
        except psycopg.errors._WaitTimeout as fault:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {bounded:g} s") from fault


def make_postgres_engine(url: URL, *, bounded: bool = True) -> Engine:
    """An engine for `postgresql+psycopg://…`; migrations are not `bounded`."""
    settings = {"connect_timeout": _CONNECT_S, "application_name": "polyprefix"}
    if not bounded:
        return create_engine(url, connect_args=settings)
    timeouts = f"-c statement_timeout={_STATEMENT_S}s -c lock_timeout={_STATEMENT_S}s"
    engine = create_engine(
        url,
        connect_args={**settings, "options": timeouts},
        pool_pre_ping=True,
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_OVERFLOW,
        pool_timeout=_POOL_S,
    )
    event.listen(engine, "do_connect", _connect)
    return engine


def _connect(_dialect: object, _record: object, args: Any, options: Any) -> psycopg.Connection[Any]:
    return _BoundedConnection.connect(*args, **options)
