"""Training jobs are found by the version behind which they are trained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """The tables after this revision."""
    named = sa.text("on_prefix IS NOT NULL")
    op.create_index(
        "training_jobs_by_on_prefix",
        "training_jobs",
        ["on_prefix", "tenant_id"],
        sqlite_where=named,
        postgresql_where=named,
    )
