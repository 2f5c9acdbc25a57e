"""What training files and jobs are: plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.errors import PolyprefixError

TRAINING_DATA = "fine-tune"
"""The purpose of a file of examples."""
TEXT = "user_data"
"""The purpose of a file that is one text, which the method `distill` makes a prefix of."""
RESULT = "fine-tune-results"
"""The purpose of a file that a job has left; none is uploaded."""


class JobStatus(StrEnum):
    """Where a job stands. The data is checked before a job is made, so it begins as QUEUED."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED)
"""The statuses of jobs that may still change."""


class Order(StrEnum):
    """What a worker is to do with a job that it has.

    PAUSE: save a checkpoint, then release the job. CANCEL and LOST: forget it, and save nothing.
    """

    GO_ON = "go_on"
    PAUSE = "pause"
    CANCEL = "cancel"
    LOST = "lost"


class ClaimLost(PolyprefixError):
    """The caller's lease of a job has ended: the job was cancelled, or another worker may have it.

    Nothing has changed.
    """

    status, code = 409, "claim_lost"


@dataclass(frozen=True, kw_only=True)
class TrainingFile:
    """An uploaded file of a tenant, checked. `id` is `file-…`.

    `pairs` counts the targets of all `examples`; both are 0 for a file without examples. `sha256`
    is that of the bytes, in hex. Times are in seconds since 1970.
    """

    id: str
    filename: str
    purpose: str
    nbytes: int
    examples: int
    pairs: int
    sha256: str
    created_at: int
    expires_at: int | None = None
    user: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What is to be trained; it never changes.

    `base_model` is the served model's id and `base_fingerprint` what a prefix file names it by.
    `method` and the names of `hyperparameters` are those of `training.recipe.Recipe`; a method
    `distill` has settings of its own. `suffix` is the name of the prefix that the result becomes a
    version of, and `alias` another alias than `latest` that is to move to it. `on` is the version
    (`name@digest`) behind which the prefix is trained. The files are named by their ids. `asked`
    has the settings in the words of the request, for those who look at the job.
    """

    base_model: str
    base_fingerprint: str
    method: str
    suffix: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    asked: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seed: int = 101
    on: str | None = None
    alias: str | None = None
    user: str | None = None
    metadata: Mapping[str, str] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why a job has failed; `param` names what has to be changed, if it is known."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a tenant as it is now. `id` is `ftjob-…`; times are in seconds since 1970.

    Once the job has succeeded, `result` has what the worker found out, scores for example, and
    `result_files` the ids of the files that it has left. `fine_tuned_model` is None for a method
    that gives no prefix.
    """

    id: str
    tenant: str
    spec: JobSpec
    status: JobStatus
    created_at: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None
    step: int
    total_steps: int
    trained_tokens: int
    fine_tuned_model: str | None
    result: Mapping[str, Any] | None = field(hash=False)
    result_files: tuple[str, ...]
    error: JobFailure | None


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job that a worker has the right to work on.

    `attempt` counts from 1 how often the job was claimed, and `losses` the workers that were lost
    with it since its last checkpoint. `token` is the lease's: no two are equal.
    """

    id: str
    tenant: str
    spec: JobSpec
    attempt: int
    token: str = field(repr=False)
    losses: int = 0


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job. `level`: info, warn or error; `type`: message or metrics.

    `sequence` and `created_at` are the catalog's to set.
    """

    message: str
    level: str = "info"
    type: str = "message"
    data: Mapping[str, Any] | None = field(default=None, hash=False)
    sequence: int = 0
    created_at: int = 0


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a job is. `trained_tokens` counts from its first attempt on, as far as its last
    checkpoint knows; `seconds_left` is None where nobody can tell."""

    step: int
    total_steps: int
    trained_tokens: int
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobCheckpoint:
    """A state that a job has saved after `step` steps, with its metrics then."""

    step: int
    created_at: int
    metrics: Mapping[str, Any] = field(hash=False)
