"""Rows of the catalog as the rest of the program sees them, and how they are found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    union_all,
)

from app.db.schema import training_files, training_jobs, versions
from app.errors import InUse, NotFound
from app.jobs.ids import FILE_ID, JOB_ID, check_id
from app.jobs.types import OPEN, Job, JobFailure, JobSpec, JobStatus, TrainingFile

_BATCH = 500
"""Versions of one query."""

Clock = Callable[[], float]
"""Gives seconds since 1970."""


def now_of(connection: Connection, clock: Clock | None) -> float:
    """Seconds since 1970: the clock's, or those of the database, which all its clients share."""
    if clock is not None:
        return clock()
    if connection.dialect.name == "postgresql":
        return float(connection.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0)
    return time.time()


def files_of(tenant: str, now: float) -> Select[Any]:
    """A query over the tenant's files that have not expired."""
    expires = training_files.c.expires_at
    return select(training_files).where(
        training_files.c.tenant_id == tenant, or_(expires.is_(None), expires > int(now))
    )


def get_file_row(
    connection: Connection, tenant: str, file_id: str, now: float, *, param: str | None = None
) -> Row[Any]:
    """The row of a file of the tenant; NotFound for all others.

    `param` names the field of the request that has the id; None: the path has it.
    """
    check_id(FILE_ID, file_id, param or "file_id")
    query = files_of(tenant, now).where(training_files.c.public_id == file_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("the file does not exist", param=param)
    return row


def get_job_row(
    connection: Connection, tenant: str, job_id: str, *, param: str | None = None
) -> Row[Any]:
    """The row of a job of the tenant; NotFound for all others; `param` as for files."""
    check_id(JOB_ID, job_id, param or "job_id")
    query = select(training_jobs).where(
        training_jobs.c.tenant_id == tenant, training_jobs.c.public_id == job_id
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("the fine-tuning job does not exist", param=param)
    return row


def needs_file(tenant: str, file_id: str) -> ColumnElement[bool]:
    """Whether a job of the tenant has not ended and is trained on a file, or validated on it."""
    jobs = training_jobs.c
    # the tenant stands in both branches, since each has an index of its own
    return and_(
        jobs.status.in_([status.value for status in OPEN]),
        or_(
            and_(jobs.tenant_id == tenant, jobs.training_file == file_id),
            and_(jobs.tenant_id == tenant, jobs.validation_file == file_id),
        ),
    )


def is_behind(tenant: str, prefix: Row[Any]) -> ColumnElement[bool]:
    """Whether a job has not ended and is trained behind a version of the tenant's prefix.

    Jobs of other tenants, to which the prefix is published, count as well. `prefix` is a row of
    `prefixes`.
    """
    jobs, foreign = training_jobs.c, f"{tenant}/"
    names = union_all(
        *(
            select(literal(f"{start}{prefix.name}@").concat(versions.c.digest)).where(
                versions.c.prefix_id == prefix.id
            )
            for start in ("", foreign)
        )
    )
    return and_(
        # an expression, so that jobs are found by `on_prefix` and not by their status
        jobs.status.concat("").in_([status.value for status in OPEN]),
        jobs.on_prefix.is_not(None),
        jobs.on_prefix.in_(names),
        or_(jobs.tenant_id == tenant, jobs.on_prefix.startswith(foreign, autoescape=True)),
    )


def check_unneeded(tenant: str, name: str, connection: Connection, digests: Sequence[str]) -> None:
    """InUse if a job of the tenant that has not ended is trained behind one of these versions of
    its prefix; inside the caller's writing transaction."""
    jobs = training_jobs.c
    for start in range(0, len(digests), _BATCH):
        query = select(jobs.public_id, jobs.on_prefix).where(
            # an expression, so that jobs are found by `on_prefix` and not by their status
            jobs.status.concat("").in_([status.value for status in OPEN]),
            jobs.on_prefix.is_not(None),
            jobs.on_prefix.in_([f"{name}@{each}" for each in digests[start : start + _BATCH]]),
            jobs.tenant_id == tenant,
        )
        found = connection.execute(query.order_by(jobs.id).limit(1)).first()
        if found is not None:
            raise InUse(
                f"the job {found.public_id} has not ended and is trained behind"
                f" {found.on_prefix}; cancel the job first"
            )


def has_metadata(connection: Connection, name: str, value: str) -> ColumnElement[bool]:
    """Whether a job's metadata has this value under this name, whatever characters it has."""
    column = training_jobs.c.metadata
    if connection.dialect.name == "postgresql":
        return column[name].as_string() == value
    # a path of SQLite cannot name a key with a quote, a backslash or a character beyond ASCII
    pairs = func.json_each(column).table_valued("key", "value")
    return exists().where(pairs.c.key == name, pairs.c.value == value)


def to_file(row: Row[Any]) -> TrainingFile:
    """A row of `training_files`."""
    return TrainingFile(
        id=row.public_id,
        filename=row.filename,
        purpose=row.purpose,
        nbytes=row.nbytes,
        examples=row.examples,
        pairs=row.pairs,
        sha256=row.sha256,
        created_at=row.created_at,
        expires_at=row.expires_at,
        user=row.user,
    )


def to_spec(row: Row[Any]) -> JobSpec:
    """What the job of a row of `training_jobs` is to train."""
    return JobSpec(
        base_model=row.base_model,
        base_fingerprint=row.base_fingerprint,
        method=row.method,
        suffix=row.suffix,
        training_file=row.training_file,
        validation_file=row.validation_file,
        hyperparameters=row.hyperparameters,
        asked=row.asked,
        seed=row.seed,
        on=row.on_prefix,
        alias=row.alias,
        user=row.user,
        metadata=row.metadata,
    )


def to_job(row: Row[Any]) -> Job:
    """A row of `training_jobs`."""
    return Job(
        id=row.public_id,
        tenant=row.tenant_id,
        spec=to_spec(row),
        status=JobStatus(row.status),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        estimated_finish=row.estimated_finish,
        step=row.step,
        total_steps=row.total_steps,
        trained_tokens=row.trained_tokens,
        fine_tuned_model=row.fine_tuned_model,
        result=row.result,
        result_files=tuple(row.result_files or ()),
        error=None if row.error is None else JobFailure(**row.error),
    )
