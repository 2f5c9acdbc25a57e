"""What each writing transaction has changed, so that caches forget that and nothing else.

Writers note their changes under the epoch that they make; replicas read the notes since their last
look. A transaction that notes nothing counts as having changed everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, select, update

from app.db.schema import catalog_changes, catalog_epoch

KEPT_EPOCHS = 20_000
"""Epochs whose notes are kept; a replica that has not looked for longer forgets everything."""
_READ_LIMIT = 5_000
EPOCH = select(catalog_epoch.c.epoch)
"""Asks for the number of writing transactions so far."""


class ChangeKind(StrEnum):
    """What a note is about; `name` is the prefix's, the key's `kid`, or empty.

    CONTENT is about files that no version needs, TRAINING about training files and jobs (`name` is
    the id): of no interest to caches. ERASURE is about a content that no request may use any more:
    `tenant` is its owner key and `name` its digest.
    """

    PREFIX = "prefix"
    TENANT = "tenant"
    KEY = "key"
    CONTENT = "content"
    TRAINING = "training"
    ERASURE = "erasure"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True)
class Change:
    """One note of one writer."""

    kind: ChangeKind
    tenant: str
    name: str


def read_epoch(connection: Connection) -> int:
    """The epoch that this transaction sees."""
    return connection.execute(EPOCH).scalar_one()


def begin_epoch(connection: Connection) -> int:
    """The epoch that this writing transaction makes; other writers wait for its end."""
    connection.execute(update(catalog_epoch).values(epoch=catalog_epoch.c.epoch + 1))
    return read_epoch(connection)


def note(connection: Connection, epoch: int, kind: ChangeKind, tenant: str, name: str = "") -> None:
    """Notes a change inside the writing transaction of this epoch."""
    row = {"epoch": epoch, "kind": kind.value, "tenant_id": tenant, "name": name}
    connection.execute(insert(catalog_changes).values(row))


def end_epoch(connection: Connection, epoch: int) -> None:
    """Ends a writing transaction's notes: every epoch has at least one, old ones go."""
    mine = select(catalog_changes.c.id).where(catalog_changes.c.epoch == epoch).limit(1)
    if connection.execute(mine).first() is None:
        note(connection, epoch, ChangeKind.EVERYTHING, "")
    if epoch % 256 == 0:
        old = catalog_changes.c.epoch <= epoch - KEPT_EPOCHS
        connection.execute(delete(catalog_changes).where(old))


def read_changes(connection: Connection, since: int, until: int) -> list[Change] | None:
    """What epochs after `since` up to `until` have changed; None if it is not known any more."""
    if until - since > KEPT_EPOCHS // 2:
        return None
    query = (
        select(catalog_changes)
        .where(catalog_changes.c.epoch > since, catalog_changes.c.epoch <= until)
        .order_by(catalog_changes.c.id)
        .limit(_READ_LIMIT + 1)
    )
    rows = connection.execute(query).all()
    if len(rows) > _READ_LIMIT or len({row.epoch for row in rows}) < until - since:
        return None
    found = [Change(ChangeKind(row.kind), row.tenant_id, row.name) for row in rows]
    return None if any(change.kind is ChangeKind.EVERYTHING for change in found) else found
