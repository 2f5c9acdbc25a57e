"""A catalog and a store as version 0.4.0 left them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from alembic import command
from sqlalchemy import Connection, text

from app.db import migrate

OWNER = "ab" * 16
KEPT, GARBAGE = b"kept content", b"nobody needs this"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fill_catalog(connection: Connection) -> None:
    """The tables of then; tenant `demo` has two prefixes of one content, and a shipped one."""
    command.upgrade(migrate._config(connection), "0002")
    connection.execute(text("INSERT INTO catalog_epoch VALUES (1, 41, 2)"))
    connection.execute(
        text("INSERT INTO tenants (id, owner, created_at) VALUES ('demo', :owner, 7)"),
        {"owner": OWNER},
    )
    for number, (name, owner) in enumerate(
        [("one", OWNER), ("two", OWNER), ("web", "shipped")], start=1
    ):
        _add_version(connection, number, name, owner)
    if connection.dialect.name == "postgresql":
        for table in ("prefixes", "versions"):
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


def fill_store(root: Path) -> None:
    """What versions need, and what an upload left that died then."""
    for owner, contents in ((OWNER, (KEPT, GARBAGE)), ("shipped", (KEPT,))):
        (root / owner).mkdir(parents=True)
        for data in contents:
            (root / owner / f"{digest_of(data)}.safetensors").write_bytes(data)
