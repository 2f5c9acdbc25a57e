"""A catalog with very many prefixes of one tenant, as if users had made one each.

Rows are written in bulk, just as uploads would have left them; a few contents are shared by all.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import func, insert, select, update

from app.db.change_log import ChangeKind, note
from app.db.schema import alias_history, aliases, prefixes, tenants, versions
from app.registry.registry import Registry
from app.registry.types import LATEST

CONTENTS = 4
NBYTES = 1000


def user_name(number: int) -> str:
    """The prefix of a user."""
    return f"user-{number:06d}"


def fill(registry: Registry, tenant: str, count: int) -> list[str]:
    """Gives the tenant `count` prefixes of one version each; the digests that they share."""
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(CONTENTS)]
    with registry.catalog.write() as (connection, epoch):
        note(connection, epoch, ChangeKind.TENANT, tenant)
        owner = connection.scalar(select(tenants.c.owner).where(tenants.c.id == tenant))
        first = 1 + (connection.scalar(select(func.max(versions.c.id))) or 0)
        ids = range(first, first + count)
        shared: dict[str, Any] = {
            "owner": owner,
            "file_nbytes": NBYTES,
            "length": 5,
            "lengths": {"decoder": 5},
            "position_offset": 0,
            "dtype": "float16",
            "nbytes": NBYTES,
            "base_model": "tiny",
            "base_fingerprint": "f" * 64,
            "input_template": None,
            "decoding": {},
            "provenance": {"data": "words of a user"},
            "pinned": False,
            "created_at": 1,
        }
        target = {"revision": epoch, "updated_at": 1}
        moved = {"reason": "upload", "undoable": True, "changed_at": 1}
        rows: list[tuple[Any, list[dict[str, Any]]]] = [
            (
                prefixes,
                [
                    {"id": n, "tenant_id": tenant, "name": user_name(n - first), "created_at": 1}
                    for n in ids
                ],
            ),
            (
                versions,
                [{"id": n, "prefix_id": n, "digest": digests[n % CONTENTS], **shared} for n in ids],
            ),
            (
                aliases,
                [{"prefix_id": n, "name": LATEST, "version_id": n, **target} for n in ids],
            ),
            (
                alias_history,
                [
                    {"prefix_id": n, "alias": LATEST, "digest": digests[n % CONTENTS], **moved}
                    for n in ids
                ],
            ),
        ]
        for table, values in rows:
            connection.execute(insert(table), values)
        counted = {"prefix_count": count, "stored_nbytes": CONTENTS * NBYTES}
        connection.execute(update(tenants).where(tenants.c.id == tenant).values(counted))
    return digests
