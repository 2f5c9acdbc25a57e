"""A catalog and a store, in a folder or in a bucket, as version 0.4.0 left them."""

from __future__ import annotations

import hashlib

from alembic import command
from sqlalchemy import Connection, text

from app.db.migrate import alembic_config
from tests.registry.stores import S3Handles, StoreHandles

OWNER = "ab" * 16
KEPT, GARBAGE = b"kept content", b"nobody needs this"

PEPPER = b"a pepper of the time of version 0.4.0"
KEY = "pfx_hLgGlFxdxg9a_IfyMBGOWX6t6RB0fqzGYaZJ4YXaoAyE7_1pkWDP"
"""An API key that a tenant was given then."""
KEY_DIGEST = "1b35ed3455aec4f2617df1e517d5df1c2534b6d9e87775f4944fbd7f4a2ff075"
"""HMAC-SHA-256 of `KEY` under `PEPPER`, as that version kept it."""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fill_catalog(connection: Connection) -> None:
    """The tables of then; tenant `demo` has two prefixes of one content, and a shipped one.

    Of prefix `one`, `stable` has been moved once and has a gate. The tenant has a key, usage and an
    audit record.
    """
    command.upgrade(alembic_config(connection), "0002")
    connection.execute(text("INSERT INTO catalog_epoch VALUES (1, 41, 2)"))
    connection.execute(
        text(
            "INSERT INTO tenants (id, owner, created_at, limits)"
            " VALUES ('demo', :owner, 7, :limits)"
        ),
        {"owner": OWNER, "limits": '{"max_rows": 4, "weight": 2.0}'},
    )
    for number, (name, owner) in enumerate(
        [("one", OWNER), ("two", OWNER), ("web", "shipped")], start=1
    ):
        _add_version(connection, number, name, owner)
    _add_alias(connection)
    _add_tenancy(connection)
    if connection.dialect.name == "postgresql":
        for table in ("prefixes", "versions", "alias_history"):
            connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 9)"))


def _add_version(connection: Connection, number: int, name: str, owner: str) -> None:
    row = {
        "id": number,
        "name": name,
        "owner": owner,
        "digest": digest_of(KEPT),
        "nbytes": len(KEPT),
        "pinned": name == "two",
    }
    connection.execute(text("INSERT INTO prefixes VALUES (:id, 'demo', :name, 8)"), row)
    connection.execute(
        text(
            "INSERT INTO versions (id, prefix_id, owner, digest, file_nbytes, length,"
            " position_offset, dtype, nbytes, decoding, provenance, pinned, created_at) VALUES"
            " (:id, :id, :owner, :digest, :nbytes, 5, 5, 'float32', :nbytes, '{}', '{}',"
            " :pinned, 9)"
        ),
        row,
    )
    connection.execute(text("INSERT INTO aliases VALUES (:id, 'latest', :id, 3, 9)"), row)


def _add_alias(connection: Connection) -> None:
    connection.execute(text("INSERT INTO aliases VALUES (1, 'stable', 1, 5, 11)"))
    connection.execute(
        text(
            "INSERT INTO alias_history (id, prefix_id, alias, digest, reason, undoable, changed_at)"
            " VALUES (1, 1, 'stable', :digest, 'set', :undoable, 11)"
        ),
        {"digest": digest_of(KEPT), "undoable": True},
    )
    connection.execute(
        text(
            "INSERT INTO alias_gates (prefix_id, alias, metric, min_score, examples, updated_at)"
            " VALUES (1, 'stable', 'bleu', 0.5, :examples, 12)"
        ),
        {"examples": '[{"input": "a", "output": ["b"]}]'},
    )


def _add_tenancy(connection: Connection) -> None:
    connection.execute(
        text(
            "INSERT INTO api_keys (kid, tenant_id, digest, scopes, label, created_at) VALUES"
            " ('hLgGlFxdxg9a', 'demo', :digest, :scopes, 'mine', 7)"
        ),
        {"digest": KEY_DIGEST, "scopes": '["generate", "prefixes:read"]'},
    )
    connection.execute(
        text("INSERT INTO usage_hours VALUES ('demo', 3600, 'one', 'aa', 2, 1, 30, 40, 5, 60)")
    )
    record = '{"action":"create_key","at":7,"replica":"first","sequence":1,"tenant":"demo"}'
    chained = hashlib.sha256(("0" * 64 + record).encode()).hexdigest()
    connection.execute(
        text("INSERT INTO audit_log VALUES ('first', 1, 7, 'demo', :record, :previous, :hash)"),
        {"record": record, "previous": "0" * 64, "hash": chained},
    )


def fill_store(handles: StoreHandles) -> None:
    """What versions need, and what an upload and a removal left that died then."""
    for owner, contents in ((OWNER, (KEPT, GARBAGE)), ("shipped", (KEPT,))):
        for data in contents:
            handles.plant(f"{owner}/{digest_of(data)}.safetensors", data)
    if isinstance(handles, S3Handles):
        handles.plant(f"{OWNER}/{digest_of(KEPT)}.touched", b"")
        handles.plant(f"{OWNER}/{digest_of(GARBAGE)}.removing", b"")
        handles.plant(".clock", b"")
