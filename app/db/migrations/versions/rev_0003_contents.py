"""Contents of the store, scores that have passed a gate, the order of pins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.db.columns import NAME, NUMBER, WORD, columns, keys, parent

revision = "0003"
down_revision = "0002"

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
        *keys(owner=NAME, digest=NAME),
        *columns(state=WORD, generation=WORD, touched_at=NUMBER),
    )
    op.create_index("contents_by_state", "contents", ["state", "touched_at"])
    op.execute(_NOTE)
    op.create_table(
        "gate_scores",
        parent("prefixes", primary_key=True),
        *keys(alias=NAME),
        parent("versions", primary_key=True),
        *keys(measure=NAME),
        *columns(score=sa.Float()),
    )
    pinned_epoch = sa.Column("pinned_epoch", NUMBER, server_default="0", nullable=False)
    op.add_column("versions", pinned_epoch)
    op.drop_index("versions_pinned", "versions")
    op.create_index(
        "versions_pinned",
        "versions",
        ["owner", "pinned_epoch", "id"],
        sqlite_where=sa.text("pinned = 1"),
        postgresql_where=sa.text("pinned"),
    )
