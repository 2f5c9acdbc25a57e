"""Jobs whose training file is one text: the worker makes a prefix of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from app.jobs.checking import check_file
from app.jobs.types import TEXT, JobSpec, JobStatus
from app.model.frozen import FrozenModel
from app.training.distillation.exchanges import ExchangeMaker
from tests.worker.conftest import SMALL, SMALL_DISTILLATION, SPEECH, TENANT, Workshop, until

SETTINGS = SMALL_DISTILLATION


def distill(
    workshop: Workshop,
    text: str = SPEECH,
    settings: Mapping[str, Any] = SETTINGS,
    **more: Any,
) -> str:
    """The id of a new job that distils a text."""
    with workshop.files.stage() as staged:
        staged.write(text.encode())
        file = workshop.files.add(TENANT, staged.path, check_file(staged.path, "a.txt", TEXT))
    spec = JobSpec(
        base_model=workshop.model.spec.model_id,
        base_fingerprint=workshop.model.spec.fingerprint,
        method="distill",
        suffix="speech",
        training_file=file.id,
        hyperparameters=settings,
        **more,
    )
    return workshop.jobs.create(TENANT, spec).id


def test_a_text_becomes_a_version_beside_other_jobs(workshop: Workshop) -> None:
    job, other = workshop.run(distill(workshop), workshop.create("fox", SMALL))
    assert (job.status, other.status) == (JobStatus.SUCCEEDED, JobStatus.SUCCEEDED)
    prefix = workshop.prefix(job)
    assert prefix.length == 6
    assert prefix.metadata.input_template == "{input}"
    assert job.result is not None
    assert job.result["divergence"].keys() == {"first", "last", "base"}
    assert job.step == 8
    said = str(prefix.metadata.provenance) + str(job.result)
    assert "sha256" in said
    assert "jumps" not in said


def test_what_the_teacher_reads_counts_as_trained_tokens(workshop: Workshop) -> None:
    counts = []
    for steps in (1, 2):
        settings = {**SETTINGS, "max_steps": steps, "batch_size": 1}
        (job,) = workshop.run(distill(workshop, settings=settings))
        counts.append(job.trained_tokens)
    step = counts[1] - counts[0]
    assert counts[0] > 3 * step  # the exchanges, of which a step takes one


def test_a_job_that_was_given_back_goes_on_with_the_same_exchanges(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {**SETTINGS, "max_steps": 60}
    whole = workshop.prefix(workshop.run(distill(workshop, settings=many))[0])
    job_id = distill(workshop, settings=many)
    with workshop.working(workshop.worker("first")):
        until(lambda: workshop.job(job_id).step >= 2)
    assert workshop.job(job_id).status is JobStatus.QUEUED
    monkeypatch.setattr(ExchangeMaker, "all_of", lambda *_: pytest.fail("made again"))
    (job,) = workshop.run(job_id)
    made = workshop.prefix(job)
    assert torch.equal(made.decoder.keys, whole.decoder.keys)
    assert torch.equal(made.decoder.values, whole.decoder.values)


def test_a_worker_in_bfloat16_distils_and_goes_on_with_what_one_in_float32_has_begun(
    workshop: Workshop, bfloat16_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {**SETTINGS, "max_steps": 60}
    single, half = (
        workshop.run(distill(workshop, settings=many), model=model)[0].result or {}
        for model in (workshop.model, bfloat16_gpt2)
    )
    job_id = distill(workshop, settings=many)
    workshop.begin(job_id)
    monkeypatch.setattr(ExchangeMaker, "all_of", lambda *_: pytest.fail("made again"))
    (moved,) = workshop.run(job_id, model=bfloat16_gpt2)
    assert moved.result is not None
    assert [each["recipe"]["dtype"] for each in (half, moved.result)] == ["bf16", "bf16"]
    assert half["divergence"]["last"] < half["divergence"]["first"]
    # the exchanges are those of float32
    expected = pytest.approx(single["divergence"]["last"], rel=0.05)
    assert moved.result["divergence"]["last"] == expected


def test_a_job_whose_checkpoint_is_damaged_distils_its_text_again(
    workshop: Workshop, tmp_path: Path
) -> None:
    job_id = distill(workshop, settings={**SETTINGS, "max_steps": 60})
    with workshop.working(workshop.worker("first")):
        until(lambda: workshop.job(job_id).step >= 2)
    claims = workshop.resources[0].claims
    (claimed,) = claims.claim("between", workshop.model.spec.fingerprint, 1)
    path = tmp_path / "checkpoint"
    path.write_bytes(b"nothing")
    claims.save_checkpoint(claimed, path, workshop.job(job_id).step, {})
    claims.release(claimed)
    (job,) = workshop.run(job_id)
    assert (job.status, job.step) == (JobStatus.SUCCEEDED, 60)
    told = [event.message for event in workshop.events(job_id) if event.level == "warn"]
    assert any("The training starts again." in message for message in told)


def test_a_cancelled_job_ends_while_its_text_is_prepared(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = distill(workshop)
    made = ExchangeMaker.all_of

    def cancelled_meanwhile(maker: ExchangeMaker, parts: Any, report: Any) -> Any:
        workshop.jobs.cancel(TENANT, job_id)
        until(lambda: _raises(report))
        report(0, 1)
        return made(maker, parts, report)

    monkeypatch.setattr(ExchangeMaker, "all_of", cancelled_meanwhile)
    worker = workshop.worker("one")
    with workshop.working(worker):
        until(lambda: workshop.job(job_id).status is JobStatus.CANCELLED)
        until(lambda: not list((workshop.folder / "one").iterdir()))
        assert worker.running == 0


def _raises(report: Any) -> bool:
    try:
        report(0, 1)
    except Exception:
        return True
    return False


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("Short.", SETTINGS, "a.txt has 6 tokens"),
        (SPEECH, {**SETTINGS, "hidden": 8}, "'hidden' is none"),
        (SPEECH, {**SETTINGS, "length": 600}, "at most 512"),
        (SPEECH, {**SETTINGS, "start": "end"}, "choose one of first, spread"),
    ],
)
def test_a_text_or_setting_that_does_not_fit_fails_the_job(
    text: str, settings: dict[str, Any], message: str, workshop: Workshop
) -> None:
    (job,) = workshop.run(distill(workshop, text, settings))
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert message in job.error.message
    assert str(workshop.folder) not in job.error.message
