"""What is no fault of a job's costs no job: a store that fails, a full disk, a broken worker."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from app.errors import InsufficientStorage, Unavailable
from app.jobs.claims import JobClaims
from app.jobs.types import JobStatus
from app.jobs.workers import MAX_LOSSES
from app.training.trainer import Trainer
from app.worker.running_job import RunningJob
from tests.worker.conftest import LONG, TENANT, Workshop, until


def failing(
    patch: pytest.MonkeyPatch, owner: object, name: str, error: Exception, times: int
) -> list[int]:
    """Lets the first calls of a method fail; how many there were is the length of the list."""
    method, calls = getattr(owner, name), []

    def call(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return method(*given, **named)

    patch.setattr(owner, name, call)
    return calls


def warnings(workshop: Workshop, job_id: str) -> list[str]:
    return [event.message for event in workshop.events(job_id) if event.level != "info"]


def given_back(workshop: Workshop, job_id: str) -> list[str]:
    return [text for text in warnings(workshop, job_id) if "gave the job back" in text]


def break_disk(workshop: Workshop, worker: str) -> None:
    """There is a file in the place of the worker's folder."""
    folder = workshop.folder / worker
    folder.rmdir()
    folder.write_bytes(b"")


def test_a_store_that_fails_for_long_fails_no_job(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = workshop.create()
    error = Unavailable("the store does not answer")
    calls = failing(monkeypatch, workshop.registry.objects, "open", error, MAX_LOSSES + 1)
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert len(calls) > MAX_LOSSES + 1
    assert not any("lost" in event.message for event in workshop.events(job_id))


def test_a_lease_is_kept_until_the_catalog_takes_the_job_back(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = workshop.create()
    error = Unavailable("the disk or the database is busy")
    failing(monkeypatch, workshop.registry.objects, "open", error, 1)
    calls = failing(monkeypatch, JobClaims, "release", error, 3)
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert len(calls) == 4
    assert not any("lost" in event.message for event in workshop.events(job_id))


def test_a_job_moves_away_from_a_worker_with_a_broken_disk(workshop: Workshop) -> None:
    broken = workshop.worker("broken", first_back_off_s=60)
    break_disk(workshop, "broken")
    job_id = workshop.create()
    with workshop.working(broken) as thread:
        until(lambda: given_back(workshop, job_id))
        (job,) = workshop.run(job_id)
        assert thread.is_alive()
    assert job.status is JobStatus.SUCCEEDED
    (told,) = given_back(workshop, job_id)
    assert "making the job's folder failed" in told
    assert str(workshop.folder) not in told


def test_a_job_that_no_worker_can_hold_fails_in_the_end_and_says_why(workshop: Workshop) -> None:
    broken = workshop.worker("broken")
    break_disk(workshop, "broken")
    job_id = workshop.create()
    with workshop.working(broken):
        job = workshop.ended(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert "making the job's folder failed" in job.error.message
    told = [text for text in warnings(workshop, job_id) if "folder failed" in text]
    assert len(told) == MAX_LOSSES


def test_a_disk_that_is_full_when_files_are_fetched_moves_the_job(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = workshop.create()
    failing(monkeypatch, JobClaims, "read_file", InsufficientStorage("no space"), MAX_LOSSES - 1)
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (Trainer, "save", OSError(errno.ENOSPC, "full")),
        (JobClaims, "save_checkpoint", InsufficientStorage("the store is full")),
        (JobClaims, "save_checkpoint", Unavailable("the store does not answer")),
    ],
)
def test_a_trained_job_ends_although_no_checkpoint_can_be_saved(
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    error: Exception,
) -> None:
    calls = failing(monkeypatch, owner, name, error, 1000)
    job_id = workshop.create()
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert calls


def test_a_disk_that_is_full_when_a_prefix_is_published_moves_the_job(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = workshop.create()
    failing(monkeypatch, workshop.registry, "stage", InsufficientStorage("no space"), 1)
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert [text for text in warnings(workshop, job_id) if "gave the job back: no space" in text]


def test_a_trained_job_that_no_worker_can_publish_fails_in_the_end(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = workshop.create()
    error = InsufficientStorage("no space")
    calls = failing(monkeypatch, workshop.registry, "stage", error, 1000)
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.FAILED
    assert (job.error.code if job.error else None) == "insufficient_storage"
    assert len(calls) == MAX_LOSSES


def test_a_worker_that_ends_by_an_error_gives_its_jobs_back(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (workshop.create(name, LONG) for name in ("first", "second"))
    note, steps = RunningJob.note, []

    def broken(self: RunningJob, done: Any) -> None:
        steps.append(done.step)
        if done.step == 3:
            raise RuntimeError("a bug")
        note(self, done)

    monkeypatch.setattr(RunningJob, "note", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        workshop.worker().run()
    for job_id in (first, second):
        assert workshop.job(job_id).status is JobStatus.QUEUED
        assert [each.step for each in workshop.jobs.checkpoints(TENANT, job_id).items] == [3]
