"""Tenants with keys and limits, splits, publishing, usage, audit, what each epoch changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

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
"""What the counts stand at that are kept from here on."""


def upgrade() -> None:
    """The tables after this revision."""
    _create_changes()
    _create_keys()
    _create_splits()
    _create_records()
    op.execute("UPDATE catalog_epoch SET schema_version = 2")


def _create_changes() -> None:
    """What each epoch has changed; owners that are gone."""
    op.create_table(
        "catalog_changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("catalog_changes") as batch_op:
        batch_op.create_index(batch_op.f("ix_catalog_changes_epoch"), ["epoch"], unique=False)
    op.create_table(
        "retired_owners",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )


def _create_keys() -> None:
    """Keys and limits of tenants, and what they publish."""
    with op.batch_alter_table("tenants") as batch_op:
        batch_op.add_column(sa.Column("disabled_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("limits", sa.JSON(), server_default="{}", nullable=False))
        for count in ("prefix_count", "stored_nbytes"):
            batch_op.add_column(
                sa.Column(count, sa.BigInteger(), server_default="0", nullable=False)
            )
    op.execute(COUNT)
    op.create_table(
        "api_keys",
        sa.Column("kid", sa.String(length=16), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("label", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("kid"),
    )
    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.create_index(batch_op.f("ix_api_keys_tenant_id"), ["tenant_id"], unique=False)
    op.create_table(
        "publications",
        sa.Column(
            "prefix_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("grantee", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["prefix_id"], ["prefixes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("prefix_id", "grantee"),
    )
    op.create_index("publications_by_grantee", "publications", ["grantee", "prefix_id"])
    with op.batch_alter_table("versions") as batch_op:
        batch_op.add_column(sa.Column("lengths", sa.JSON(), nullable=True))
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
        sa.Column("prefix_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column(
            "version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["prefix_id", "alias"], ["aliases.prefix_id", "aliases.name"], ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
        ),
        sa.PrimaryKeyConstraint("prefix_id", "alias", "version_id"),
    )
    with op.batch_alter_table("alias_targets") as batch_op:
        batch_op.create_index(
            batch_op.f("ix_alias_targets_version_id"), ["version_id"], unique=False
        )
    op.create_table(
        "alias_gates",
        sa.Column(
            "prefix_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("metric", sa.String(length=32), nullable=False),
        sa.Column("min_score", sa.Float(), nullable=False),
        sa.Column("examples", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["prefix_id"], ["prefixes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("prefix_id", "alias"),
    )
    with op.batch_alter_table("alias_history") as batch_op:
        batch_op.add_column(sa.Column("split", sa.JSON(), nullable=True))


def _create_records() -> None:
    """Usage and audit."""
    op.create_table(
        "usage_hours",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("prefix", sa.String(length=1100), nullable=False),
        sa.Column("version", sa.String(length=600), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("tokens_in", sa.BigInteger(), nullable=False),
        sa.Column("tokens_out", sa.BigInteger(), nullable=False),
        sa.Column("first_token_ms", sa.BigInteger(), nullable=False),
        sa.Column("total_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "hour", "prefix", "version"),
    )
    op.create_table(
        "usage_batches",
        sa.Column("writer", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("written_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("writer"),
    )
    op.create_table(
        "audit_log",
        sa.Column("replica", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("replica", "sequence"),
    )
    with op.batch_alter_table("audit_log") as batch_op:
        batch_op.create_index("audit_log_by_time", ["at"], unique=False)
