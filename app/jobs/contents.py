"""The bytes of training files and checkpoints, in the object store that prefixes have too.

Every content has a random key of its own, noted in the catalog before it is stored: what no row
needs is found and removed like any other content of the tenant.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.db.change_log import ChangeKind, note
from app.db.database import Database
from app.db.errors import storage_faults
from app.errors import PolyprefixError, Unavailable
from app.registry import scope
from app.registry.storage import contents
from app.registry.storage.contents import Content
from app.registry.storage.garbage import GarbageCollector
from app.registry.storage.store import ObjectStore

_log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20
_WAIT_S = 0.5
"""Seconds that `remove` waits while another process removes."""


@dataclass(frozen=True)
class NewContent:
    """A content that is in the store and that no row needs yet."""

    noted: Content
    nbytes: int

    @property
    def key(self) -> tuple[str, str]:
        """Its owner and its digest."""
        return self.noted.owner, self.noted.digest


def store(
    catalog: Database, objects: ObjectStore, tenant: str, staged: Path, now: float
) -> NewContent:
    """Puts a staged file into the store under a new key; it is noted in the catalog first."""
    with storage_faults("storing the file"):
        nbytes = staged.stat().st_size
    with catalog.read() as connection:
        owner = scope.get_owner(connection, tenant)
    with catalog.append() as connection:
        noted = contents.note_upload(connection, owner, secrets.token_hex(32), int(now))
    if noted is None:
        raise Unavailable("the store takes no files of this tenant")
    objects.commit(owner, noted.digest, staged)
    return NewContent(noted, nbytes)


def store_copy(
    catalog: Database, objects: ObjectStore, tenant: str, path: Path, now: float
) -> NewContent:
    """As `store`, of a file that lies anywhere and stays there."""
    with objects.stage() as staged:
        with storage_faults("reading the file"), path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                staged.write(piece)
        return store(catalog, objects, tenant, staged.path, now)


def remove(catalog: Database, objects: ObjectStore, going: Collection[tuple[str, str]]) -> None:
    """Removes contents, (owner, digest), from the store, without grace; not what a row needs.

    What cannot be removed now is removed in the background.
    """
    if not going:
        return
    try:
        with catalog.write() as (connection, epoch):
            note(connection, epoch, ChangeKind.CONTENT, "")
            now = int(time.time())
            begun = [contents.begin_erasure(connection, *key, now) for key in going]
        mine = [content for content in begun if content is not None]
        GarbageCollector(catalog, objects, 0.0, time.time).erase(mine, wait_s=_WAIT_S)
    except PolyprefixError as error:
        _log.info("%d files are removed from the store later: %s", len(going), error)


def fetch(file: BinaryIO, path: Path) -> None:
    """Copies an opened content to a local path, which has it whole or not at all; closes it."""
    part = path.with_name(path.name + ".part")
    try:
        with file, storage_faults("copying the file"):
            with part.open("wb") as target:
                while piece := file.read(_PIECE_BYTES):
                    target.write(piece)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
