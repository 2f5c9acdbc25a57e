"""Claims of workers: one worker at most, fair, within limits, lost with the worker alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from app.errors import NotFound, Unavailable
from app.jobs.erasure import UserErasure
from app.jobs.trained_tokens import used_today
from app.jobs.types import ClaimedJob, ClaimLost, Job, JobEvent, JobProgress, JobStatus, Order
from app.jobs.workers import MAX_LOSSES
from tests.jobs.conftest import FINGERPRINT, LINE, Workshop


def claim(workshop: Workshop, limit: int = 1, worker: str = "w1") -> list[ClaimedJob]:
    return workshop.claims.claim(worker, FINGERPRINT, limit)


def status(workshop: Workshop, job: Job) -> JobStatus:
    return workshop.jobs.get(job.tenant, job.id).status


def test_a_claim_takes_the_oldest_job_and_says_what_it_is(workshop: Workshop) -> None:
    first = workshop.job("acme", hyperparameters={"epochs": 2}, metadata={"a": "b"}, user="ann")
    workshop.job("acme")
    [claimed] = claim(workshop)
    assert (claimed.id, claimed.tenant, claimed.attempt) == (first.id, "acme", 1)
    assert claimed.spec == first.spec
    assert dict(claimed.spec.hyperparameters) == {"epochs": 2}
    assert claimed.spec.metadata == {"a": "b"}
    assert claimed.spec.user == "ann"
    assert status(workshop, first) is JobStatus.RUNNING


def test_no_job_has_two_workers(workshop: Workshop) -> None:
    job = workshop.job("acme")
    assert len(claim(workshop)) == 1
    assert claim(workshop, worker="w2") == []
    assert workshop.messages(job)[-1] == "The job runs."


def test_a_worker_of_another_base_model_gets_nothing(workshop: Workshop) -> None:
    workshop.job("acme")
    assert workshop.claims.claim("w1", "0" * 64, 5) == []


def test_many_workers_at_once_share_the_jobs_without_any_twice(workshop: Workshop) -> None:
    file = workshop.upload("acme")
    made = {workshop.job("acme", file).id for _ in range(24)}
    taken: list[str] = []

    def work(name: str) -> None:
        while found := claim(workshop, 2, name):
            taken.extend(job.id for job in found)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 24
    assert set(taken) == made


def test_a_tenant_with_many_jobs_does_not_starve_another(workshop: Workshop) -> None:
    for tenant, count in (("acme", 8), ("beta", 2)):
        file = workshop.upload(tenant)
        for _ in range(count):
            workshop.job(tenant, file)
    assert [job.tenant for job in claim(workshop, 6)] == [
        "acme", "beta", "acme", "beta", "acme", "acme",
    ]  # fmt: skip


def test_tenants_take_turns_when_one_job_runs_at_a_time(workshop: Workshop) -> None:
    for tenant in ("acme", "beta"):
        file = workshop.upload(tenant)
        for _ in range(3):
            workshop.job(tenant, file)
    order = []
    for _ in range(6):
        [job] = claim(workshop)
        order.append(job.tenant)
        workshop.claims.succeed(job, "tone@abc", {})
    assert order == ["acme", "beta"] * 3


def test_a_weight_gives_a_tenant_more_of_the_workers(workshop: Workshop) -> None:
    workshop.tenant("acme", weight=2.0)
    for tenant in ("acme", "beta"):
        file = workshop.upload(tenant)
        for _ in range(6):
            workshop.job(tenant, file)
    taken = [job.tenant for job in claim(workshop, 6)]
    assert (taken.count("acme"), taken.count("beta")) == (4, 2)


def test_a_tenant_runs_no_more_jobs_than_it_may(workshop: Workshop) -> None:
    workshop.tenant("acme", max_running_jobs=2)
    file = workshop.upload("acme")
    for _ in range(4):
        workshop.job("acme", file)
    running = claim(workshop, 4)
    assert len(running) == 2
    assert claim(workshop, 4) == []
    workshop.claims.fail(running[0], "some_code", "why")
    assert len(claim(workshop, 4)) == 1


def test_a_disabled_tenants_jobs_wait_and_its_running_ones_pause(workshop: Workshop) -> None:
    file = workshop.upload("acme")
    workshop.job("acme", file)
    workshop.job("acme", file)
    [job] = claim(workshop)
    workshop.tenants.change("acme", disabled=True)
    assert workshop.claims.heartbeat("w1", [job]) == {job.id: Order.PAUSE}
    assert claim(workshop) == []


def test_tokens_are_counted_once_although_a_part_is_trained_again(workshop: Workshop) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    for tokens in (100, 250, 120, 300):
        progress = JobProgress(step=1, total_steps=9, trained_tokens=tokens, seconds_left=60)
        workshop.claims.report(job, progress)
    shown = workshop.jobs.get("acme", job.id)
    assert (shown.trained_tokens, shown.step, shown.total_steps) == (300, 1, 9)
    assert shown.estimated_finish == int(workshop.clock.now) + 60
    with workshop.catalog.read() as connection:
        assert used_today(connection, "acme", workshop.clock.now) == 300
        assert used_today(connection, "beta", workshop.clock.now) == 0
        assert used_today(connection, "acme", workshop.clock.now + 86_400) == 0


def test_a_tenant_whose_day_is_used_up_goes_on_tomorrow(workshop: Workshop) -> None:
    workshop.tenant("acme", training_tokens_per_day=1000)
    made = workshop.job("acme")
    [job] = claim(workshop)
    workshop.claims.report(job, JobProgress(step=1, total_steps=9, trained_tokens=1000))
    assert workshop.claims.heartbeat("w1", [job]) == {job.id: Order.PAUSE}
    workshop.claims.release(job)
    assert "tomorrow" in workshop.messages(made)[-1]
    assert claim(workshop) == []
    workshop.clock.now += 86_400
    assert len(claim(workshop)) == 1


def test_a_lost_workers_job_goes_on_elsewhere_and_the_lost_one_can_do_nothing(
    workshop: Workshop, tmp_path: Path
) -> None:
    made = workshop.job("acme")
    [lost] = claim(workshop)
    workshop.clock.now += 20
    assert workshop.claims.heartbeat("w1", [lost]) == {lost.id: Order.GO_ON}
    workshop.clock.now += 20
    assert claim(workshop, worker="w2") == []  # the heartbeat has kept it
    workshop.clock.now += 31
    [again] = claim(workshop, worker="w2")
    assert (again.id, again.attempt) == (lost.id, 2)
    assert workshop.claims.heartbeat("w1", [lost]) == {lost.id: Order.LOST}
    file = tmp_path / "state"
    file.write_bytes(b"state")
    before = workshop.messages(made)
    for late in (
        lambda: workshop.claims.add_events(lost, [JobEvent(message="late")]),
        lambda: workshop.claims.report(lost, JobProgress(step=1, total_steps=1, trained_tokens=9)),
        lambda: workshop.claims.save_checkpoint(lost, file, 1, {}),
        lambda: workshop.claims.load_checkpoint(lost, file),
        lambda: workshop.claims.read_file(lost, "training", file),
        lambda: workshop.claims.succeed(lost, "tone@abc", {}),
        lambda: workshop.claims.fail(lost, "a_code", "why"),
        lambda: workshop.claims.release(lost),
    ):
        with pytest.raises(ClaimLost):
            late()
    assert workshop.messages(made) == before
    assert status(workshop, made) is JobStatus.RUNNING
    assert file.read_bytes() == b"state"
    assert any("worker is lost" in message for message in before)


def test_a_job_that_kills_every_worker_fails(workshop: Workshop) -> None:
    made = workshop.job("acme")
    for _ in range(MAX_LOSSES):
        assert len(claim(workshop)) == 1
        workshop.clock.now += 31
    assert claim(workshop) == []
    shown = workshop.jobs.get("acme", made.id)
    assert shown.status is JobStatus.FAILED
    assert shown.error is not None
    assert shown.error.code == "worker_lost"
    assert shown.finished_at == int(workshop.clock.now)


def test_a_job_that_may_have_killed_its_worker_comes_alone_until_it_has_a_checkpoint(
    workshop: Workshop, tmp_path: Path
) -> None:
    file = workshop.upload("acme")
    made = [workshop.job("acme", file).id for _ in range(3)]
    assert len(claim(workshop, 2)) == 2
    workshop.clock.now += 61
    [first] = claim(workshop, 3)
    assert (first.id, first.losses) == (made[0], 1)
    [second] = claim(workshop, 3)
    assert (second.id, second.losses) == (made[1], 1)
    state = tmp_path / "state"
    state.write_bytes(b"state")
    for job in (first, second):
        workshop.claims.save_checkpoint(job, state, 1, {})
        workshop.claims.release(job)
    assert [(job.id, job.losses) for job in claim(workshop, 3)] == [(each, 0) for each in made]


def test_a_tenant_with_more_than_its_share_gives_its_longest_job_s_place_to_another(
    workshop: Workshop,
) -> None:
    file = workshop.upload("acme")
    for _ in range(3):
        workshop.job("acme", file)
    running = claim(workshop, 2)
    assert workshop.claims.choose_yielding(FINGERPRINT, running) is None  # only its own job waits
    theirs = workshop.job("beta")
    assert workshop.claims.choose_yielding(FINGERPRINT, running) == running[0]
    assert workshop.claims.choose_yielding("0" * 64, running) is None
    assert workshop.claims.choose_yielding(FINGERPRINT, []) is None
    workshop.claims.release(running[0], yields=True)
    [other] = claim(workshop)
    assert other.id == theirs.id
    workshop.job("beta")
    both = [running[1], other]
    assert workshop.claims.choose_yielding(FINGERPRINT, both) is None  # each has one place
    workshop.tenant("beta", weight=2.0)
    assert workshop.claims.choose_yielding(FINGERPRINT, both) == running[1]


def test_a_job_that_gave_its_place_away_comes_after_its_tenants_jobs_that_waited(
    workshop: Workshop,
) -> None:
    file = workshop.upload("acme")
    made = [workshop.job("acme", file) for _ in range(2)]
    [job] = claim(workshop)
    workshop.clock.now += 10
    workshop.claims.release(job, yields=True)
    assert "other tenants' jobs have their turn" in workshop.messages(made[0])[-1]
    workshop.clock.now += 10
    later = workshop.job("acme", file)
    order = [job.id for job in claim(workshop, 3)]
    assert order == [made[1].id, made[0].id, later.id]


def test_a_checkpoint_forgives_lost_workers(workshop: Workshop, tmp_path: Path) -> None:
    made = workshop.job("acme")
    file = tmp_path / "state"
    file.write_bytes(b"state")
    for step in range(2 * MAX_LOSSES):
        [job] = claim(workshop)
        workshop.claims.save_checkpoint(job, file, step + 1, {})
        workshop.clock.now += 31
    assert workshop.claims.expire() == 1
    assert status(workshop, made) is JobStatus.QUEUED


def test_a_checkpoint_is_read_by_the_next_worker(workshop: Workshop, tmp_path: Path) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    state, copy = tmp_path / "state", tmp_path / "copy"
    assert not workshop.claims.load_checkpoint(job, copy)
    assert not copy.exists()
    for step, data in ((10, b"ten"), (20, b"twenty" * 1_000_000)):
        state.write_bytes(data)
        workshop.claims.save_checkpoint(job, state, step, {"train_loss": 1.5})
    workshop.claims.release(job)
    [job] = claim(workshop, worker="w2")
    assert workshop.claims.load_checkpoint(job, copy)
    assert copy.read_bytes() == b"twenty" * 1_000_000
    found = workshop.jobs.checkpoints("acme", job.id)
    assert [each.step for each in found.items] == [20, 10]
    assert found.items[0].metrics == {"train_loss": 1.5}


def stored(workshop: Workshop) -> int:
    """The contents that the store has."""
    return len(list(workshop.store.root.glob("*/*.safetensors")))


def save(workshop: Workshop, job: ClaimedJob, folder: Path, steps: int) -> None:
    """Saves a checkpoint after each of so many steps."""
    for step in range(1, steps + 1):
        (folder / "state").write_bytes(b"%d" % step)
        workshop.claims.save_checkpoint(job, folder / "state", step, {})


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_the_store_keeps_the_last_checkpoint_alone_and_none_of_an_ended_job(
    workshop: Workshop, tmp_path: Path, end: str
) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    for _ in range(3):
        save(workshop, job, tmp_path, 3)
        assert stored(workshop) == 2  # this one and the training file
    assert workshop.claims.load_checkpoint(job, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"3"
    if end == "succeed":
        workshop.claims.succeed(job, "tone@abc", {})
    else:
        workshop.claims.fail(job, "a_code", "why")
    assert stored(workshop) == 1


@pytest.mark.parametrize("end", ["cancel", "lose workers"])
def test_house_keeping_removes_a_checkpoint_whose_worker_does_not(
    workshop: Workshop, tmp_path: Path, end: str
) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    save(workshop, job, tmp_path, 2)
    if end == "cancel":
        workshop.jobs.cancel("acme", job.id)
    else:
        for _ in range(MAX_LOSSES):
            workshop.clock.now += 31
            workshop.claims.expire()
            claim(workshop)
    assert stored(workshop) == 2
    UserErasure(workshop.catalog, workshop.store, clock=workshop.clock).finish_removals()
    assert stored(workshop) == 1


def test_what_a_store_that_fails_keeps_of_a_checkpoint_is_removed_later(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("the store does not answer")

    workshop.job("acme")
    [job] = claim(workshop)
    with monkeypatch.context() as patch:
        patch.setattr(workshop.store, "delete", fail)
        save(workshop, job, tmp_path, 3)
    assert stored(workshop) == 4
    UserErasure(workshop.catalog, workshop.store, clock=workshop.clock).finish_removals()
    assert stored(workshop) == 2


def test_what_was_stored_for_a_job_that_is_lost_meanwhile_goes(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    result = workshop.claims.store_result(job, write(tmp_path / "step_metrics.csv"))
    commit = workshop.store.commit

    def cancelled(owner: str, digest: str, staged: Path) -> None:
        commit(owner, digest, staged)
        workshop.jobs.cancel("acme", job.id)

    monkeypatch.setattr(workshop.store, "commit", cancelled)
    with pytest.raises(ClaimLost):
        workshop.claims.save_checkpoint(job, write(tmp_path / "state"), 1, {})
    assert stored(workshop) == 2
    workshop.claims.discard([result])
    assert stored(workshop) == 1


def test_a_result_that_is_the_tenants_is_not_discarded(workshop: Workshop, tmp_path: Path) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    result = workshop.claims.store_result(job, write(tmp_path / "step_metrics.csv"))
    workshop.claims.succeed(job, None, {}, [result])
    workshop.claims.discard([result])
    assert stored(workshop) == 2


def write(path: Path) -> Path:
    path.write_bytes(b"state")
    return path


def test_a_worker_reads_the_jobs_files(workshop: Workshop, tmp_path: Path) -> None:
    training, validation = workshop.upload("acme", LINE * 3), workshop.upload("acme", LINE)
    workshop.job("acme", training, validation_file=validation.id)
    [job] = claim(workshop)
    for which, data in (("training", LINE * 3), ("validation", LINE)):
        workshop.claims.read_file(job, which, tmp_path / which)
        assert (tmp_path / which).read_bytes() == data


def test_a_job_without_a_validation_file_has_none_to_read(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    with pytest.raises(NotFound, match="validation file"):
        workshop.claims.read_file(job, "validation", tmp_path / "file")


def test_events_keep_their_order(workshop: Workshop) -> None:
    made = workshop.job("acme")
    [job] = claim(workshop)
    for start in (0, 3):
        new = [
            JobEvent(message=f"step {start + n}", type="metrics", data={"loss": 0.5})
            for n in range(3)
        ]
        workshop.claims.add_events(job, new)
    found, _ = workshop.jobs.new_events("acme", made.id, 0)
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    assert [event.message for event in found[-6:]] == [f"step {n}" for n in range(6)]
    assert found[-1].type == "metrics"
    assert found[-1].data == {"loss": 0.5}


def test_what_a_job_leaves_is_the_tenants_and_only_if_it_succeeds(
    workshop: Workshop, tmp_path: Path
) -> None:
    path = tmp_path / "step_metrics.csv"
    path.write_text("step\n1\n")
    made = workshop.job("acme")
    [job] = claim(workshop)
    stored = workshop.claims.store_result(job, path)
    assert workshop.files.list("acme", purpose="fine-tune-results").items == ()
    workshop.claims.succeed(job, None, {}, [stored])
    shown = workshop.jobs.get("acme", made.id)
    assert shown.fine_tuned_model is None
    (file,) = workshop.files.list("acme", purpose="fine-tune-results").items
    assert shown.result_files == (file.id,)
    with workshop.files.open("acme", file.id) as content:
        assert content.read() == path.read_bytes()
    with pytest.raises(ClaimLost):
        workshop.claims.store_result(job, path)
    with pytest.raises(NotFound):
        workshop.files.get("other", file.id)


def test_metrics_of_all_attempts_are_told_by_step(workshop: Workshop) -> None:
    workshop.job("acme")
    [first] = claim(workshop)
    metrics = [{"step": 1, "train_loss": 3.0}, {"step": 2, "train_loss": 2.5}]
    workshop.claims.add_events(
        first, [JobEvent(message="m", type="metrics", data=each) for each in metrics]
    )
    workshop.claims.release(first)
    [again] = claim(workshop)
    later = [{"step": 2, "train_loss": 2.0}, {"step": 3, "train_loss": 1.0}]
    workshop.claims.add_events(
        again, [JobEvent(message="m", type="metrics", data=each) for each in later]
    )
    assert workshop.claims.metrics(again) == [metrics[0], *later]


def test_an_end_is_told_once(workshop: Workshop) -> None:
    made = workshop.job("acme")
    [job] = claim(workshop)
    workshop.claims.succeed(job, "tone@abc", {"bleu": 60.5})
    for again in (
        lambda: workshop.claims.succeed(job, "tone@abc", {}),
        lambda: workshop.claims.fail(job, "a_code", "why"),
    ):
        with pytest.raises(ClaimLost):
            again()
    shown = workshop.jobs.get("acme", made.id)
    assert (shown.status, shown.fine_tuned_model) == (JobStatus.SUCCEEDED, "tone@abc")
    assert shown.result == {"bleu": 60.5}
    assert claim(workshop) == []


def test_a_failure_says_why(workshop: Workshop) -> None:
    made = workshop.job("acme")
    [job] = claim(workshop)
    workshop.claims.fail(job, "invalid_data", "line 3 is too long", "training_file")
    error = workshop.jobs.get("acme", made.id).error
    assert error is not None
    assert (error.code, error.message, error.param) == (
        "invalid_data", "line 3 is too long", "training_file",
    )  # fmt: skip


def test_a_cancelled_job_is_forgotten_by_its_worker(workshop: Workshop) -> None:
    made = workshop.job("acme")
    [job] = claim(workshop)
    assert workshop.jobs.cancel("acme", made.id).status is JobStatus.CANCELLED
    assert workshop.claims.heartbeat("w1", [job]) == {job.id: Order.CANCEL}
    with pytest.raises(ClaimLost):
        workshop.claims.succeed(job, "tone@abc", {})
    workshop.clock.now += 100
    assert claim(workshop) == []
    assert status(workshop, made) is JobStatus.CANCELLED


def test_a_paused_job_is_saved_and_goes_on_when_it_is_resumed(
    workshop: Workshop, tmp_path: Path
) -> None:
    made = workshop.job("acme")
    [job] = claim(workshop)
    workshop.jobs.pause("acme", made.id)
    assert workshop.claims.heartbeat("w1", [job]) == {job.id: Order.PAUSE}
    state = tmp_path / "state"
    state.write_bytes(b"state")
    workshop.claims.save_checkpoint(job, state, 7, {})
    workshop.claims.release(job)
    assert claim(workshop) == []
    assert status(workshop, made) is JobStatus.PAUSED
    workshop.jobs.resume("acme", made.id)
    [job] = claim(workshop, worker="w2")
    assert workshop.claims.load_checkpoint(job, tmp_path / "copy")


def test_a_job_that_is_resumed_early_waits_for_the_worker_that_has_it(workshop: Workshop) -> None:
    made = workshop.job("acme")
    [job] = claim(workshop)
    workshop.jobs.pause("acme", made.id)
    workshop.jobs.resume("acme", made.id)
    assert claim(workshop, worker="w2") == []
    assert workshop.claims.heartbeat("w1", [job]) == {job.id: Order.PAUSE}
    workshop.claims.release(job)
    assert len(claim(workshop, worker="w2")) == 1


def test_a_released_job_goes_on_elsewhere(workshop: Workshop) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    workshop.claims.release(job)
    [again] = claim(workshop, worker="w2")
    assert (again.id, again.attempt) == (job.id, 2)


def test_a_deleted_tenants_jobs_are_lost(workshop: Workshop) -> None:
    workshop.job("acme")
    [job] = claim(workshop)
    workshop.tenants.delete("acme")
    assert workshop.claims.heartbeat("w1", [job]) == {job.id: Order.LOST}
    with pytest.raises(ClaimLost):
        workshop.claims.release(job)


def test_without_a_worker_an_event_says_so(workshop: Workshop) -> None:
    alone = workshop.job("acme")
    assert "No worker" in workshop.messages(alone)[-1]
    assert workshop.claims.look(FINGERPRINT)
    assert "No worker" in workshop.messages(workshop.job("acme"))[-1]
    claim(workshop)
    assert "No worker" not in workshop.messages(workshop.job("acme"))[-1]
    workshop.clock.now += 3600
    assert "No worker" in workshop.messages(workshop.job("acme"))[-1]
