"""The catalog of version 0.2.0: prefixes, versions, aliases and their history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.db.columns import NAME, NUMBER, ROW_ID, WORD, columns, keys, parent

revision = "0001"
down_revision = None


def upgrade() -> None:
    """The tables after this revision."""
    op.create_table(
        "catalog_epoch",
        *keys(id=sa.Integer(), autoincrement=False),
        *columns(epoch=NUMBER, schema_version=sa.Integer()),
    )
    op.create_table(
        "tenants",
        *keys(id=NAME),
        *columns(owner=NAME, created_at=NUMBER),
        sa.UniqueConstraint("owner"),
    )
    op.create_table(
        "prefixes",
        *keys(id=ROW_ID),
        parent("tenants", NAME),
        *columns(name=NAME, created_at=NUMBER),
        sa.UniqueConstraint("tenant_id", "name"),
    )
    op.create_table(
        "seeded",
        parent("tenants", NAME, primary_key=True),
        *keys(name=NAME, digest=NAME, added_at=NUMBER, autoincrement=False),
    )
    op.create_table(
        "versions",
        *keys(id=ROW_ID),
        parent("prefixes"),
        *columns(owner=NAME, digest=NAME, file_nbytes=NUMBER, length=NUMBER),
        *columns(position_offset=NUMBER, dtype=WORD, nbytes=NUMBER),
        *columns(
            nullable=True,
            base_model=sa.Text(),
            base_fingerprint=sa.Text(),
            input_template=sa.Text(),
        ),
        *columns(decoding=sa.JSON(), provenance=sa.JSON(), pinned=sa.Boolean(), created_at=NUMBER),
        sa.UniqueConstraint("prefix_id", "digest"),
        sqlite_autoincrement=True,
    )
    op.create_index("versions_by_content", "versions", ["owner", "digest"])
    op.create_table(
        "aliases",
        parent("prefixes", primary_key=True),
        *keys(name=NAME),
        sa.Column("version_id", ROW_ID, sa.ForeignKey("versions.id"), nullable=False),
        *columns(revision=NUMBER, updated_at=NUMBER),
    )
    op.create_index("ix_aliases_version_id", "aliases", ["version_id"])
    op.create_table(
        "alias_history",
        *keys(id=ROW_ID),
        parent("prefixes"),
        *columns(alias=NAME, digest=NAME, reason=WORD, undoable=sa.Boolean(), changed_at=NUMBER),
    )
    op.create_index("alias_history_by_alias", "alias_history", ["prefix_id", "alias", "id"])
