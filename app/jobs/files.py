"""Training files of tenants: kept, shown, read, deleted."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, delete, exists, func, insert, select

from app.db.change_log import ChangeKind, note
from app.db.database import Actor, Database
from app.db.schema import training_files
from app.errors import InUse, PolyprefixError, QuotaExceeded
from app.jobs import contents
from app.jobs.checking import CheckedFile
from app.jobs.ids import new_id
from app.jobs.jobs import ListPart
from app.jobs.rows import Clock, files_of, get_file_row, needs_file, now_of, to_file
from app.jobs.types import TrainingFile
from app.registry.storage import contents as notes
from app.registry.storage.store import ObjectStore, StagedFile

MAX_PAGE = 1000
"""Files in one part of a list; more may be asked for, and the rest follows."""


class TrainingFiles:
    """What tenants upload to train on. Synchronous and thread-safe.

    Any method may raise NotFound, for a file that is not there or another tenant's, and what the
    catalog and the store raise; the writing ones have then changed nothing. They take the `actor`
    who makes the change, for the audit log.
    """

    def __init__(
        self, catalog: Database, objects: ObjectStore, *, clock: Clock | None = None
    ) -> None:
        """`clock` is for tests."""
        self._catalog, self._objects, self._clock = catalog, objects, clock

    def stage(self) -> AbstractContextManager[StagedFile]:
        """A file to receive an upload into; gone at the end of the block unless it was added."""
        return self._objects.stage()

    def add(
        self,
        tenant: str,
        staged: Path,
        checked: CheckedFile,
        *,
        user: str | None = None,
        expires_after_s: int | None = None,
        max_bytes: int | None = None,
        actor: Actor | None = None,
    ) -> TrainingFile:
        """Keeps a staged file that was checked.

        QuotaExceeded if all files of the tenant together would have more than `max_bytes`.
        """
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            _check_quota(connection, tenant, checked.nbytes, max_bytes)
        stored = contents.store(self._catalog, self._objects, tenant, staged, now)
        file_id = new_id("file")
        with self._catalog.write(actor) as (connection, epoch):
            note(connection, epoch, ChangeKind.TRAINING, tenant, file_id)
            notes.check_present(connection, stored.noted)
            _check_quota(connection, tenant, checked.nbytes, max_bytes)
            row = {
                **vars(checked),
                "public_id": file_id,
                "tenant_id": tenant,
                "user": user,
                "owner": stored.noted.owner,
                "digest": stored.noted.digest,
                "created_at": int(now),
                "expires_at": None if expires_after_s is None else int(now) + expires_after_s,
            }
            connection.execute(insert(training_files).values(row))
            return to_file(get_file_row(connection, tenant, file_id, now))

    def get(self, tenant: str, file_id: str, *, param: str | None = None) -> TrainingFile:
        """One file; `param` names the field of the request that names it."""
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            return to_file(get_file_row(connection, tenant, file_id, now, param=param))

    def list(
        self,
        tenant: str,
        *,
        after: str | None = None,
        limit: int = MAX_PAGE,
        purpose: str | None = None,
        user: str | None = None,
        oldest_first: bool = False,
    ) -> ListPart[TrainingFile]:
        """Files that follow the file `after`, the newest first unless asked otherwise.

        With `purpose` and `user`, those that have them.
        """
        limit = max(1, min(limit, MAX_PAGE))
        number = training_files.c.id
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            query = files_of(tenant, now)
            if purpose is not None:
                query = query.where(training_files.c.purpose == purpose)
            if user is not None:
                query = query.where(training_files.c.user == user)
            if after is not None:
                last = get_file_row(connection, tenant, after, now, param="after").id
                query = query.where(number > last if oldest_first else number < last)
            query = query.order_by(number if oldest_first else number.desc()).limit(limit + 1)
            rows = connection.execute(query).all()
        return ListPart(tuple(to_file(row) for row in rows[:limit]), len(rows) > limit)

    def open(self, tenant: str, file_id: str) -> BinaryIO:
        """The file's bytes, to the end even if it is deleted meanwhile."""
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            row = get_file_row(connection, tenant, file_id, now)
        file = self._objects.open(row.owner, row.digest)
        if file is None:
            raise PolyprefixError(f"the store has lost the file {file_id}; upload it again")
        return file

    def read(self, tenant: str, file_id: str) -> bytes:
        """All of a small file's bytes."""
        with self.open(tenant, file_id) as file:
            return file.read()

    def delete(self, tenant: str, file_id: str, *, actor: Actor | None = None) -> None:
        """Forgets a file; InUse if a job that has not ended needs it."""
        with self._catalog.write(actor) as (connection, epoch):
            note(connection, epoch, ChangeKind.TRAINING, tenant, file_id)
            now = now_of(connection, self._clock)
            row = get_file_row(connection, tenant, file_id, now)
            if _is_in_use(connection, tenant, file_id):
                raise InUse("a job that has not ended needs the file; cancel the job first")
            notes.release(connection, [(row.owner, row.digest)], int(now))
            connection.execute(delete(training_files).where(training_files.c.id == row.id))

    def forget_expired(self) -> int:
        """Forgets files whose time is over and that no job needs; how many."""
        with self._catalog.read() as connection:
            now = now_of(connection, self._clock)
            query = select(training_files).where(training_files.c.expires_at <= int(now))
            found = connection.execute(query.limit(MAX_PAGE)).all()
        forgotten = 0
        for row in found:
            with self._catalog.write() as (connection, epoch):
                note(connection, epoch, ChangeKind.TRAINING, row.tenant_id, row.public_id)
                if not _is_in_use(connection, row.tenant_id, row.public_id):
                    notes.release(connection, [(row.owner, row.digest)], int(now))
                    gone = delete(training_files).where(training_files.c.id == row.id)
                    forgotten += connection.execute(gone).rowcount
        return forgotten


def _is_in_use(connection: Connection, tenant: str, file_id: str) -> bool:
    return bool(connection.scalar(select(exists().where(needs_file(tenant, file_id)))))


def _check_quota(connection: Connection, tenant: str, nbytes: int, max_bytes: int | None) -> None:
    if max_bytes is None:
        return
    query = select(func.coalesce(func.sum(training_files.c.nbytes), 0)).where(
        training_files.c.tenant_id == tenant
    )
    used = int(connection.execute(query).scalar_one())
    if used + nbytes > max_bytes:
        raise QuotaExceeded(
            f"the tenant's training files may have {max_bytes} bytes; {used} are used, and this "
            f"file has {nbytes}: delete some first"
        )
