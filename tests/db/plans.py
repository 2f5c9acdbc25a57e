"""What a catalog's statements cost: SQLite's steps, and which tables are read as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

PLANNED = ("SELECT", "UPDATE", "DELETE")


@contextmanager
def steps(engine: Engine) -> Iterator[list[int]]:
    """How many steps, in tens, SQLite takes inside the block: the first of the list."""
    taken = [0]

    def count() -> int:
        taken[0] += 1
        return 0

    def listen(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(count, 10)

    event.listen(engine, "checkout", listen)
    try:
        yield taken
    finally:
        event.remove(engine, "checkout", listen)


@contextmanager
def plans(engine: Engine) -> Iterator[dict[str, list[str]]]:
    """After the block: its statements, each with the lines of its plan."""
    found: dict[str, list[str]] = {}
    seen: dict[str, Any] = {}

    def listen(_connection: Any, _cursor: Any, sql: str, values: Any, _: Any, many: bool) -> None:
        if sql.startswith(PLANNED):
            seen[sql] = values[0] if many else values

    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", listen)
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        for sql, values in seen.items():
            plan = connection.exec_driver_sql(f"{explain} {sql}", values)
            found[sql] = [str(row[-1]) for row in plan]


def scanned(plan: list[str]) -> set[str]:
    """The tables that a plan reads as a whole."""
    words = [line.split() for line in plan]
    sqlite = {line[1] for line in words if line[0] == "SCAN"}
    postgres = {line[line.index("on") + 1] for line in words if "Seq Scan on" in " ".join(line)}
    return sqlite | postgres
