"""A process that keeps books until it is killed: what it has counted and changed goes to stdout.

Usage: book_driver URL usage|audit. A line is written after each act that it counts as done.
"""

from __future__ import annotations

import sys
import threading
import time

from sqlalchemy import insert

from app.db.database import Database
from app.db.schema import tenants
from app.tenancy.audit.log import AuditedCall
from app.tenancy.usage.flush import WRITE_S, CatalogFlush
from app.tenancy.usage.totals import UsageTotals


def main() -> None:
    url, what = sys.argv[1:]
    catalog = Database(url)
    books = CatalogFlush(catalog, "victim", usage_days=400)
    say("ready")
    if what == "usage":
        count_usage(books)
    change_things(books)


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def count_usage(books: CatalogFlush) -> None:
    """Count a request every millisecond, write as the server does; say what was counted when."""

    def writing() -> None:
        while True:
            books.write()
            time.sleep(WRITE_S)

    threading.Thread(target=writing, daemon=True).start()
    counted = 0
    while True:
        books.usage.add("acme", ["e2e"], ["aa"], UsageTotals(1, 0, 2, 3, 4, 5))
        counted += 1
        say(f"{counted} {time.monotonic()}")
        time.sleep(0.001)


def change_things(books: CatalogFlush) -> None:
    """Make tenants, each as a call of its own."""
    number = 0
    while True:
        name = f"{time.time_ns()}-{number}"
        call = AuditedCall(books.audit, {"action": "tenant create"})
        with books.catalog.write(call) as (connection, _):
            connection.execute(insert(tenants).values(id=name, owner=name, created_at=0))
        say(name)
        number += 1


if __name__ == "__main__":
    main()
