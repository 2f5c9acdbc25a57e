"""Trained tokens in the tenants' usage: counted in the transaction that reports them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from app.db.schema import usage_hours
from app.tenancy.usage.ledger import DAY, HOUR, TOTALS


def count(connection: Connection, tenant: str, prefix: str, tokens: int, now: float) -> None:
    """Adds tokens that were trained for the prefix of this name."""
    if tokens <= 0:
        return
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    row: dict[str, Any] = dict.fromkeys(TOTALS, 0)
    row |= {"tenant_id": tenant, "hour": int(now) // HOUR * HOUR, "prefix": prefix, "version": ""}
    row["tokens_trained"] = tokens
    statement = dialect.insert(usage_hours).values(row)
    added = usage_hours.c.tokens_trained + statement.excluded.tokens_trained
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(usage_hours.primary_key.columns), set_={"tokens_trained": added}
        )
    )


def used_today(connection: Connection, tenant: str, now: float) -> int:
    """Tokens that the tenant has trained on since midnight, UTC."""
    today = int(now) // DAY * DAY
    query = select(func.coalesce(func.sum(usage_hours.c.tokens_trained), 0)).where(
        usage_hours.c.tenant_id == tenant, usage_hours.c.hour >= today
    )
    return int(connection.execute(query).scalar_one())
