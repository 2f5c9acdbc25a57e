"""The file of a version in the store: put there, kept intact, read.

Works outside transactions: a store may be far away. Knows nothing about aliases or tensors.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.db.database import Database
from app.db.errors import storage_faults
from app.errors import PolyprefixError, Unavailable
from app.registry import scope, versions
from app.registry.storage import content_states
from app.registry.storage.content_states import Content
from app.registry.storage.store import ObjectStore
from app.registry.types import Version, VersionInfo


@dataclass(frozen=True)
class Stored:
    """A content that is in the store, under `owner`, and what the catalog has noted about it.

    `replaced` says that a file which was there, or should have been, was replaced.
    """

    owner: str
    nbytes: int
    replaced: bool
    noted: Content | None


def put(
    catalog: Database,
    objects: ObjectStore,
    tenant: str,
    name: str,
    info: VersionInfo,
    staged: Path,
    *,
    now: int,
) -> Stored:
    """Puts a content into the store unless it is there; it is noted in the catalog first.

    Unavailable while an old copy of it is being removed.
    """
    with catalog.read() as connection:
        owner = scope.get_tenant(connection, tenant).owner
        known = versions.sibling_row(connection, tenant, name, info.digest)
    if known is not None:
        owner = str(known.owner)
    with catalog.append() as connection:
        noted = content_states.note_upload(connection, owner, info.digest, now)
    if known is not None and _is_intact(objects, owner, info.digest, known.file_nbytes, staged):
        return Stored(owner, known.file_nbytes, False, noted)
    with storage_faults("storing the prefix file"):
        nbytes = staged.stat().st_size
    objects.commit(owner, info.digest, staged)
    if objects.size(owner, info.digest) != nbytes:
        raise Unavailable("the content was removed while it was uploaded; send it again")
    return Stored(owner, nbytes, known is not None, noted)


def open_file(objects: ObjectStore, tenant: str, version: Version) -> BinaryIO:
    """The version's file for reading, to the end even if the version is deleted meanwhile.

    PrefixNotFound if it is another tenant's; PolyprefixError if the store has lost it.
    """
    _check_owned(tenant, version)
    file = objects.open(version.owner, version.digest)
    if file is None:
        raise _lost(version)
    return file


def read_start(objects: ObjectStore, tenant: str, version: Version, nbytes: int) -> bytes:
    """The first bytes of the version's file; errors as of `open_file`."""
    _check_owned(tenant, version)
    start = objects.start(version.owner, version.digest, nbytes)
    if start is None:
        raise _lost(version)
    return start


def _is_intact(objects: ObjectStore, owner: str, digest: str, nbytes: int, staged: Path) -> bool:
    """Whether the file is as it was stored, as far as another of the same content can tell."""
    if objects.size(owner, digest) != nbytes:
        return False
    with storage_faults("comparing the prefix file"):
        if staged.stat().st_size != nbytes:
            return True
        with objects.local(owner, digest) as path:
            return path is not None and _are_equal(path, staged)


def _are_equal(stored: Path, staged: Path) -> bool:
    try:
        return filecmp.cmp(stored, staged, shallow=False)
    except FileNotFoundError:
        return False  # garbage collection has come in between


def _check_owned(tenant: str, version: Version) -> None:
    if version.tenant != tenant:
        raise scope.prefix_not_found(f"{version.name}@{version.digest}")


def _lost(version: Version) -> PolyprefixError:
    where = f"'{version.name}@{version.digest[:12]}'"
    return PolyprefixError(f"the store has lost the file of {where}; upload it again to repair it")
