"""Short forms for columns, by name and type. Old revisions use them, so they never change."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

# SQLite numbers rows by itself only if the key is declared as INTEGER
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NUMBER, NAME, WORD = sa.BigInteger(), sa.String(64), sa.String(16)
USER = sa.String(512)
"""What a tenant calls one of its users."""


def columns(*, nullable: bool = False, **types: Any) -> list[sa.Column[Any]]:
    """Columns by name and type."""
    return [sa.Column(name, kind, nullable=nullable) for name, kind in types.items()]


def keys(*, autoincrement: Any = "auto", **types: Any) -> list[sa.Column[Any]]:
    """Columns that are the primary key, by name and type."""
    return [
        sa.Column(name, kind, primary_key=True, autoincrement=autoincrement)
        for name, kind in types.items()
    ]


def parent(table: str, kind: Any = ROW_ID, **options: Any) -> sa.Column[Any]:
    """The column that names a row's parent in `table`; the row is deleted with it."""
    name = {
        "prefixes": "prefix_id",
        "tenants": "tenant_id",
        "versions": "version_id",
        "training_jobs": "job_id",
    }[table]
    target = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, kind, target, nullable=False, **options)
