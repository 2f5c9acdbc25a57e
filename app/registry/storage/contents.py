"""The files of versions and of training: which of them the store holds, as the catalog knows.

A content is noted as present before it is stored, and as removing before it is removed; the note
goes once the removal has certainly ended. So nobody has to ask the store while the catalog's
writers wait, and an upload never meets a removal. Shipped contents are never removed and have no
note.
"""

from __future__ import annotations

import filecmp
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    insert,
    or_,
    select,
    union,
    update,
)
from sqlalchemy.exc import IntegrityError

from app.db.database import Database
from app.db.errors import storage_faults
from app.db.schema import contents, job_checkpoints, retired_owners, training_files
from app.db.schema import versions as version_rows
from app.errors import Unavailable
from app.registry import scope, versions
from app.registry.storage.store import ObjectStore
from app.registry.types import SHIPPED_OWNER, VersionInfo

_PRESENT = "present"
_REMOVING = "removing"
_MAX_FOUND = 1024

NO_GRACE = -1
"""When a content was last touched that may be removed as soon as nothing needs it."""

_REFERRING = (version_rows, training_files, job_checkpoints)
"""The tables whose rows need a content: that of their `owner` and `digest`."""
_IS_NEEDED = or_(
    *(
        exists().where(table.c.owner == contents.c.owner, table.c.digest == contents.c.digest)
        for table in _REFERRING
    )
)


@dataclass(frozen=True)
class Content:
    """A note about one content. `generation` is new with every note that is made."""

    owner: str
    digest: str
    generation: str


def note_upload(connection: Connection, owner: str, digest: str, now: int) -> Content | None:
    """Notes, before it is stored, that a content is present; its grace begins anew.

    None for what is shipped. Unavailable while an old copy is being removed.
    """
    if owner == SHIPPED_OWNER:
        return None
    if not _touch(connection, owner, digest, now):
        try:
            with connection.begin_nested():
                return _insert(connection, owner, digest, _PRESENT, now)
        except IntegrityError:  # somebody else has just noted it
            _touch(connection, owner, digest, now)
    query = select(contents.c.state, contents.c.generation)
    row = connection.execute(query.where(_is(owner, digest))).one_or_none()
    if row is None or row.state == _REMOVING:
        raise Unavailable("an old copy of the content is being removed; send it again later")
    return Content(owner, digest, row.generation)


def check_present(connection: Connection, content: Content | None) -> None:
    """Unavailable if the content was removed, or is being removed, since it was noted."""
    if content is None:
        return
    same = contents.c.generation == content.generation
    query = select(contents.c.state).where(_is(content.owner, content.digest), same)
    if connection.scalar(query) != _PRESENT:
        raise Unavailable("the content was removed while it was uploaded; send it again")


def release(connection: Connection, going: Iterable[tuple[str, str]], now: int) -> None:
    """Begins the grace of contents, (owner, digest), that are about to lose what needs them."""
    for owner, digest in going:
        _touch(connection, owner, digest, now)


def end_grace(connection: Connection, going: Iterable[tuple[str, str]]) -> None:
    """As `release`, of contents that nobody reads any more: they may be removed at once."""
    for owner, digest in going:
        _touch(connection, owner, digest, NO_GRACE)


def find_unneeded(connection: Connection, before: int, cut_before: int) -> list[Content]:
    """Some contents that nothing has needed since `before`, in seconds since 1970.

    Also those whose removal began before `cut_before` and was cut short.
    """
    kept_for_now = exists().where(
        retired_owners.c.owner == contents.c.owner, retired_owners.c.retired_at > before
    )
    query = select(contents.c.owner, contents.c.digest, contents.c.generation).where(
        or_(
            and_(_is_idle(before), ~kept_for_now),
            and_(contents.c.state == _REMOVING, contents.c.touched_at <= cut_before),
        )
    )
    return [Content(*row) for row in connection.execute(query.limit(_MAX_FOUND))]


def begin_removal(
    connection: Connection, content: Content, before: int, cut_before: int, now: int
) -> bool:
    """Notes that a content is being removed; False if it is needed again or another removes it.

    In a transaction that takes its turn: nothing that needs it may come in between.
    """
    cut = and_(contents.c.state == _REMOVING, contents.c.touched_at <= cut_before)
    same = contents.c.generation == content.generation
    may = and_(_is(content.owner, content.digest), same, or_(_is_idle(before), cut))
    statement = update(contents).where(may).values(state=_REMOVING, touched_at=now)
    return connection.execute(statement).rowcount > 0


def begin_removal_of_unknown(
    connection: Connection, owner: str, digest: str, now: int
) -> Content | None:
    """As `begin_removal`, of what the store holds and nobody has noted; None if somebody has."""
    known = (
        exists().where(table.c.owner == owner, table.c.digest == digest)
        for table in (contents, *_REFERRING)
    )
    if connection.scalar(select(or_(*known))):
        return None
    try:
        with connection.begin_nested():
            return _insert(connection, owner, digest, _REMOVING, now)
    except IntegrityError:
        return None


def begin_erasure(connection: Connection, owner: str, digest: str, now: int) -> Content | None:
    """As `begin_removal`, without any grace, of a content that nothing needs any more.

    None if something does, if it is being removed already, or if it was shipped.
    """
    if owner == SHIPPED_OWNER:
        return None
    idle = and_(_is(owner, digest), contents.c.state == _PRESENT, ~_IS_NEEDED)
    statement = update(contents).where(idle).values(state=_REMOVING, touched_at=now)
    generation = connection.scalar(statement.returning(contents.c.generation))
    if generation is not None:
        return Content(owner, digest, generation)
    return begin_removal_of_unknown(connection, owner, digest, now)


def still_removing(connection: Connection, begun: Iterable[Content]) -> list[Content]:
    """Those whose removal nobody has ended meanwhile."""
    return [
        content for content in begun if connection.scalar(select(exists().where(_is_mine(content))))
    ]


def gone_contents(connection: Connection, keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those contents, (owner, digest), that nothing needs and that are gone or being removed."""
    return [
        (owner, digest)
        for owner, digest in keys
        if owner != SHIPPED_OWNER and _is_gone(connection, owner, digest)
    ]


def end_removals(
    connection: Connection, removed: Collection[Content], untouched: Collection[Content]
) -> None:
    """Forgets contents that are certainly gone; those that nobody began to remove stay."""
    for content in removed:
        connection.execute(delete(contents).where(_is_mine(content)))
    for content in untouched:
        connection.execute(update(contents).where(_is_mine(content)).values(state=_PRESENT))


def noted_digests(connection: Connection, owner: str) -> set[str]:
    """The contents of an owner that are noted, or that something needs."""
    known = (
        select(table.c.digest).where(table.c.owner == owner) for table in (contents, *_REFERRING)
    )
    return set(connection.scalars(union(*known)))


def _is_gone(connection: Connection, owner: str, digest: str) -> bool:
    present = exists().where(_is(owner, digest), contents.c.state == _PRESENT)
    needed = [
        exists().where(table.c.owner == owner, table.c.digest == digest) for table in _REFERRING
    ]
    return not connection.scalar(select(or_(present, *needed)))


def _touch(connection: Connection, owner: str, digest: str, now: int) -> bool:
    present = and_(_is(owner, digest), contents.c.state == _PRESENT)
    statement = update(contents).where(present).values(touched_at=now)
    return connection.execute(statement).rowcount > 0


def _insert(connection: Connection, owner: str, digest: str, state: str, now: int) -> Content:
    made = Content(owner, digest, secrets.token_hex(8))
    row = {"owner": owner, "digest": digest, "generation": made.generation}
    connection.execute(insert(contents).values(**row, state=state, touched_at=now))
    return made


def _is(owner: str, digest: str) -> ColumnElement[bool]:
    return and_(contents.c.owner == owner, contents.c.digest == digest)


def _is_mine(content: Content) -> ColumnElement[bool]:
    same = contents.c.generation == content.generation
    return and_(_is(content.owner, content.digest), same, contents.c.state == _REMOVING)


def _is_idle(before: int) -> ColumnElement[bool]:
    return and_(contents.c.state == _PRESENT, contents.c.touched_at <= before, ~_IS_NEEDED)


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
        owner = scope.get_owner(connection, tenant)
        known = versions.sibling_row(connection, tenant, name, info.digest)
    if known is not None:
        owner = str(known.owner)
    with catalog.append() as connection:
        noted = note_upload(connection, owner, info.digest, now)
    if known is not None and _is_intact(objects, owner, info.digest, known.file_nbytes, staged):
        return Stored(owner, known.file_nbytes, False, noted)
    with storage_faults("storing the prefix file"):
        nbytes = staged.stat().st_size
    objects.commit(owner, info.digest, staged)
    if objects.size(owner, info.digest) != nbytes:
        raise Unavailable("the content was removed while it was uploaded; send it again")
    return Stored(owner, nbytes, known is not None, noted)


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
