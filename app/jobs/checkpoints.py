"""States from which jobs go on, inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from app.db.schema import job_checkpoints
from app.jobs.contents import NewContent
from app.registry.storage import contents


def add(
    connection: Connection,
    job: int,
    new: NewContent,
    step: int,
    metrics: Mapping[str, Any],
    now: float,
) -> list[tuple[str, str]]:
    """Notes a stored content as the job's last checkpoint; what `release` gives of earlier ones.

    In a transaction that takes its turn. Unavailable if the content was removed meanwhile.
    """
    contents.check_present(connection, new.noted)
    replaced = release(connection, job)
    again = (job_checkpoints.c.job_id == job) & (job_checkpoints.c.step >= step)
    connection.execute(delete(job_checkpoints).where(again))
    row = {
        "job_id": job,
        "step": step,
        "created_at": int(now),
        "metrics": dict(metrics),
        "owner": new.noted.owner,
        "digest": new.noted.digest,
        "nbytes": new.nbytes,
    }
    connection.execute(insert(job_checkpoints).values(row))
    return replaced


def newest(connection: Connection, job: int) -> Row[Any] | None:
    """The checkpoint from which the job goes on, None if there is none."""
    query = select(job_checkpoints).where(
        job_checkpoints.c.job_id == job, job_checkpoints.c.digest.is_not(None)
    )
    return connection.execute(query.order_by(job_checkpoints.c.step.desc()).limit(1)).first()


def release(connection: Connection, job: int) -> list[tuple[str, str]]:
    """The contents of the job's checkpoints, (owner, digest), are not needed any more.

    They may be removed at once: nobody reads them again. The checkpoints' metrics stay.
    """
    held = (job_checkpoints.c.job_id == job) & job_checkpoints.c.digest.is_not(None)
    query = select(job_checkpoints.c.owner, job_checkpoints.c.digest).where(held)
    going = [(row.owner, row.digest) for row in connection.execute(query)]
    contents.end_grace(connection, going)
    connection.execute(update(job_checkpoints).where(held).values(digest=None))
    return going
