"""Contents of the store, scores that have passed a gate, the order of pins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NOTE = """
INSERT INTO contents (owner, digest, state, generation, touched_at)
SELECT owner, digest, 'present', '0002', max(created_at) FROM versions
WHERE owner <> 'shipped' GROUP BY owner, digest
"""
"""What versions need is there; what nobody needs is found by a look at the store."""


def upgrade() -> None:
    """The tables after this revision."""
    op.create_table(
        "contents",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.String(length=16), nullable=False),
        sa.Column("touched_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "digest"),
    )
    op.create_index("contents_by_state", "contents", ["state", "touched_at"])
    op.execute(_NOTE)
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "gate_scores",
        sa.Column("prefix_id", number, nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("version_id", number, nullable=False),
        sa.Column("measure", sa.String(length=64), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["prefix_id"], ["prefixes.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("prefix_id", "alias", "version_id", "measure"),
    )
    with op.batch_alter_table("versions") as batch_op:
        batch_op.add_column(
            sa.Column("pinned_epoch", sa.BigInteger(), server_default="0", nullable=False)
        )
    op.drop_index("versions_pinned", "versions")
    op.create_index(
        "versions_pinned",
        "versions",
        ["owner", "pinned_epoch", "id"],
        sqlite_where=sa.text("pinned = 1"),
        postgresql_where=sa.text("pinned"),
    )
