"""What one job may take of a worker, and what the others get meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.request import GenerationRequest
from app.jobs.checking import check_file
from app.jobs.types import TRAINING_DATA, JobSpec, JobStatus
from app.tenancy.tenants import Tenants
from app.training.groups.limits import RunLimits
from app.training.methods import tuned
from app.training.session import Session
from tests.worker.conftest import LONG, SMALL, TENANT, Workshop, examples, until


def test_a_sample_of_the_held_out_inputs_is_answered_by_one_engine(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: set[int] = set()
    asked: list[GenerationRequest] = []
    submit = Engine.submit

    def counted(engine: Engine, request: GenerationRequest) -> Any:
        engines.add(id(engine))
        asked.append(request)
        return submit(engine, request)

    monkeypatch.setattr(Engine, "submit", counted)
    monkeypatch.setattr(tuned, "running_engine", lambda *_: pytest.fail("another engine"))
    settings = {**SMALL, "metric": "bleu", "validate_every": 6}
    job_id = workshop.create("fox", settings, valid=examples(10, start=9))
    limits = RunLimits(validation_answers=3, scored_inputs=4)
    (job,) = workshop.run(job_id, limits=limits)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.result is not None
    assert (job.result["scored_inputs"], job.result["validation_inputs"]) == (4, 10)
    assert len(engines) == 1
    assert len(asked) == 2 * 3 + 2 * 4  # two validations; the base model's scores and the prefix's


def test_a_job_that_asks_for_too_much_of_its_file_fails_alone(workshop: Workshop) -> None:
    greedy = workshop.create("greedy", {**SMALL, "batch_size": 8})
    modest = workshop.create("modest", {**SMALL, "batch_size": 1})
    failed, made = workshop.run(greedy, modest, limits=RunLimits(step_pairs=4))
    assert failed.error is not None
    assert failed.error.code == "invalid_value"
    assert "batch_size: a step of a job takes at most 4 pairs" in failed.error.message
    assert made.status is JobStatus.SUCCEEDED


def test_another_job_is_cancelled_while_one_is_scored(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = workshop.create("scored", {**SMALL, "max_steps": 3}, valid=examples(3, start=9))
    other = workshop.create("other", LONG)
    paused = workshop.create("paused", LONG)
    worker = workshop.worker()
    score = Session.score

    def long_score(session: Session, runner: Any) -> Any:
        assert worker.running == 3
        workshop.jobs.cancel(TENANT, other)
        workshop.jobs.pause(TENANT, paused)

        def are_gone() -> bool:
            runner.between()
            return worker.running == 1

        until(are_gone)
        return score(session, runner)

    monkeypatch.setattr(Session, "score", long_score)
    with workshop.working(worker):
        assert workshop.ended(scored).status is JobStatus.SUCCEEDED
    assert workshop.job(other).status is JobStatus.CANCELLED
    assert workshop.job(paused).status is JobStatus.PAUSED
    assert workshop.jobs.checkpoints(TENANT, paused).items


def test_a_tenants_endless_job_gives_way_to_another_tenants_and_goes_on_afterwards(
    workshop: Workshop,
) -> None:
    endless = workshop.create("endless", LONG)
    worker = workshop.worker(train_jobs=1, turn=0.5)
    with workshop.working(worker):
        until(lambda: workshop.job(endless).step > 2)
        Tenants(workshop.registry.catalog).create("beta")
        short = short_job(workshop, "beta")
        until(lambda: workshop.jobs.get("beta", short).status is JobStatus.SUCCEEDED)
        told = [event.message for event in workshop.events(endless)]
        before = workshop.jobs.checkpoints(TENANT, endless).items[0].step
        until(lambda: workshop.job(endless).step > before)
        assert before > 2
    assert any("other tenants' jobs have their turn" in message for message in told)
    assert not any("is lost" in event.message for event in workshop.events(endless))


def test_a_job_keeps_its_place_within_its_turn_and_before_its_own_tenants_jobs(
    workshop: Workshop,
) -> None:
    first = workshop.create("first", LONG)
    workshop.create("second", SMALL)
    worker = workshop.worker(train_jobs=1, turn=0.2)
    with workshop.working(worker):
        until(lambda: workshop.job(first).step > 300)
        assert workshop.job(first).status is JobStatus.RUNNING
    Tenants(workshop.registry.catalog).create("beta")
    short_job(workshop, "beta")
    with workshop.working(workshop.worker("other", train_jobs=1, turn=300.0)):
        until(lambda: workshop.jobs.list("beta").items[0].status is JobStatus.SUCCEEDED)
        until(lambda: workshop.job(first).status is JobStatus.RUNNING)
    said = [event.message for event in workshop.events(first)]
    assert not any("have their turn" in message for message in said)


def short_job(workshop: Workshop, tenant: str) -> str:
    """The id of a new job of another tenant that takes a second."""
    with workshop.files.stage() as staged:
        staged.write(b'{"input": "name : fox", "target": "the fox is brown"}\n' * 4)
        checked = check_file(staged.path, "data.jsonl", TRAINING_DATA)
        file = workshop.files.add(tenant, staged.path, checked)
    spec = JobSpec(
        base_model=workshop.model.spec.model_id,
        base_fingerprint=workshop.model.spec.fingerprint,
        method="prefix",
        suffix="fox",
        training_file=file.id,
        hyperparameters=SMALL,
    )
    return workshop.jobs.create(tenant, spec).id


def test_a_job_that_may_have_killed_its_worker_is_joined_only_after_a_checkpoint(
    workshop: Workshop,
) -> None:
    suspect = workshop.create("suspect", LONG)
    other = workshop.create("other", LONG)
    lease = workshop.claims_of(lease_s=0.0)
    [lost] = lease.claim("lost", workshop.model.spec.fingerprint, 1)
    assert lost.id == suspect
    until(lambda: lease.expire() == 1)
    worker = workshop.worker(checkpoint_every=1.0)
    with workshop.working(worker):
        until(lambda: workshop.job(suspect).step > 2)
        assert workshop.job(other).status is JobStatus.QUEUED
        until(lambda: workshop.job(other).status is JobStatus.RUNNING)
        assert workshop.jobs.checkpoints(TENANT, suspect).items
