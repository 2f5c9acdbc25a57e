"""Erasure: all that is one user's goes, from the catalog at once and from the store without grace.

A user is whom the tenant has named in uploads, files and jobs. Rows are found by index, a batch in
each transaction, so erasing costs by what the user has and not by what others have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, or_, select, update

from app.db.change_log import ChangeKind, note
from app.db.database import Actor, Database
from app.db.schema import job_checkpoints, prefixes, training_files, training_jobs
from app.errors import InvalidRequest, PolyprefixError
from app.jobs import checkpoints, events
from app.jobs.rows import is_behind, needs_file
from app.jobs.types import JobStatus
from app.registry import versions
from app.registry.storage import contents
from app.registry.storage.contents import Content
from app.registry.storage.garbage import GarbageCollector
from app.registry.storage.store import ObjectStore

MAX_USER = 512
_BATCH = 64
"""Prefixes, files and jobs of one transaction."""
_WAIT_S = 10.0


@dataclass
class Erasure:
    """What one call has erased: names of prefixes, ids of files and jobs.

    `cancelled` are open jobs that are not the user's and needed the user's files, to train on or to
    validate, or were trained behind the user's prefixes. Jobs of other tenants are cancelled and
    not listed. `begun` are the user's contents that are being removed from the store, `others`
    those of cancelled jobs; `shared` counts those that stay because others need them.
    """

    prefixes: list[str] = field(default_factory=list)
    versions: int = 0
    training_files: list[str] = field(default_factory=list)
    training_jobs: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    begun: list[Content] = field(default_factory=list)
    others: list[Content] = field(default_factory=list)
    shared: int = 0


def check_user(user: str) -> str:
    """The user itself if it can be one: 1 to 512 printable characters. InvalidRequest if not."""
    if not 0 < len(user) <= MAX_USER or not user.isprintable():
        raise InvalidRequest(f"a user is 1 to {MAX_USER} printable characters", param="user")
    return user


class UserErasure:
    """Erases users of tenants. Synchronous and thread-safe; raises what the catalog raises."""

    def __init__(
        self, catalog: Database, objects: ObjectStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog, self._objects, self._clock = catalog, objects, clock

    def forget(self, tenant: str, user: str, *, actor: Actor | None = None) -> Erasure:
        """Removes the user's rows; afterwards no name and no id leads to what was the user's.

        Open jobs end, whoever works on them. Contents that nothing else needs are noted as being
        removed, and `ERASURE` tells caches. What has no rows changes nothing.
        """
        check_user(user)
        erased = Erasure()
        while self._has_rows(tenant, user):
            with self._catalog.write(actor) as (connection, epoch):
                batch = _Batch(connection, epoch, tenant, user, int(self._clock()), erased)
                batch.forget_jobs()
                batch.forget_files()
                batch.forget_prefixes()
                batch.begin_removals()
        return erased

    def remove(self, erased: Erasure) -> int:
        """Removes the files of `begun` and `others` from the store; how many of `begun` are gone.

        The rest is removed in the background: if the store fails, or another process removes.
        """
        going = erased.begun + erased.others
        collector = GarbageCollector(self._catalog, self._objects, 0.0, self._clock)
        try:
            is_gone = bool(going) and collector.erase(going, wait_s=_WAIT_S) > 0
        except PolyprefixError:
            is_gone = False
        return len(erased.begun) if is_gone else 0

    def finish_removals(self) -> None:
        """Removes what `remove` has left, other contents whose removal was cut short, and
        checkpoints that no job needs any more."""
        GarbageCollector(self._catalog, self._objects, 0.0, self._clock).finish()

    def _has_rows(self, tenant: str, user: str) -> bool:
        with self._catalog.read() as connection:
            return any(
                connection.execute(_of_user(table, tenant, user).limit(1)).first() is not None
                for table in (training_jobs, training_files, prefixes)
            )


@dataclass
class _Batch:
    """One transaction; what it finds is added to `erased`."""

    connection: Connection
    epoch: int
    tenant: str
    user: str
    now: int
    erased: Erasure
    _going: list[tuple[str, str]] = field(default_factory=list)

    def forget_jobs(self) -> None:
        """The jobs with their events and checkpoints; a worker that has one loses it."""
        for row in self._rows(training_jobs):
            self._note(ChangeKind.TRAINING, row.public_id)
            held = select(job_checkpoints.c.owner, job_checkpoints.c.digest).where(
                job_checkpoints.c.job_id == row.id, job_checkpoints.c.digest.is_not(None)
            )
            self._going += [(each.owner, each.digest) for each in self.connection.execute(held)]
            self.connection.execute(delete(training_jobs).where(training_jobs.c.id == row.id))
            self.erased.training_jobs.append(row.public_id)

    def forget_files(self) -> None:
        """The files; open jobs of others that need them are cancelled."""
        for row in self._rows(training_files):
            self._note(ChangeKind.TRAINING, row.public_id)
            for job in self._others_jobs(needs_file(self.tenant, row.public_id)):
                use = "training" if job.training_file == row.public_id else "validation"
                self._cancel(job, f"The {use} file was erased.")
            self._going.append((row.owner, row.digest))
            self.connection.execute(delete(training_files).where(training_files.c.id == row.id))
            self.erased.training_files.append(row.public_id)

    def forget_prefixes(self) -> None:
        """The prefixes with their versions, aliases and publications; open jobs of others behind
        them are cancelled."""
        for row in self._rows(prefixes):
            self._note(ChangeKind.PREFIX, row.name)
            for job in self._others_jobs(is_behind(self.tenant, row)):
                self._cancel(job, "The prefix behind which the job is trained was erased.")
            gone = versions.delete_prefix(self.connection, self.tenant, row.id)
            self._going += gone
            self.erased.versions += len(gone)
            self.erased.prefixes.append(row.name)

    def begin_removals(self) -> None:
        """Contents that nothing needs any more lose their grace."""
        for owner, digest in dict.fromkeys(self._going):
            content = contents.begin_erasure(self.connection, owner, digest, self.now)
            if content is None:
                self.erased.shared += 1
            else:
                self.erased.begun.append(content)
                note(self.connection, self.epoch, ChangeKind.ERASURE, owner, digest)

    def _others_jobs(self, which: ColumnElement[bool]) -> Sequence[Any]:
        """Those jobs without the user's, which are left to `forget_jobs`."""
        others = or_(
            training_jobs.c.user.is_(None),
            training_jobs.c.user != self.user,
            training_jobs.c.tenant_id != self.tenant,
        )
        query = select(training_jobs).where(which, others).order_by(training_jobs.c.id)
        return self.connection.execute(query).all()

    def _cancel(self, job: Any, reason: str) -> None:
        note(self.connection, self.epoch, ChangeKind.TRAINING, job.tenant_id, job.public_id)
        values = {
            "status": JobStatus.CANCELLED.value,
            "finished_at": self.now,
            "estimated_finish": None,
        }
        same = training_jobs.c.id == job.id
        self.connection.execute(update(training_jobs).where(same).values(values))
        events.tell(self.connection, job.id, reason, self.now)
        for owner, digest in checkpoints.release(self.connection, job.id):
            content = contents.begin_erasure(self.connection, owner, digest, self.now)
            self.erased.others += [] if content is None else [content]
        if job.tenant_id == self.tenant:
            self.erased.cancelled.append(job.public_id)

    def _rows(self, table: Table) -> Sequence[Any]:
        query = _of_user(table, self.tenant, self.user).order_by(table.c.id).limit(_BATCH)
        return self.connection.execute(query).all()

    def _note(self, kind: ChangeKind, name: str) -> None:
        note(self.connection, self.epoch, kind, self.tenant, name)


def _of_user(table: Table, tenant: str, user: str) -> Any:
    return select(table).where(table.c.tenant_id == tenant, table.c.user == user)
