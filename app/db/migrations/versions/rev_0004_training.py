"""Training files and jobs; whose a prefix is; trained tokens in the usage; scores by version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.db.columns import NAME, NUMBER, ROW_ID, USER, WORD, columns, keys, parent

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """The tables after this revision."""
    op.add_column("prefixes", sa.Column("user", USER))
    op.create_index("gate_scores_by_version", "gate_scores", ["version_id"])
    op.create_index("prefixes_by_user", "prefixes", ["tenant_id", "user", "name"])
    for table, name in (("tenants", "training_turn"), ("usage_hours", "tokens_trained")):
        op.add_column(table, sa.Column(name, NUMBER, server_default="0", nullable=False))
    _create_files()
    _create_jobs()
    op.create_table(
        "job_events",
        parent("training_jobs", primary_key=True),
        *keys(sequence=NUMBER, autoincrement=False),
        *columns(created_at=NUMBER, level=WORD, type=WORD, message=sa.Text()),
        *columns(nullable=True, data=sa.JSON()),
    )
    op.create_table(
        "job_checkpoints",
        parent("training_jobs", primary_key=True),
        *keys(step=NUMBER, autoincrement=False),
        *columns(created_at=NUMBER, metrics=sa.JSON(), owner=NAME, nbytes=NUMBER),
        *columns(nullable=True, digest=NAME),
    )
    op.create_index("job_checkpoints_by_content", "job_checkpoints", ["owner", "digest"])
    op.create_table(
        "training_workers", *keys(name=NAME), *columns(base_fingerprint=NAME, seen_at=NUMBER)
    )


def _create_files() -> None:
    op.create_table(
        "training_files",
        *keys(id=ROW_ID),
        sa.Column("public_id", NAME, nullable=False, unique=True),
        parent("tenants", NAME),
        *columns(nullable=True, user=USER),
        *columns(filename=sa.String(255), purpose=NAME),
        *columns(nbytes=NUMBER, examples=NUMBER, pairs=NUMBER),
        *columns(sha256=NAME, owner=NAME, digest=NAME, created_at=NUMBER),
        *columns(nullable=True, expires_at=NUMBER),
        sqlite_autoincrement=True,
    )
    op.create_index("training_files_in_order", "training_files", ["tenant_id", "id"])
    op.create_index("training_files_by_user", "training_files", ["tenant_id", "user", "id"])
    op.create_index("training_files_by_content", "training_files", ["owner", "digest"])


def _create_jobs() -> None:
    op.create_table(
        "training_jobs",
        *keys(id=ROW_ID),
        sa.Column("public_id", NAME, nullable=False, unique=True),
        parent("tenants", NAME),
        *columns(nullable=True, user=USER),
        *columns(status=WORD, base_model=sa.Text(), base_fingerprint=NAME, method=NAME),
        *columns(hyperparameters=sa.JSON(), asked=sa.JSON()),
        *columns(suffix=NAME, seed=NUMBER, training_file=NAME),
        *columns(nullable=True, validation_file=NAME, on_prefix=sa.Text(), alias=NAME),
        *columns(nullable=True, metadata=sa.JSON()),
        *columns(attempt=sa.Integer(), losses=sa.Integer(), events=NUMBER),
        *columns(nullable=True, worker=NAME, token=NAME, lease_until=sa.Float()),
        *columns(step=NUMBER, total_steps=NUMBER, trained_tokens=NUMBER),
        *columns(nullable=True, fine_tuned_model=sa.Text(), result=sa.JSON()),
        *columns(nullable=True, result_files=sa.JSON(), error=sa.JSON()),
        *columns(created_at=NUMBER),
        *columns(nullable=True, started_at=NUMBER, finished_at=NUMBER, estimated_finish=NUMBER),
        sqlite_autoincrement=True,
    )
    for name, by in {
        "training_jobs_in_order": ["tenant_id", "id"],
        "training_jobs_by_user": ["tenant_id", "user", "id"],
        "training_jobs_by_status": ["status", "base_fingerprint", "tenant_id", "id"],
        "training_jobs_by_file": ["tenant_id", "training_file"],
        "training_jobs_by_validation_file": ["tenant_id", "validation_file"],
    }.items():
        op.create_index(name, "training_jobs", by)
