"""Training files, jobs and claims over one catalog and one store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from app.jobs.claims import JobClaims
from app.jobs.erasure import UserErasure
from app.jobs.files import TrainingFiles
from app.jobs.jobs import TrainingJobs
from app.registry.registry import Registry


@dataclass(frozen=True)
class TrainingServices:
    """What a server does with training: it keeps files and jobs, and looks after claims."""

    files: TrainingFiles
    jobs: TrainingJobs
    claims: JobClaims
    erasure: UserErasure

    @classmethod
    def over(cls, registry: Registry) -> Self:
        """The services over the registry's catalog and store."""
        catalog, objects = registry.catalog, registry.objects
        return cls(
            TrainingFiles(catalog, objects),
            TrainingJobs(catalog),
            JobClaims(catalog, objects),
            UserErasure(catalog, objects),
        )

    def keep_house(self) -> None:
        """Queues the jobs of lost workers again, forgets files whose time is over, and ends
        removals that were cut short."""
        self.claims.expire()
        self.files.forget_expired()
        self.erasure.finish_removals()
