"""How much a tenant stores, counted as rows come and go, and the bounds on it.

The functions work inside a writing transaction that the caller holds: if two uploads fit one by
one, but not together, only one of them is taken.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from app.db.schema import tenants
from app.errors import QuotaExceeded
from app.registry.types import Quota


def count(connection: Connection, tenant: str, *, prefixes: int = 0, nbytes: int = 0) -> None:
    """Adds to, or with negative numbers takes from, what the tenant stores."""
    if prefixes or nbytes:
        changed = {
            "prefix_count": tenants.c.prefix_count + prefixes,
            "stored_nbytes": tenants.c.stored_nbytes + nbytes,
        }
        connection.execute(update(tenants).where(tenants.c.id == tenant).values(changed))


def stored(connection: Connection, tenant: str) -> tuple[int, int]:
    """(prefixes, bytes of files) of a tenant that exists."""
    query = select(tenants.c.prefix_count, tenants.c.stored_nbytes).where(tenants.c.id == tenant)
    row = connection.execute(query).one()
    return row.prefix_count, row.stored_nbytes


def check(connection: Connection, tenant: str, quota: Quota, before: tuple[int, int]) -> None:
    """QuotaExceeded if the tenant stores more than its quota, and more than `before`."""
    for what, most, now, then in zip(
        ("prefixes", "bytes"),
        (quota.max_prefixes, quota.max_bytes),
        stored(connection, tenant),
        before,
        strict=True,
    ):
        if most is not None and now > most and now > then:
            raise QuotaExceeded(
                f"the tenant's quota is {most} {what}; {then} are used, and with this upload it "
                f"would be {now}: delete something first"
            )
