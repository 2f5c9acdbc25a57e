"""What one job may take of a worker, and what the others get meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.request import GenerationRequest
from app.jobs.types import JobStatus
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
