"""Training jobs of tenants: made, shown, cancelled, paused, resumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Row, func, insert, select, update

from app.db.change_log import ChangeKind, note
from app.db.database import Actor, Database
from app.db.schema import job_checkpoints, job_events, training_jobs
from app.errors import Conflict, InvalidRequest, PrefixNotFound, TenantQueueFull
from app.jobs import checkpoints, events, workers
from app.jobs.ids import new_id
from app.jobs.rows import Clock, get_file_row, get_job_row, has_metadata, now_of, to_job
from app.jobs.types import (
    OPEN,
    TEXT,
    TRAINING_DATA,
    Job,
    JobCheckpoint,
    JobEvent,
    JobSpec,
    JobStatus,
)
from app.prefix.reference import check_alias, check_name, parse_model_field
from app.registry import versions
from app.registry.resolver import is_usable
from app.registry.types import NO_QUOTA, Quota

Item = TypeVar("Item")

MAX_QUEUED = 100_000
"""Jobs of one tenant that may wait, whatever its limits say."""
MAX_PAGE = 100
_NO_WORKER = (
    "No worker for this base model is running: the job waits. Start `polyprefix worker`, or serve "
    "with `--train`."
)


@dataclass(frozen=True)
class ListPart(Generic[Item]):
    """A part of a list, and whether more follows."""

    items: tuple[Item, ...]
    has_more: bool


class TrainingJobs:
    """What tenants ask about their jobs. Synchronous and thread-safe.

    Any method may raise NotFound, for a job that is not there or another tenant's, and what the
    catalog raises; the writing ones have then changed nothing. They take the `actor` who makes the
    change, for the audit log.
    """

    def __init__(self, catalog: Database, *, clock: Clock | None = None) -> None:
        """`clock` is for tests."""
        self._catalog, self._clock = catalog, clock

    def create(
        self,
        tenant: str,
        spec: JobSpec,
        *,
        max_queued: int | None = None,
        quota: Quota = NO_QUOTA,
        actor: Actor | None = None,
    ) -> Job:
        """A new job, which waits for a worker.

        Its files must be the tenant's and hold examples, or for the method `distill` a text; it is
        trained behind a prefix that the tenant may use. NotFound or InvalidRequest say which of
        them is wrong. Conflict if the version that it makes would be refused now, by the prefix's
        user or by `quota`; TenantQueueFull if `max_queued` jobs of the tenant wait.
        """
        check_name(spec.suffix)
        if spec.alias is not None:
            check_alias(spec.alias)
        job_id = new_id("ftjob")
        with self._catalog.write(actor) as (connection, epoch):
            note(connection, epoch, ChangeKind.TRAINING, tenant, job_id)
            now = now_of(connection, self._clock)
            _check_files(connection, tenant, spec, now)
            _check_prefixes(connection, tenant, spec, quota)
            most = MAX_QUEUED if max_queued is None else min(max_queued, MAX_QUEUED)
            if _count_queued(connection, tenant) >= most:
                raise TenantQueueFull(
                    f"{most} training jobs of this tenant wait; cancel one, or try again later",
                    retry_after=60.0,
                )
            values = _new_row(tenant, job_id, spec, now)
            made = insert(training_jobs).values(values).returning(training_jobs.c.id)
            number = connection.execute(made).scalar_one()
            events.tell(connection, number, "The files are checked; the job is queued.", now)
            if not workers.is_any(connection, spec.base_fingerprint, now):
                events.tell(connection, number, _NO_WORKER, now, level="warn")
            return to_job(get_job_row(connection, tenant, job_id))

    def get(self, tenant: str, job_id: str) -> Job:
        """One job."""
        with self._catalog.read() as connection:
            return to_job(get_job_row(connection, tenant, job_id))

    def list(
        self,
        tenant: str,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> ListPart[Job]:
        """Jobs, the newest first, that follow the job `after`.

        With `user`, those that are made for this user; with `metadata`, those that have all of it.
        """
        query = select(training_jobs).where(training_jobs.c.tenant_id == tenant)
        if user is not None:
            query = query.where(training_jobs.c.user == user)
        with self._catalog.read() as connection:
            for name, value in (metadata or {}).items():
                query = query.where(has_metadata(connection, name, value))
            if after is not None:
                row = get_job_row(connection, tenant, after, param="after")
                query = query.where(training_jobs.c.id < row.id)
            query = query.order_by(training_jobs.c.id.desc()).limit(_checked(limit) + 1)
            rows = connection.execute(query).all()
        return ListPart(tuple(to_job(row) for row in rows[:limit]), len(rows) > limit)

    def events(
        self, tenant: str, job_id: str, *, after: int | None = None, limit: int = 20
    ) -> ListPart[JobEvent]:
        """Events, the newest first, that came before the one with the number `after`."""
        with self._catalog.read() as connection:
            row = get_job_row(connection, tenant, job_id)
            query = select(job_events).where(job_events.c.job_id == row.id)
            if after is not None:
                query = query.where(job_events.c.sequence < after)
            query = query.order_by(job_events.c.sequence.desc()).limit(_checked(limit) + 1)
            rows = connection.execute(query).all()
        return ListPart(tuple(_to_event(row) for row in rows[:limit]), len(rows) > limit)

    def new_events(
        self, tenant: str, job_id: str, since: int, limit: int = MAX_PAGE
    ) -> tuple[tuple[JobEvent, ...], JobStatus]:
        """The events after the one with the number `since`, the oldest first, and the status."""
        with self._catalog.read() as connection:
            row = get_job_row(connection, tenant, job_id)
            query = (
                select(job_events)
                .where(job_events.c.job_id == row.id, job_events.c.sequence > since)
                .order_by(job_events.c.sequence)
                .limit(_checked(limit))
            )
            found = tuple(_to_event(each) for each in connection.execute(query))
        return found, JobStatus(row.status)

    def checkpoints(
        self, tenant: str, job_id: str, *, after: int | None = None, limit: int = 10
    ) -> ListPart[JobCheckpoint]:
        """Checkpoints, the newest first, of steps before `after`."""
        with self._catalog.read() as connection:
            row = get_job_row(connection, tenant, job_id)
            query = select(job_checkpoints).where(job_checkpoints.c.job_id == row.id)
            if after is not None:
                query = query.where(job_checkpoints.c.step < after)
            query = query.order_by(job_checkpoints.c.step.desc()).limit(_checked(limit) + 1)
            rows = connection.execute(query).all()
        found = (
            JobCheckpoint(step=each.step, created_at=each.created_at, metrics=each.metrics)
            for each in rows[:limit]
        )
        return ListPart(tuple(found), len(rows) > limit)

    def cancel(self, tenant: str, job_id: str, *, actor: Actor | None = None) -> Job:
        """Ends a job that has not ended; its worker stops within a step of hearing of it."""
        return self._change(tenant, job_id, OPEN, JobStatus.CANCELLED, actor)

    def pause(self, tenant: str, job_id: str, *, actor: Actor | None = None) -> Job:
        """Stops a job until it is resumed; a running one saves a checkpoint first."""
        of = (JobStatus.QUEUED, JobStatus.RUNNING)
        return self._change(tenant, job_id, of, JobStatus.PAUSED, actor)

    def resume(self, tenant: str, job_id: str, *, actor: Actor | None = None) -> Job:
        """Queues a paused job again."""
        return self._change(tenant, job_id, (JobStatus.PAUSED,), JobStatus.QUEUED, actor)

    def _change(
        self,
        tenant: str,
        job_id: str,
        of: Collection[JobStatus],
        to: JobStatus,
        actor: Actor | None,
    ) -> Job:
        """Changes the status if it is one `of` these; a job that has it already stays as it is."""
        with self._catalog.write(actor) as (connection, epoch):
            note(connection, epoch, ChangeKind.TRAINING, tenant, job_id)
            row, now = self._locked(connection, tenant, job_id)
            if row.status not in [status.value for status in of]:
                if _has(row.status, to):
                    return to_job(row)
                raise InvalidRequest(f"the job is {row.status}; it cannot be {_DONE[to]}")
            values: dict[str, Any] = {"status": to.value, "estimated_finish": None}
            if to is JobStatus.CANCELLED:
                values["finished_at"] = int(now)
            changed = update(training_jobs).where(training_jobs.c.id == row.id).values(values)
            connection.execute(changed)
            events.tell(connection, row.id, f"The job was {_DONE[to]}.", now)
            if to is JobStatus.CANCELLED:
                checkpoints.release(connection, row.id)
            return to_job(get_job_row(connection, tenant, job_id))

    def _locked(self, connection: Connection, tenant: str, job_id: str) -> tuple[Row[Any], float]:
        """The job's row, which its worker does not change before the transaction ends."""
        row = get_job_row(connection, tenant, job_id)
        same = update(training_jobs).where(training_jobs.c.id == row.id)
        connection.execute(same.values(events=training_jobs.c.events))
        return get_job_row(connection, tenant, job_id), now_of(connection, self._clock)


_DONE = {
    JobStatus.CANCELLED: "cancelled",
    JobStatus.PAUSED: "paused",
    JobStatus.QUEUED: "resumed",
}


def _has(status: str, wanted: JobStatus) -> bool:
    running = {JobStatus.QUEUED.value, JobStatus.RUNNING.value}
    return status == wanted.value or (wanted is JobStatus.QUEUED and status in running)


def _check_files(connection: Connection, tenant: str, spec: JobSpec, now: float) -> None:
    """NotFound or InvalidRequest unless the files are the tenant's and what the method needs."""
    wanted = TEXT if spec.method == "distill" else TRAINING_DATA
    training = get_file_row(connection, tenant, spec.training_file, now, param="training_file")
    _check_purpose(training, wanted, "training_file")
    if spec.validation_file is None:
        return
    if spec.validation_file == spec.training_file:
        raise InvalidRequest(
            "the validation file is the training file: what is trained on says nothing about new "
            "inputs; give another file, or none",
            param="validation_file",
        )
    validation = get_file_row(
        connection, tenant, spec.validation_file, now, param="validation_file"
    )
    _check_purpose(validation, TRAINING_DATA, "validation_file")


def _check_prefixes(connection: Connection, tenant: str, spec: JobSpec, quota: Quota) -> None:
    """PrefixNotFound or Conflict unless the job has what it is trained behind, and what it makes
    may become a version."""
    if spec.on is not None:
        (reference,) = parse_model_field(spec.on)
        if not is_usable(connection, tenant, reference):
            raise PrefixNotFound(f"on: the prefix {spec.on} does not exist", param="on")
    if spec.method == "infix":
        return
    try:
        versions.check_new(connection, tenant, spec.suffix, user=spec.user, quota=quota)
    except Conflict as error:
        raise type(error)(f"suffix: {error.message}", param="suffix") from error


def _check_purpose(row: Row[Any], wanted: str, param: str) -> None:
    if row.purpose != wanted:
        raise InvalidRequest(
            f"{param}: the file was uploaded for the purpose `{row.purpose}`; this job needs one "
            f"with the purpose `{wanted}`",
            param=param,
        )


def _count_queued(connection: Connection, tenant: str) -> int:
    query = select(func.count()).where(
        training_jobs.c.tenant_id == tenant,
        training_jobs.c.status.in_([JobStatus.QUEUED.value, JobStatus.PAUSED.value]),
    )
    return int(connection.execute(query).scalar_one())


def _new_row(tenant: str, job_id: str, spec: JobSpec, now: float) -> dict[str, Any]:
    facts = {
        name: getattr(spec, name)
        for name in (
            "base_model",
            "base_fingerprint",
            "method",
            "suffix",
            "seed",
            "training_file",
            "validation_file",
            "alias",
            "user",
        )
    }
    counts = dict.fromkeys(("attempt", "losses", "events", "step", "total_steps"), 0)
    return {
        **facts,
        **counts,
        "public_id": job_id,
        "tenant_id": tenant,
        "status": JobStatus.QUEUED.value,
        "hyperparameters": dict(spec.hyperparameters),
        "asked": dict(spec.asked),
        "on_prefix": spec.on,
        "metadata": None if spec.metadata is None else dict(spec.metadata),
        "trained_tokens": 0,
        "created_at": int(now),
    }


def _checked(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequest(f"limit must be from 1 to {MAX_PAGE}", param="limit")
    return limit


def _to_event(row: Row[Any]) -> JobEvent:
    return JobEvent(
        message=row.message,
        level=row.level,
        type=row.type,
        data=row.data,
        sequence=row.sequence,
        created_at=row.created_at,
    )
