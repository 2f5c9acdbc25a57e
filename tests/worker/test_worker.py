"""Jobs from the queue to their ends."""

from __future__ import annotations

import asyncio
import csv
import errno
import re
from pathlib import Path

import pytest
import torch

from app.datasets.example import Example
from app.errors import Unavailable
from app.evaluation.evaluator import EngineRunner, Evaluator
from app.evaluation.gate_score import gate_examples, score_examples
from app.jobs.claims import JobClaims
from app.jobs.types import JobStatus
from app.model.frozen import FrozenModel
from app.prefix.codec import decode
from app.prefix.composition import compose
from app.prefix.prefix import Prefix
from app.registry.quality_gates import QualityGate
from app.tenancy.tenants import Tenants
from app.training.checkpoint import load_checkpoint, save_checkpoint
from app.training.choices import CHOICES_FILE, Choice, Choices
from app.training.methods.files import read_trained
from app.training.methods.tuned import tuned_model
from app.training.trainer import Trainer
from app.worker import running_job
from app.worker.running_job import RunningJob
from tests.worker.conftest import LONG, SMALL, TENANT, Workshop, examples, until


def test_a_job_becomes_a_version_with_scores_and_events(workshop: Workshop) -> None:
    job_id = workshop.create(lines=examples(8), valid=examples(3, start=8), user="alice")
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert (job.step, job.total_steps) == (12, 12)
    assert job.trained_tokens > 0
    name, _, digest = (job.fine_tuned_model or "").partition("@")
    version = workshop.registry.get_version(TENANT, name, digest)
    assert (name, version.length) == ("fox", 4)
    assert version.base_fingerprint == workshop.model.spec.fingerprint
    assert job.result is not None
    assert job.result["steps"] == 12
    assert 0 <= job.result["bleu"] <= 100
    assert job.result["loss"]["last"] < job.result["loss"]["first"]
    assert version.provenance["scores"]["loss"] == job.result["loss"]
    events = workshop.events(job_id)
    last = [event for event in events if event.type == "metrics"][-1]
    assert last.data is not None
    assert last.data["step"] == 12
    assert last.data["valid_loss"] > 0
    assert any("only 8 pairs" in event.message for event in events)
    until(lambda: not list((workshop.folder / "worker-0").iterdir()))


def test_checkpoints_take_a_small_part_of_a_workers_time(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved = [0.0], []

    def slow(*_: object) -> None:
        saved.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(JobClaims, "save_checkpoint", slow)
    workshop.create(hyperparameters=LONG)
    workshop.worker(checkpoint_every=20.0)
    (resources,) = workshop.resources
    (job,) = resources.claims.claim("one", workshop.model.spec.fingerprint, 1)
    run = RunningJob(job, resources, clock=lambda: now[0])
    for jobs, until_s in ((1, 200.0), (4, 1000.0)):
        while now[0] < until_s:
            now[0] += 10.0
            run.trainer.take_step()
            run.save(if_due=True, jobs=jobs)
    assert saved == [20.0, 83.0, 146.0, 209.0, 452.0, 695.0, 938.0]  # 60 s apart, then 240 s


def test_a_job_leaves_its_metrics_as_a_file_of_its_user_that_expires(workshop: Workshop) -> None:
    job_id = workshop.create(lines=examples(8), valid=examples(3, start=8), user="alice")
    (job,) = workshop.run(job_id)
    (file_id,) = job.result_files
    file = workshop.files.get(TENANT, file_id)
    assert (file.filename, file.purpose) == ("step_metrics.csv", "fine-tune-results")
    assert file.user == "alice"
    assert file.expires_at == file.created_at + 30 * 24 * 3600
    with workshop.files.open(TENANT, file_id) as content:
        rows = list(csv.DictReader(content.read().decode().splitlines()))
    told = [event.data for event in workshop.events(job_id) if event.type == "metrics"]
    assert [row["step"] for row in rows] == [str(data["step"]) for data in told if data]
    assert float(rows[-1]["valid_loss"]) > 0


def test_a_full_disk_costs_a_job_its_metrics_and_not_its_prefix(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(running_job, "write_metrics", full)
    job_id = workshop.create()
    (job,) = workshop.run(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert (job.fine_tuned_model or "").startswith("fox@")
    assert job.result_files == ()
    told = [event for event in workshop.events(job_id) if event.level == "warn"]
    assert any("writing the metrics failed: ENOSPC" in event.message for event in told)


def test_an_infix_job_leaves_a_file_that_answers_and_no_version(
    workshop: Workshop, tmp_path: Path
) -> None:
    settings = {"length": 3, "max_steps": 4, "lr": 0.003}
    infix = workshop.create("fox", settings, valid=examples(3, start=9), method="infix")
    beside = workshop.create("dog")
    job, other = workshop.run(infix, beside)
    assert (job.status, job.fine_tuned_model) == (JobStatus.SUCCEEDED, None)
    assert (other.fine_tuned_model or "").startswith("dog@")
    assert job.result is not None
    assert 0 <= job.result["bleu"] <= 100
    names = {workshop.files.get(TENANT, each).filename: each for each in job.result_files}
    assert list(names) == ["fox.safetensors", "step_metrics.csv"]
    path = tmp_path / "fox.safetensors"
    with workshop.files.open(TENANT, names["fox.safetensors"]) as content:
        path.write_bytes(content.read())
    trained = read_trained(path)
    assert (trained.method, trained.provenance["steps"]) == ("infix", 4)
    told = tuned_model(workshop.model, trained, path).evaluate([Example("a", ("b",), 1)])
    assert len(told.texts) == 1
    assert workshop.registry.list_prefixes(TENANT, None, 10).items != ()
    assert any("fox.safetensors" in event.message for event in workshop.events(infix))


def test_jobs_that_are_trained_together_make_what_each_makes_alone(workshop: Workshop) -> None:
    first = workshop.create("fox", SMALL, valid=examples(2, start=9), seed=1)
    second = workshop.create("dog", {**SMALL, "length": 2, "max_steps": 7}, seed=2)
    together = workshop.run(first, second)
    alone = [
        *workshop.run(workshop.create("fox-alone", SMALL, valid=examples(2, start=9), seed=1)),
        *workshop.run(workshop.create("dog-alone", {**SMALL, "length": 2, "max_steps": 7}, seed=2)),
    ]
    for one, other in zip(together, alone, strict=True):
        made, expected = workshop.prefix(one), workshop.prefix(other)
        torch.testing.assert_close(made.decoder.keys, expected.decoder.keys, rtol=0, atol=1e-3)
        torch.testing.assert_close(made.decoder.values, expected.decoder.values, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ({"hyperparameters": {"depth": 7}}, "invalid_value", "depth must be between"),
        ({"hyperparameters": {"initial_prefix": "/etc/passwd"}}, "invalid_value", "is none"),
        ({"hyperparameters": {"length": 600}}, "invalid_value", "at most 512"),
        ({"method": "lora"}, "invalid_value", "changes the base model"),
        (
            {"lines": [*examples(2), {"input": "long " * 200, "target": "x"}]},
            "invalid_value",
            "data.jsonl:3: input and target take",
        ),
    ],
)
def test_a_job_that_cannot_be_trained_fails_and_says_why_while_others_go_on(
    workshop: Workshop, more: dict[str, object], code: str, message: str
) -> None:
    bad = workshop.create("bad", **more)  # type: ignore[arg-type]
    good = workshop.create("good")
    failed, made = workshop.run(bad, good)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == code
    assert message in failed.error.message
    assert str(workshop.folder) not in failed.error.message
    assert made.status is JobStatus.SUCCEEDED


def test_an_error_of_a_file_has_the_name_of_its_upload_and_of_its_field(
    workshop: Workshop,
) -> None:
    long = [*examples(2), {"input": "long " * 200, "target": "x"}]
    failed = workshop.run(workshop.create("one", lines=long), workshop.create("two", valid=long))
    told = [(job.error.message.split(":")[0], job.error.param) for job in failed if job.error]
    assert told == [
        ("data.jsonl", "training_file"),
        ("data.jsonl (validation_file)", "validation_file"),
    ]


def test_a_loss_that_is_not_finite_fails_its_job_alone(workshop: Workshop) -> None:
    bad = workshop.create("bad", {**SMALL, "lr": 1e30})
    good = workshop.create("good")
    failed, made = workshop.run(bad, good)
    assert failed.error is not None
    assert "lower learning rate" in failed.error.message
    assert made.status is JobStatus.SUCCEEDED


def test_an_error_of_the_program_fails_its_job_alone_and_tells_nothing_of_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise = Trainer.initialise

    def broken(self: Trainer) -> float | None:
        if self.recipe.seed == 13:
            raise RuntimeError("secret")
        return initialise(self)

    monkeypatch.setattr(Trainer, "initialise", broken)
    failed, made = workshop.run(workshop.create("bad", seed=13), workshop.create("good"))
    assert failed.error is not None
    assert (failed.error.code, "secret" in failed.error.message) == ("internal_error", False)
    assert made.status is JobStatus.SUCCEEDED


def test_cancel_ends_a_job_within_a_step_and_nothing_is_published(workshop: Workshop) -> None:
    job_id = workshop.create(hyperparameters=LONG)
    worker = workshop.worker()
    with workshop.working(worker):
        until(lambda: workshop.job(job_id).step > 2)
        workshop.jobs.cancel(TENANT, job_id)
        until(lambda: not worker.running)
    assert workshop.job(job_id).status is JobStatus.CANCELLED
    assert workshop.registry.list_prefixes(TENANT, None, 10).items == ()


def test_a_paused_job_goes_on_where_it_was_and_makes_the_same(workshop: Workshop) -> None:
    settings = {**SMALL, "max_steps": 60}
    job_id = workshop.create("paused", settings)
    with workshop.working(workshop.worker()):
        until(lambda: workshop.job(job_id).step > 2)
        workshop.jobs.pause(TENANT, job_id)
        until(lambda: workshop.jobs.checkpoints(TENANT, job_id).items)
        before = workshop.job(job_id)
        assert before.status is JobStatus.PAUSED
        workshop.jobs.resume(TENANT, job_id)
        resumed = workshop.ended(job_id)
    (whole,) = workshop.run(workshop.create("whole", settings))
    assert resumed.status is JobStatus.SUCCEEDED
    assert workshop.prefix(resumed).digest == workshop.prefix(whole).digest
    assert resumed.trained_tokens == whole.trained_tokens


def test_a_stopped_worker_gives_its_jobs_back_and_another_one_ends_them_alike(
    workshop: Workshop,
) -> None:
    settings = {**SMALL, "max_steps": 60}
    job_id = workshop.create("moved", settings)
    first = workshop.worker("first")
    with workshop.working(first):
        until(lambda: workshop.job(job_id).step > 2)
        first.stop()
    assert workshop.job(job_id).status is JobStatus.QUEUED
    moved, whole = workshop.run(job_id, workshop.create("whole", settings))
    assert workshop.prefix(moved).digest == workshop.prefix(whole).digest
    assert any("gave the job back" in event.message for event in workshop.events(job_id))


def chosen(folder: Path, model: FrozenModel, length: int, lr: float) -> Path:
    """A worker's data folder with a choice for the base model."""
    folder.mkdir()
    choice = Choice(model.spec.model_id, length, {"prefix": lr})
    Choices(folder / CHOICES_FILE).keep(model.spec.fingerprint, choice)
    return folder


def test_a_job_keeps_its_recipe_on_a_worker_with_other_choices(
    workshop: Workshop, tmp_path: Path
) -> None:
    open_settings = {"hidden": 16, "max_steps": 60, "batch_size": 4}
    job_id = workshop.create("moved", open_settings)
    first = workshop.worker("first", folder=chosen(tmp_path / "a", workshop.model, 3, 0.01))
    with workshop.working(first):
        until(lambda: workshop.job(job_id).step > 2)
    second = workshop.worker("second", folder=chosen(tmp_path / "b", workshop.model, 5, 0.03))
    with workshop.working(second):
        moved = workshop.ended(job_id)
    (whole,) = workshop.run(workshop.create("whole", {**open_settings, "length": 3, "lr": 0.01}))
    assert moved.result is not None
    assert (moved.result["recipe"]["length"], moved.result["recipe"]["lr"]) == (3, 0.01)
    assert workshop.prefix(moved).digest == workshop.prefix(whole).digest
    assert not any("starts again" in event.message for event in workshop.events(job_id))


@pytest.mark.parametrize("kind", ["damaged", "of another run", "of another version"])
def test_a_job_whose_checkpoint_cannot_be_used_starts_again_and_says_so(
    workshop: Workshop, tmp_path: Path, kind: str
) -> None:
    settings = {**SMALL, "max_steps": 60}
    job_id = workshop.create("again", settings)
    first = workshop.worker("first")
    with workshop.working(first):
        until(lambda: workshop.job(job_id).step > 2)
    claims = workshop.resources[0].claims
    (claimed,) = claims.claim("between", workshop.model.spec.fingerprint, 1)
    path = tmp_path / "checkpoint"
    assert claims.load_checkpoint(claimed, path)
    saved = load_checkpoint(path)
    state = {**saved.state, "identity": "another"}
    if kind == "of another version":
        state = {**saved.state, "recipe": {**saved.state["recipe"], "colour": "red"}}
    save_checkpoint(path, saved.tensors, state)
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    claims.save_checkpoint(claimed, path, workshop.job(job_id).step, {})
    claims.release(claimed)
    again, whole = workshop.run(job_id, workshop.create("whole", settings))
    assert again.status is JobStatus.SUCCEEDED
    assert workshop.prefix(again).digest == workshop.prefix(whole).digest
    told = [event.message for event in workshop.events(job_id) if event.level == "warn"]
    assert any("The training starts again." in message for message in told)


def test_two_workers_never_have_the_same_job(workshop: Workshop) -> None:
    ids = [workshop.create(f"fox-{n}", {**SMALL, "max_steps": 3}) for n in range(12)]
    with (
        workshop.working(workshop.worker("one", train_jobs=2)),
        workshop.working(workshop.worker("two", train_jobs=2)),
    ):
        ended = [workshop.ended(job_id) for job_id in ids]
    assert all(job.status is JobStatus.SUCCEEDED for job in ended)
    for job_id in ids:
        runs = [event for event in workshop.events(job_id) if "The job runs" in event.message]
        assert len(runs) == 1


def gate(least: float) -> QualityGate:
    return QualityGate(
        metric="mean_logprob",
        min_score=least,
        examples=[{"input": "name : fox 1", "output": ["the fox 1 is brown"]}],
    )


def test_an_alias_moves_only_through_its_gate(workshop: Workshop) -> None:
    (first,) = workshop.run(workshop.create("fox", alias="stable"))
    assert first.result is not None
    assert first.result["alias"] == {"name": "stable", "moved": True}
    aliases = workshop.registry.aliases
    digest = (first.fine_tuned_model or "").partition("@")[2]
    assert aliases.get(TENANT, "fox", "stable").digest == digest
    workshop.registry.gates.set(TENANT, "fox", "stable", gate(-0.01))
    job_id = workshop.create("fox", alias="stable", seed=7)
    (refused,) = workshop.run(job_id)
    assert refused.status is JobStatus.SUCCEEDED
    assert refused.result is not None
    assert refused.result["alias"] == {"name": "stable", "moved": False}
    assert aliases.get(TENANT, "fox", "stable").digest == digest
    assert any("has not moved" in event.message for event in workshop.events(job_id))
    workshop.registry.gates.set(TENANT, "fox", "stable", gate(-1e6))
    (passed,) = workshop.run(workshop.create("fox", alias="stable", seed=9))
    assert (passed.fine_tuned_model or "").endswith(aliases.get(TENANT, "fox", "stable").digest)


@pytest.mark.parametrize("code", ["quota_exceeded", "conflict"])
def test_a_prefix_that_is_refused_at_the_end_is_kept_as_a_file(
    workshop: Workshop, code: str, tmp_path: Path
) -> None:
    job_id = workshop.create("second", user="bob", hyperparameters={**SMALL, "max_steps": 3})
    if code == "conflict":
        workshop.jobs.pause(TENANT, job_id)
        workshop.run(workshop.create("second", user="ann"))
        workshop.jobs.resume(TENANT, job_id)
    else:
        Tenants(workshop.registry.catalog).change(TENANT, limits={"max_prefixes": 0})
    (failed,) = workshop.run(job_id)
    assert failed.error is not None
    assert failed.error.code == code
    (file_id,) = failed.result_files
    told = f"The job leaves second.safetensors as the file {file_id}."
    assert failed.error.message.endswith(told)
    assert workshop.events(job_id)[-1].message == failed.error.message
    file = workshop.files.get(TENANT, file_id)
    assert (file.purpose, file.user) == ("fine-tune-results", "bob")
    path = tmp_path / "kept.safetensors"
    with workshop.files.open(TENANT, file_id) as content:
        path.write_bytes(content.read())
    prefix = decode(path, workshop.model.spec, workshop.model.dtype, max_length=100)
    assert prefix.length == 4


def test_an_idle_worker_ends_if_it_is_told_to(workshop: Workshop) -> None:
    with workshop.working(workshop.worker("idle", idle_exit=0.2)) as thread:
        thread.join(10)
        assert not thread.is_alive()


def test_a_prefix_is_trained_behind_the_version_that_the_job_names(workshop: Workshop) -> None:
    (task,) = workshop.run(workshop.create("task"))
    (behind,) = workshop.run(
        workshop.create("alice", valid=examples(2, start=9), on=task.fine_tuned_model)
    )
    assert behind.status is JobStatus.SUCCEEDED
    prefix = workshop.prefix(behind)
    digest = (task.fine_tuned_model or "").partition("@")[2]
    assert prefix.metadata.provenance["on"]["digest"] == digest


def test_a_gate_scores_a_prefix_behind_the_version_that_it_was_trained_behind(
    workshop: Workshop,
) -> None:
    task, old = workshop.run(workshop.create("task", seed=3), workshop.create("alice"))
    assert old.status is JobStatus.SUCCEEDED
    workshop.registry.gates.set(TENANT, "alice", "stable", gate(-0.01))
    job_id = workshop.create("alice", alias="stable", on=task.fine_tuned_model)
    (behind,) = workshop.run(job_id)
    (told,) = [each.message for each in workshop.events(job_id) if "has not moved" in each.message]
    prefix = workshop.prefix(behind)
    engine = workshop.resources[-1].engine

    def score(whole: Prefix) -> str:
        evaluator = Evaluator(workshop.model, whole, EngineRunner(engine))
        scored = score_examples(
            evaluator,
            whole.metadata.input_template or "",
            gate_examples(gate(0).examples),
            "mean_logprob",
        )
        return f"{asyncio.run(scored):.4f}"

    found = re.search(r"scores (\S+) by mean_logprob", told)
    assert found is not None
    assert f"{float(found[1]):.4f}" == score(compose([workshop.prefix(task), prefix]))
    assert score(prefix) != score(compose([workshop.prefix(task), prefix]))


def test_what_the_catalog_refuses_at_the_end_is_tried_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = workshop.registry.add_version, []

    def busy_once(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise Unavailable("the catalog is busy")
        return add(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(workshop.registry, "add_version", busy_once)
    (job,) = workshop.run(workshop.create())
    assert job.status is JobStatus.SUCCEEDED
    assert len(calls) == 2
