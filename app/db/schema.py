"""The catalog's tables. Portable SQL: the same for SQLite and PostgreSQL.

A prefix belongs to a tenant, versions and aliases to a prefix; nothing below a prefix repeats the
tenant, so no row can be reached except through the tenant that owns it. Times are in seconds since
1970. Whoever changes a table adds a revision to `migrations`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
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

metadata = MetaData()

# SQLite numbers rows by itself only if the key is declared as INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")

catalog_epoch = Table(
    "catalog_epoch",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("schema_version", Integer, nullable=False),
)
"""One row. Every writing transaction raises `epoch` first: that serialises writers on every
database, and one read of it tells a cache whether anything has changed. `schema_version` is for
programs before revision 0002, which refuse what is above 1; since then Alembic keeps count."""

catalog_changes = Table(
    "catalog_changes",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("epoch", BigInteger, nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),
)
"""What each epoch has changed, so that caches forget that alone; the oldest are forgotten."""

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger),
    Column("limits", JSON, nullable=False, server_default="{}"),
    Column("prefix_count", BigInteger, nullable=False, server_default="0"),
    Column("stored_nbytes", BigInteger, nullable=False, server_default="0"),
)
"""`prefix_count` and `stored_nbytes` (of files, a content that several prefixes share once) are
kept by whoever adds or removes a row, so that quotas cost the same at any size."""

retired_owners = Table(
    "retired_owners",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("retired_at", BigInteger, nullable=False),
)
"""Owner keys of tenants that were deleted, until garbage collection has removed their contents."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("kid", String(16), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("digest", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("label", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("not_before", BigInteger),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
)
"""`digest` is the HMAC-SHA-256 of the whole key in hex; the key itself is nowhere."""

prefixes = Table(
    "prefixes",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

publications = Table(
    "publications",
    metadata,
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), primary_key=True),
    Column("grantee", String(64), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Index("publications_by_grantee", "grantee", "prefix_id"),
)
"""Who may use a prefix besides its owner: a tenant, or `*` for all. A grantee need not exist, so
that publishing tells nobody who does."""

versions = Table(
    "versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("file_nbytes", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("lengths", JSON),
    Column("position_offset", BigInteger, nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("base_model", Text),
    Column("base_fingerprint", Text),
    Column("input_template", Text),
    Column("decoding", JSON, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("pinned_epoch", BigInteger, nullable=False, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
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
    Column("owner", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("generation", String(16), nullable=False),
    Column("touched_at", BigInteger, nullable=False),
    Index("contents_by_state", "state", "touched_at"),
)
"""What the store holds besides what is shipped: `present`, or being stored by an upload whose
version comes later; or `removing`. See `registry.storage.contents`."""

aliases = Table(
    "aliases",
    metadata,
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
    Column("revision", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
"""`revision` is the epoch of the last move, so that a name made again never repeats one. Of a
split, `version_id` is the version with the most weight."""

alias_targets = Table(
    "alias_targets",
    metadata,
    Column("prefix_id", BigInteger, primary_key=True, autoincrement=False),
    Column("alias", String(64), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), primary_key=True, index=True),
    Column("weight", Integer, nullable=False),
    ForeignKeyConstraint(
        ["prefix_id", "alias"], ["aliases.prefix_id", "aliases.name"], ondelete="CASCADE"
    ),
)
"""The versions of an alias that is a split, with their weights; none for one that points."""

alias_gates = Table(
    "alias_gates",
    metadata,
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("metric", String(32), nullable=False),
    Column("min_score", Float, nullable=False),
    Column("examples", JSON, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
"""What a version must score before the alias may point at it."""

gate_scores = Table(
    "gate_scores",
    metadata,
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version_id", ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("measure", String(64), primary_key=True),
    Column("score", Float, nullable=False),
)
"""Scores with which versions have passed an alias's gate; `measure` is the gate's."""

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("split", JSON),
    Column("reason", String(16), nullable=False),
    Column("undoable", Boolean, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Index("alias_history_by_alias", "prefix_id", "alias", "id"),
)
"""Every move of an alias. The `undoable` ones are a stack: its top is the present state."""

seeded = Table(
    "seeded",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("added_at", BigInteger, primary_key=True, autoincrement=False),
)
"""What was imported from the store's manifest: what a user deletes then does not come back. With
`published` in the place of a digest: the name was published to all tenants."""

usage_hours = Table(
    "usage_hours",
    metadata,
    Column("tenant_id", String(64), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("prefix", String(1100), primary_key=True),
    Column("version", String(600), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("tokens_in", BigInteger, nullable=False),
    Column("tokens_out", BigInteger, nullable=False),
    Column("first_token_ms", BigInteger, nullable=False),
    Column("total_ms", BigInteger, nullable=False),
)
"""Sums per tenant, hour (seconds since 1970, rounded down) and what served: the prefixes' names
joined by `+`, empty for the base model alone, and their digests joined by `,`."""

usage_batches = Table(
    "usage_batches",
    metadata,
    Column("writer", String(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("written_at", BigInteger, nullable=False),
)
"""The last batch of sums that each process has added, so that none is added twice."""

audit_log = Table(
    "audit_log",
    metadata,
    Column("replica", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("record", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("audit_log_by_time", "at"),
)
"""One chain a replica: `hash` is the SHA-256 over `previous` and `record`, a JSON object."""
