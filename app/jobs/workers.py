"""What the catalog knows of workers: which have lately asked for jobs, and which job each holds.

All inside the caller's transaction.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.schema import training_jobs, training_workers
from app.jobs import checkpoints, events
from app.jobs.rows import to_spec
from app.jobs.types import OPEN, ClaimedJob, JobEvent, JobFailure, JobStatus, Order

MAX_LOSSES = 5
"""Workers that a job may lose without a new checkpoint in between; then it fails."""
NO_LEASE: dict[str, Any] = {"token": None, "worker": None, "lease_until": None}
"""The columns of a job that nobody holds."""
OPEN_STATUSES = [status.value for status in OPEN]
_NOTED_S = 15
"""A worker is noted again after so many seconds."""
_GONE_S = 60
_FORGOTTEN_S = 86_400


def is_known(connection: Connection, worker: str, base_fingerprint: str, now: float) -> bool:
    """Whether the worker was noted a short time ago."""
    query = select(training_workers.c.seen_at).where(
        training_workers.c.name == worker[:64],
        training_workers.c.base_fingerprint == base_fingerprint,
    )
    seen = connection.scalar(query)
    return seen is not None and now - seen < _NOTED_S


def note_seen(connection: Connection, worker: str, base_fingerprint: str, now: float) -> None:
    """Notes that the worker asks for jobs of this base model; forgets those that are long gone."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = {"name": worker[:64], "base_fingerprint": base_fingerprint, "seen_at": int(now)}
    statement = dialect.insert(training_workers).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=row))
    old = training_workers.c.seen_at < now - _FORGOTTEN_S
    connection.execute(delete(training_workers).where(old))


def is_any(connection: Connection, base_fingerprint: str, now: float) -> bool:
    """Whether some worker trains this base model."""
    query = select(training_workers.c.name).where(
        training_workers.c.base_fingerprint == base_fingerprint,
        training_workers.c.seen_at >= now - _GONE_S,
    )
    return connection.execute(query.limit(1)).first() is not None


def take(
    connection: Connection, row: Row[Any], worker: str, lease_s: float, now: float
) -> ClaimedJob | None:
    """Gives a chosen job to the worker; None if the one that held it has come back."""
    values = {
        "status": JobStatus.RUNNING.value,
        "attempt": row.attempt + 1,
        "worker": worker[:64],
        "token": secrets.token_hex(16),
        "lease_until": now + lease_s,
        "started_at": row.started_at or int(now),
    }
    still = and_(
        training_jobs.c.id == row.id,
        training_jobs.c.status == JobStatus.QUEUED.value,
        or_(training_jobs.c.token.is_(None), training_jobs.c.lease_until < now),
    )
    if not connection.execute(update(training_jobs).where(still).values(values)).rowcount:
        return None
    again = " again, from its last checkpoint" if row.attempt else ""
    events.tell(connection, row.id, f"The job runs{again}.", now)
    return ClaimedJob(
        id=row.public_id,
        tenant=row.tenant_id,
        spec=to_spec(row),
        attempt=row.attempt + 1,
        token=str(values["token"]),
        losses=row.losses,
    )


def end_lease(connection: Connection, row: Row[Any], now: float) -> int:
    """Ends a lease that has run out, unless its worker has come back; how many were ended."""
    losses = row.losses + 1
    values: dict[str, Any] = {"losses": losses, "estimated_finish": None, **NO_LEASE}
    told = JobEvent(level="warn", message="The job's worker is lost; another one goes on.")
    if row.status == JobStatus.RUNNING.value:
        values["status"] = JobStatus.QUEUED.value
        if losses >= MAX_LOSSES:
            message = f"{losses} workers in a row were lost while they had this job."
            error = JobFailure(code="worker_lost", message=message)
            values |= {"status": JobStatus.FAILED.value, "error": vars(error)}
            values["finished_at"] = int(now)
            told = JobEvent(level="error", message=message)
    is_late = and_(
        training_jobs.c.id == row.id,
        training_jobs.c.token == row.token,
        training_jobs.c.status == row.status,
        training_jobs.c.lease_until < now,
    )
    ended = connection.execute(update(training_jobs).where(is_late).values(values)).rowcount
    if ended:
        events.add(connection, row.id, [told], now)
        if "finished_at" in values:
            checkpoints.release(connection, row.id)
    return ended


def give_back(
    connection: Connection, row: Row[Any], told: JobEvent, losses: int, now: float
) -> None:
    """Ends the lease of the worker that asks for it; a running job is queued again."""
    values: dict[str, Any] = {"losses": losses, "estimated_finish": None, **NO_LEASE}
    if row.status == JobStatus.RUNNING.value:
        values["status"] = JobStatus.QUEUED.value
        events.add(connection, row.id, [told], now)
    connection.execute(update(training_jobs).where(training_jobs.c.id == row.id).values(values))


def renew_lease(
    connection: Connection, job: ClaimedJob, worker: str, until: float, *, must_stop: bool
) -> Order:
    """Keeps a lease `until` then; what the worker is to do with the job.

    `must_stop`: the job's tenant may train nothing now.
    """
    renewed = (
        update(training_jobs)
        .where(training_jobs.c.public_id == job.id, training_jobs.c.token == job.token)
        .values(lease_until=until, worker=worker[:64])
        .returning(training_jobs.c.status)
    )
    status = connection.execute(renewed).scalar_one_or_none()
    if status is None:
        return Order.LOST
    if status not in OPEN_STATUSES:
        return Order.CANCEL
    if status != JobStatus.RUNNING.value or must_stop:
        return Order.PAUSE
    return Order.GO_ON
