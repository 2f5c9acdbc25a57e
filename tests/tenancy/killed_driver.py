"""A process that counts usage or changes tenants until it is killed; it says so on stdout.

Usage: killed_driver URL usage|audit. A line is written after each act that it counts as done.
"""

from __future__ import annotations

import sys
import threading
import time

from sqlalchemy import insert

from app.db.database import Database
from app.db.schema import tenants
from app.tenancy.audit.log import AuditedCall, AuditLog
from app.tenancy.usage.ledger import WRITE_S, UsageLedger, UsageTotals


def main() -> None:
    url, what = sys.argv[1:]
    catalog = Database(url)
    say("ready")
    if what == "usage":
        count_usage(UsageLedger(catalog))
    change_things(catalog, AuditLog(catalog, "victim"))


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def count_usage(usage: UsageLedger) -> None:
    """Count a request every millisecond, write as the server does; say what was counted when."""

    def writing() -> None:
        while True:
            usage.flush()
            time.sleep(WRITE_S)

    threading.Thread(target=writing, daemon=True).start()
    counted = 0
    while True:
        usage.add("acme", ["e2e"], ["aa"], UsageTotals(1, 0, 2, 3, 4, 5))
        counted += 1
        say(f"{counted} {time.monotonic()}")
        time.sleep(0.001)


def change_things(catalog: Database, log: AuditLog) -> None:
    """Make tenants, each as a call of its own."""
    number = 0
    while True:
        name = f"{time.time_ns()}-{number}"
        call = AuditedCall(log, {"action": "tenant create"})
        with catalog.write(call) as (connection, _):
            connection.execute(insert(tenants).values(id=name, owner=name, created_at=0))
        say(name)
        number += 1


if __name__ == "__main__":
    main()
