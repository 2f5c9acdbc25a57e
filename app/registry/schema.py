"""The catalog's tables. Portable SQL: the same for SQLite and PostgreSQL.

A prefix belongs to a tenant, versions and aliases to a prefix; nothing below a prefix repeats the
tenant, so no row can be reached except through the tenant that owns it.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

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
database, and one read of it tells a cache whether anything has changed."""

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
)

prefixes = Table(
    "prefixes",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("file_nbytes", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("position_offset", BigInteger, nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("base_model", Text),
    Column("base_fingerprint", Text),
    Column("input_template", Text),
    Column("decoding", JSON, nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("prefix_id", "digest"),
    Index("versions_by_content", "owner", "digest"),
    sqlite_autoincrement=True,
)
"""`owner` and `digest` are the key of the content; several prefixes may refer to one content.
Numbers of rows are never used twice: they are the order of versions and cursors of lists."""

aliases = Table(
    "aliases",
    metadata,
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False, index=True),
    Column("revision", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
"""`revision` is the epoch of the last move, so that a name made again never repeats one."""

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("prefix_id", ForeignKey("prefixes.id", ondelete="CASCADE"), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
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
"""What was imported from the store's manifest: what a user deletes then does not come back."""
