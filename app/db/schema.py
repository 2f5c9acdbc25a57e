"""The catalog's tables. Portable SQL: the same for SQLite and PostgreSQL.

A prefix belongs to a tenant, versions and aliases to a prefix; nothing below a prefix repeats the
tenant, so no row can be reached except through the tenant that owns it. Times are in seconds since
1970. Whoever changes a table adds a revision to `migrations`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from app.db.columns import NAME, NUMBER, ROW_ID, USER, WORD, columns, keys, parent

metadata = MetaData()

catalog_epoch = Table(
    "catalog_epoch",
    metadata,
    *keys(id=Integer, autoincrement=False),
    *columns(epoch=NUMBER, schema_version=Integer),
)
"""One row. Every writing transaction raises `epoch` first: that serialises writers on every
database, and one read of it tells a cache whether anything has changed. `schema_version` is for
programs before revision 0002, which refuse what is above 1; since then Alembic keeps count."""

catalog_changes = Table(
    "catalog_changes",
    metadata,
    *keys(id=ROW_ID),
    Column("epoch", NUMBER, nullable=False, index=True),
    *columns(kind=WORD, tenant_id=NAME, name=NAME),
)
"""What each epoch has changed, so that caches forget that alone; the oldest are forgotten."""

tenants = Table(
    "tenants",
    metadata,
    *keys(id=NAME),
    Column("owner", String(64), nullable=False, unique=True),
    *columns(created_at=NUMBER),
    *columns(nullable=True, disabled_at=NUMBER),
    Column("limits", JSON, nullable=False, server_default="{}"),
    Column("prefix_count", NUMBER, nullable=False, server_default="0"),
    Column("stored_nbytes", NUMBER, nullable=False, server_default="0"),
    Column("training_turn", NUMBER, nullable=False, server_default="0"),
)
"""`prefix_count` and `stored_nbytes` (of files, a content that several prefixes share once) are
kept by whoever adds or removes a row, so that quotas cost the same at any size. `training_turn` is
the epoch in which a worker last took a job of the tenant."""

retired_owners = Table(
    "retired_owners",
    metadata,
    *keys(owner=NAME),
    *columns(retired_at=NUMBER),
)
"""Owner keys of tenants that were deleted, until garbage collection has removed their contents."""

api_keys = Table(
    "api_keys",
    metadata,
    *keys(kid=WORD),
    parent("tenants", NAME, index=True),
    *columns(digest=NAME, scopes=JSON, label=String(128), created_at=NUMBER),
    *columns(nullable=True, not_before=NUMBER, expires_at=NUMBER, revoked_at=NUMBER),
    *columns(nullable=True, last_used_at=NUMBER),
)
"""`digest` is the HMAC-SHA-256 of the whole key in hex; the key itself is nowhere."""

prefixes = Table(
    "prefixes",
    metadata,
    *keys(id=ROW_ID),
    parent("tenants", NAME),
    *columns(name=NAME, created_at=NUMBER),
    *columns(nullable=True, user=USER),
    UniqueConstraint("tenant_id", "name"),
    Index("prefixes_by_user", "tenant_id", "user", "name"),
)
"""`user` is the end user of the tenant whose prefix it is, if the tenant has named one."""

publications = Table(
    "publications",
    metadata,
    parent("prefixes", primary_key=True),
    *keys(grantee=NAME),
    *columns(created_at=NUMBER),
    Index("publications_by_grantee", "grantee", "prefix_id"),
)
"""Who may use a prefix besides its owner: a tenant, or `*` for all. A grantee need not exist, so
that publishing tells nobody who does."""

versions = Table(
    "versions",
    metadata,
    *keys(id=ROW_ID),
    parent("prefixes"),
    *columns(owner=NAME, digest=NAME, file_nbytes=NUMBER, length=NUMBER),
    *columns(nullable=True, lengths=JSON),
    *columns(position_offset=NUMBER, dtype=WORD, nbytes=NUMBER),
    *columns(nullable=True, base_model=Text, base_fingerprint=Text, input_template=Text),
    *columns(decoding=JSON, provenance=JSON, pinned=Boolean),
    Column("pinned_epoch", NUMBER, nullable=False, server_default="0"),
    *columns(created_at=NUMBER),
    UniqueConstraint("prefix_id", "digest"),
    Index("versions_by_content", "owner", "digest"),
    Index("versions_in_order", "prefix_id", "id"),
    Index(
        "versions_pinned",
        "owner",
        "pinned_epoch",
        "id",
        sqlite_where=text("pinned = 1"),
        postgresql_where=text("pinned"),
    ),
    sqlite_autoincrement=True,
)
"""`owner` and `digest` are the key of the content; several prefixes may refer to one content.
`lengths` maps each module of the prefix to its length; None where nobody has looked yet.
`pinned_epoch` is the epoch of the last pin: the order in which pins were made.
Numbers of rows are never used twice: they are the order of versions and cursors of lists."""

contents = Table(
    "contents",
    metadata,
    *keys(owner=NAME, digest=NAME),
    *columns(state=WORD, generation=WORD, touched_at=NUMBER),
    Index("contents_by_state", "state", "touched_at"),
)
"""What the store holds besides what is shipped: `present`, or being stored by an upload whose
version comes later; or `removing`. See `registry.storage.contents`."""

aliases = Table(
    "aliases",
    metadata,
    parent("prefixes", primary_key=True),
    *keys(name=NAME),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
    *columns(revision=NUMBER, updated_at=NUMBER),
)
"""`revision` is the epoch of the last move, so that a name made again never repeats one. Of a
split, `version_id` is the version with the most weight."""

alias_targets = Table(
    "alias_targets",
    metadata,
    *keys(prefix_id=NUMBER, autoincrement=False),
    *keys(alias=NAME),
    Column("version_id", ForeignKey("versions.id"), primary_key=True, index=True),
    *columns(weight=Integer),
    ForeignKeyConstraint(
        ["prefix_id", "alias"], ["aliases.prefix_id", "aliases.name"], ondelete="CASCADE"
    ),
)
"""The versions of an alias that is a split, with their weights; none for one that points."""

alias_gates = Table(
    "alias_gates",
    metadata,
    parent("prefixes", primary_key=True),
    *keys(alias=NAME),
    *columns(metric=String(32), min_score=Float, examples=JSON, updated_at=NUMBER),
)
"""What a version must score before the alias may point at it."""

gate_scores = Table(
    "gate_scores",
    metadata,
    parent("prefixes", primary_key=True),
    *keys(alias=NAME),
    parent("versions", primary_key=True),
    *keys(measure=NAME),
    *columns(score=Float),
    Index("gate_scores_by_version", "version_id"),
)
"""Scores with which versions have passed an alias's gate; `measure` is the gate's."""

alias_history = Table(
    "alias_history",
    metadata,
    *keys(id=ROW_ID),
    parent("prefixes"),
    *columns(alias=NAME, digest=NAME),
    *columns(nullable=True, split=JSON),
    *columns(reason=WORD, undoable=Boolean, changed_at=NUMBER),
    Index("alias_history_by_alias", "prefix_id", "alias", "id"),
)
"""Every move of an alias. The `undoable` ones are a stack: its top is the present state."""

seeded = Table(
    "seeded",
    metadata,
    parent("tenants", NAME, primary_key=True),
    *keys(name=NAME, digest=NAME, added_at=NUMBER, autoincrement=False),
)
"""What was imported from the store's manifest: what a user deletes then does not come back. With
`published` in the place of a digest: the name was published to all tenants."""

usage_hours = Table(
    "usage_hours",
    metadata,
    *keys(tenant_id=NAME, hour=NUMBER, autoincrement=False),
    *keys(prefix=String(1100), version=String(600)),
    *columns(requests=NUMBER, failed=NUMBER, tokens_in=NUMBER, tokens_out=NUMBER),
    *columns(first_token_ms=NUMBER, total_ms=NUMBER),
    Column("tokens_trained", NUMBER, nullable=False, server_default="0"),
)
"""Sums per tenant, hour (seconds since 1970, rounded down) and what served: the prefixes' names
joined by `+`, empty for the base model alone, and their digests joined by `,`. Training counts
under the name of the prefix that is trained, which has no version yet."""

usage_batches = Table(
    "usage_batches",
    metadata,
    *keys(writer=NAME),
    *columns(sequence=NUMBER, written_at=NUMBER),
)
"""The last batch of sums that each process has added, so that none is added twice."""

audit_log = Table(
    "audit_log",
    metadata,
    *keys(replica=NAME, sequence=NUMBER, autoincrement=False),
    *columns(at=NUMBER, tenant_id=NAME, record=Text, previous=NAME, hash=NAME),
    Index("audit_log_by_time", "at"),
)
"""One chain a replica: `hash` is the SHA-256 over `previous` and `record`, a JSON object."""

training_files = Table(
    "training_files",
    metadata,
    *keys(id=ROW_ID),
    Column("public_id", NAME, nullable=False, unique=True),
    parent("tenants", NAME),
    *columns(nullable=True, user=USER),
    *columns(filename=String(255), purpose=NAME, nbytes=NUMBER, examples=NUMBER, pairs=NUMBER),
    *columns(sha256=NAME, owner=NAME, digest=NAME, created_at=NUMBER),
    *columns(nullable=True, expires_at=NUMBER),
    Index("training_files_in_order", "tenant_id", "id"),
    Index("training_files_by_user", "tenant_id", "user", "id"),
    Index("training_files_by_content", "owner", "digest"),
    sqlite_autoincrement=True,
)
"""`owner` and `digest` are the key of the content. It is random, so that no two rows share a
content; `sha256` is that of the bytes. `pairs` counts targets, of all examples together."""

training_jobs = Table(
    "training_jobs",
    metadata,
    *keys(id=ROW_ID),
    Column("public_id", NAME, nullable=False, unique=True),
    parent("tenants", NAME),
    *columns(nullable=True, user=USER),
    *columns(status=WORD, base_model=Text, base_fingerprint=NAME, method=NAME),
    *columns(hyperparameters=JSON, asked=JSON, suffix=NAME, seed=NUMBER, training_file=NAME),
    *columns(nullable=True, validation_file=NAME, on_prefix=Text, alias=NAME, metadata=JSON),
    *columns(attempt=Integer, losses=Integer, events=NUMBER),
    *columns(nullable=True, worker=NAME, token=NAME, lease_until=Float),
    *columns(step=NUMBER, total_steps=NUMBER, trained_tokens=NUMBER),
    *columns(nullable=True, fine_tuned_model=Text, result=JSON, result_files=JSON),
    *columns(nullable=True, error=JSON),
    *columns(created_at=NUMBER),
    *columns(nullable=True, started_at=NUMBER, finished_at=NUMBER, estimated_finish=NUMBER),
    Index("training_jobs_in_order", "tenant_id", "id"),
    Index("training_jobs_by_user", "tenant_id", "user", "id"),
    Index("training_jobs_by_status", "status", "base_fingerprint", "tenant_id", "id"),
    Index("training_jobs_by_file", "tenant_id", "training_file"),
    Index("training_jobs_by_validation_file", "tenant_id", "validation_file"),
    Index(
        "training_jobs_by_on_prefix",
        "on_prefix",
        "tenant_id",
        sqlite_where=text("on_prefix IS NOT NULL"),
        postgresql_where=text("on_prefix IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)
"""`token` is the right of the worker that has the job, until `lease_until`; see `jobs.claims`.
Without a `token`, `lease_until` is when the job gave its place to another tenant's, if it did.
`losses` counts the workers that were lost with the job since its last checkpoint; `events` is the
number of its last event; `on_prefix` is the version behind which it is trained, `name@digest`, or
`tenant/name@digest` if it is another tenant's. `asked` has the settings as the request had them,
`hyperparameters` as the worker takes them."""

job_events = Table(
    "job_events",
    metadata,
    parent("training_jobs", primary_key=True),
    *keys(sequence=NUMBER, autoincrement=False),
    *columns(created_at=NUMBER, level=WORD, type=WORD, message=Text),
    *columns(nullable=True, data=JSON),
)
"""What happened to a job, numbered from 1 for each job."""

job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    parent("training_jobs", primary_key=True),
    *keys(step=NUMBER, autoincrement=False),
    *columns(created_at=NUMBER, metrics=JSON, owner=NAME, nbytes=NUMBER),
    *columns(nullable=True, digest=NAME),
    Index("job_checkpoints_by_content", "owner", "digest"),
)
"""States from which a job can go on. Only the newest has a content, and only until the job ends."""

training_workers = Table(
    "training_workers",
    metadata,
    *keys(name=NAME),
    *columns(base_fingerprint=NAME, seen_at=NUMBER),
)
"""Workers that have lately asked for jobs, so that users hear if there is none."""
