"""Erasure: all that is one user's goes, from the catalog at once and from the store without grace.

A user is whom the tenant has named in uploads, files and jobs. Rows are found by index, a batch in
each transaction, so erasing costs by what the user has and not by what others have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, or_, select, update

from app.db.change_log import ChangeKind, note
from app.db.database import Actor, Database
from app.db.schema import job_checkpoints, prefixes, training_files, training_jobs
from app.errors import InvalidRequest, PolyprefixError
from app.jobs import checkpoints, events
from app.jobs.rows import is_behind, needs_file
from app.jobs.types import JobStatus
from app.jobs.workers import OPEN_STATUSES
from app.registry import versions
from app.registry.storage import contents
from app.registry.storage.contents import Content
from app.registry.storage.garbage import GarbageCollector
from app.registry.storage.store import ObjectStore

MAX_USER = 512
_BATCH = 64
"""Prefixes, files and jobs of one transaction."""
_LOCKED = 500
"""Rows of jobs that one statement locks."""
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
                _Batch(connection, epoch, tenant, user, int(self._clock()), erased).forget()
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

    def forget(self) -> None:
        """Finds what goes, locks the jobs among it, and only then changes something."""
        own, files = self._rows(training_jobs), self._rows(training_files)
        named = self._rows(prefixes)
        needing = self._jobs_on(files) | self._jobs_behind(named)
        self._lock({job.id for job in own} | set(needing))
        for job in own:
            self._forget_job(job)
        for job, reason in needing.values():
            self._cancel(job, reason)
        for file in files:
            self._forget_file(file)
        for prefix in named:
            self._forget_prefix(prefix)
        self._begin_removals()

    def _jobs_on(self, files: Sequence[Any]) -> dict[int, tuple[Any, str]]:
        """Open jobs of others that need the files, and why they end, by the numbers of rows."""
        found = {}
        for file in files:
            for job in self._others_jobs(needs_file(self.tenant, file.public_id)):
                use = "training" if job.training_file == file.public_id else "validation"
                found[job.id] = job, f"The {use} file was erased."
        return found

    def _jobs_behind(self, named: Sequence[Any]) -> dict[int, tuple[Any, str]]:
        """As `_jobs_on`, for jobs that are trained behind the prefixes."""
        reason = "The prefix behind which the job is trained was erased."
        return {
            job.id: (job, reason)
            for prefix in named
            for job in self._others_jobs(is_behind(self.tenant, prefix))
        }

    def _lock(self, numbers: set[int]) -> None:
        """Locks rows of jobs in the order in which all transactions do; no worker changes them."""
        ordered = sorted(numbers)
        for start in range(0, len(ordered), _LOCKED):
            part = training_jobs.c.id.in_(ordered[start : start + _LOCKED])
            query = select(training_jobs.c.id).where(part).order_by(training_jobs.c.id)
            self.connection.execute(query.with_for_update())

    def _forget_job(self, job: Any) -> None:
        """A job with its events and checkpoints; a worker that has it loses it."""
        self._note(ChangeKind.TRAINING, job.public_id)
        held = select(job_checkpoints.c.owner, job_checkpoints.c.digest).where(
            job_checkpoints.c.job_id == job.id, job_checkpoints.c.digest.is_not(None)
        )
        self._going += [(each.owner, each.digest) for each in self.connection.execute(held)]
        self.connection.execute(delete(training_jobs).where(training_jobs.c.id == job.id))
        self.erased.training_jobs.append(job.public_id)

    def _forget_file(self, file: Any) -> None:
        self._note(ChangeKind.TRAINING, file.public_id)
        self._going.append((file.owner, file.digest))
        self.connection.execute(delete(training_files).where(training_files.c.id == file.id))
        self.erased.training_files.append(file.public_id)

    def _forget_prefix(self, prefix: Any) -> None:
        """A prefix with its versions, aliases and publications."""
        self._note(ChangeKind.PREFIX, prefix.name)
        gone = versions.delete_prefix(self.connection, self.tenant, prefix.id)
        self._going += gone
        self.erased.versions += len(gone)
        self.erased.prefixes.append(prefix.name)

    def _begin_removals(self) -> None:
        """Contents that nothing needs any more lose their grace."""
        for owner, digest in dict.fromkeys(self._going):
            content = contents.begin_erasure(self.connection, owner, digest, self.now)
            if content is None:
                self.erased.shared += 1
            else:
                self.erased.begun.append(content)
                note(self.connection, self.epoch, ChangeKind.ERASURE, owner, digest)

    def _others_jobs(self, which: ColumnElement[bool]) -> Sequence[Any]:
        """Those jobs without the user's, which are not cancelled but forgotten."""
        others = or_(
            training_jobs.c.user.is_(None),
            training_jobs.c.user != self.user,
            training_jobs.c.tenant_id != self.tenant,
        )
        query = select(training_jobs).where(which, others).order_by(training_jobs.c.id)
        return self.connection.execute(query).all()

    def _cancel(self, job: Any, reason: str) -> None:
        """Ends a job unless it has ended before it was locked."""
        values = {
            "status": JobStatus.CANCELLED.value,
            "finished_at": self.now,
            "estimated_finish": None,
        }
        still = and_(training_jobs.c.id == job.id, training_jobs.c.status.in_(OPEN_STATUSES))
        if not self.connection.execute(update(training_jobs).where(still).values(values)).rowcount:
            return
        note(self.connection, self.epoch, ChangeKind.TRAINING, job.tenant_id, job.public_id)
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
