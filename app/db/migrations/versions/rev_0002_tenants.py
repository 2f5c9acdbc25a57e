"""Tenants with keys and limits, splits, publishing, usage, audit, what each epoch changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.db.columns import NAME, NUMBER, ROW_ID, WORD, columns, keys, parent

revision = "0002"
down_revision = "0001"

COUNT = """
UPDATE tenants SET
    prefix_count = (SELECT count(*) FROM prefixes WHERE prefixes.tenant_id = tenants.id),
    stored_nbytes = (
        SELECT coalesce(sum(file_nbytes), 0) FROM (
            SELECT digest, max(file_nbytes) AS file_nbytes FROM versions
            WHERE versions.owner = tenants.owner GROUP BY digest
        ) AS contents
    )
"""
"""Sets the counts of tenants, which are kept up to date from this revision on."""


def upgrade() -> None:
    """The tables after this revision."""
    _create_keys()
    _create_publications()
    _create_splits()
    _create_records()
    op.execute("UPDATE catalog_epoch SET schema_version = 2")


def _create_keys() -> None:
    """Keys and limits of tenants."""
    op.create_table("retired_owners", *keys(owner=NAME), *columns(retired_at=NUMBER))
    op.add_column("tenants", sa.Column("disabled_at", NUMBER))
    op.add_column("tenants", sa.Column("limits", sa.JSON(), server_default="{}", nullable=False))
    for count in ("prefix_count", "stored_nbytes"):
        op.add_column("tenants", sa.Column(count, NUMBER, server_default="0", nullable=False))
    op.execute(COUNT)
    op.create_table(
        "api_keys",
        *keys(kid=WORD),
        parent("tenants", NAME),
        *columns(digest=NAME, scopes=sa.JSON(), label=sa.String(128), created_at=NUMBER),
        *columns(nullable=True, not_before=NUMBER, expires_at=NUMBER),
        *columns(nullable=True, revoked_at=NUMBER, last_used_at=NUMBER),
    )
    op.create_index("ix_api_keys_tenant_id", "api_keys", ["tenant_id"])


def _create_publications() -> None:
    """What tenants publish; the order of versions and of pins."""
    op.create_table(
        "publications",
        parent("prefixes", primary_key=True),
        *keys(grantee=NAME),
        *columns(created_at=NUMBER),
    )
    op.create_index("publications_by_grantee", "publications", ["grantee", "prefix_id"])
    op.add_column("versions", sa.Column("lengths", sa.JSON()))
    op.create_index("versions_in_order", "versions", ["prefix_id", "id"])
    op.create_index(
        "versions_pinned",
        "versions",
        ["id"],
        sqlite_where=sa.text("pinned = 1"),
        postgresql_where=sa.text("pinned"),
    )


def _create_splits() -> None:
    """Aliases that are split or guarded."""
    op.create_table(
        "alias_targets",
        *keys(prefix_id=NUMBER, autoincrement=False),
        *keys(alias=NAME),
        sa.Column("version_id", ROW_ID, sa.ForeignKey("versions.id"), primary_key=True),
        *columns(weight=sa.Integer()),
        sa.ForeignKeyConstraint(
            ["prefix_id", "alias"], ["aliases.prefix_id", "aliases.name"], ondelete="CASCADE"
        ),
    )
    op.create_index("ix_alias_targets_version_id", "alias_targets", ["version_id"])
    op.create_table(
        "alias_gates",
        parent("prefixes", primary_key=True),
        *keys(alias=NAME),
        *columns(metric=sa.String(32), min_score=sa.Float()),
        *columns(examples=sa.JSON(), updated_at=NUMBER),
    )
    op.add_column("alias_history", sa.Column("split", sa.JSON()))


def _create_records() -> None:
    """What each epoch has changed; usage and audit."""
    op.create_table(
        "catalog_changes",
        *keys(id=ROW_ID),
        *columns(epoch=NUMBER, kind=WORD, tenant_id=NAME, name=NAME),
    )
    op.create_index("ix_catalog_changes_epoch", "catalog_changes", ["epoch"])
    op.create_table(
        "usage_hours",
        *keys(tenant_id=NAME, hour=NUMBER, autoincrement=False),
        *keys(prefix=sa.String(1100), version=sa.String(600)),
        *columns(requests=NUMBER, failed=NUMBER, tokens_in=NUMBER, tokens_out=NUMBER),
        *columns(first_token_ms=NUMBER, total_ms=NUMBER),
    )
    op.create_table(
        "usage_batches", *keys(writer=NAME), *columns(sequence=NUMBER, written_at=NUMBER)
    )
    op.create_table(
        "audit_log",
        *keys(replica=NAME, sequence=NUMBER, autoincrement=False),
        *columns(at=NUMBER, tenant_id=NAME, record=sa.Text(), previous=NAME, hash=NAME),
    )
    op.create_index("audit_log_by_time", "audit_log", ["at"])
