"""Files that a job leaves: its metrics step by step, and what it has trained if that is no prefix.

They are files of the tenant like those that it uploads, and expire after `KEPT_S`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from app.db.database import Database
from app.db.errors import storage_faults
from app.db.schema import job_events, training_files
from app.jobs import contents
from app.jobs.contents import NewContent
from app.jobs.ids import new_id
from app.jobs.types import RESULT, ClaimedJob
from app.registry.storage import contents as notes
from app.registry.storage.store import ObjectStore

KEPT_S = 30 * 24 * 3600
"""Seconds for which a result is kept."""


@dataclass(frozen=True)
class StoredResult:
    """A file whose content is stored and that no row names yet."""

    filename: str
    sha256: str
    content: NewContent


def store(
    catalog: Database, objects: ObjectStore, job: ClaimedJob, path: Path, now: float
) -> StoredResult:
    """Puts a copy of a local file into the store; it is called as the local file is."""
    with storage_faults("reading the file"), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    content = contents.store_copy(catalog, objects, job.tenant, path, now)
    return StoredResult(path.name, digest, content)


def add(
    connection: Connection, job: ClaimedJob, results: Sequence[StoredResult], now: float
) -> list[str]:
    """Makes stored results files of the job's tenant and user; their ids.

    In a transaction that takes its turn. Unavailable if a content was removed meanwhile.
    """
    ids = []
    for result in results:
        notes.check_present(connection, result.content.noted)
        file_id = new_id("file")
        row = {
            "public_id": file_id,
            "tenant_id": job.tenant,
            "user": job.spec.user,
            "filename": result.filename,
            "purpose": RESULT,
            "nbytes": result.content.nbytes,
            "examples": 0,
            "pairs": 0,
            "sha256": result.sha256,
            "owner": result.content.noted.owner,
            "digest": result.content.noted.digest,
            "created_at": int(now),
            "expires_at": int(now) + KEPT_S,
        }
        connection.execute(insert(training_files).values(row))
        ids.append(file_id)
    return ids


def metrics(connection: Connection, job: int) -> list[dict[str, Any]]:
    """What the job's events tell of its steps, by step; of a step that was repeated, the last."""
    query = select(job_events.c.data).where(
        job_events.c.job_id == job, job_events.c.type == "metrics"
    )
    rows = connection.scalars(query.order_by(job_events.c.sequence))
    found = {data["step"]: data for data in rows}
    return [found[step] for step in sorted(found)]
