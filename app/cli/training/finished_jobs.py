"""Which jobs of a file have ended, so that an interrupted command does not repeat them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.training.jobs_file import PlannedJob

if TYPE_CHECKING:
    from app.training.session import Session


class FinishedJobs:
    """A file with one line for each job whose prefix is written: a digest of all that made it."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        """Read the file, if there is one; `fresh` forgets it."""
        self._path = path
        if fresh:
            self.remove()
        known = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        self._digests = set(known)

    def has(self, job: PlannedJob, session: Session) -> bool:
        """Whether the job has ended, with the same options, data and base model."""
        return _digest(job, session) in self._digests

    def add(self, job: PlannedJob, session: Session) -> None:
        """Note that the job's prefix is written."""
        digest = _digest(job, session)
        self._digests.add(digest)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(digest + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget all jobs."""
        self._path.unlink(missing_ok=True)
        self._digests = set()


def _digest(job: PlannedJob, session: Session) -> str:
    options = {name: str(value) for name, value in sorted(job.options.items())}
    made = {**options, "run": session.trainer.identity}
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()
