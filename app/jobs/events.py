"""What happens to jobs, in order, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, update

from app.db.schema import job_events, training_jobs
from app.jobs.types import JobEvent, JobFailure

KEPT_EVENTS = 10_000
"""Events that are kept of a job: the newest."""
_MAX_MESSAGE = 2000


def add(connection: Connection, job: int, events: Sequence[JobEvent], now: float) -> None:
    """Adds events to the job with this row number; other writers of its events wait meanwhile."""
    if not events:
        return
    counted = (
        update(training_jobs)
        .where(training_jobs.c.id == job)
        .values(events=training_jobs.c.events + len(events))
        .returning(training_jobs.c.events)
    )
    last = connection.execute(counted).scalar_one()
    first = last - len(events) + 1
    rows = [
        {
            "job_id": job,
            "sequence": sequence,
            "created_at": int(now),
            "level": event.level,
            "type": event.type,
            "message": event.message[:_MAX_MESSAGE],
            "data": None if event.data is None else dict(event.data),
        }
        for sequence, event in enumerate(events, first)
    ]
    connection.execute(insert(job_events), rows)
    if last > KEPT_EVENTS:
        old = (job_events.c.job_id == job) & (job_events.c.sequence <= last - KEPT_EVENTS)
        connection.execute(delete(job_events).where(old))


def failure(code: str, message: str, param: str | None = None) -> tuple[dict[str, Any], JobEvent]:
    """What a failed job's row says of its error, and the event that tells of it."""
    error = JobFailure(code=code, message=message, param=param)
    return dict(vars(error)), JobEvent(message=message, level="error", data={"code": code})


def tell(connection: Connection, job: int, message: str, now: float, level: str = "info") -> None:
    """Adds one message."""
    add(connection, job, [JobEvent(message=message, level=level)], now)
