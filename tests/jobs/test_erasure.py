"""Erasing a user leaves nothing of theirs, touches nobody else, and may be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import ColumnElement, Connection, event, select, text, update

from app.db.schema import metadata, training_jobs
from app.errors import Conflict, InvalidRequest, NotFound, PrefixNotFound
from app.jobs.checking import check_file
from app.jobs.erasure import Erasure, UserErasure
from app.jobs.types import ClaimLost, Job, JobEvent, JobStatus, Order, TrainingFile
from app.prefix.reference import PrefixReference
from app.registry.registry import Registry
from app.registry.types import ContentKey, VersionInfo
from tests.jobs.conftest import FINGERPRINT, Workshop

SECRET = "ann lives at the mill"
LINES = f'{{"input": "where", "target": "{SECRET}"}}\n'.encode()


@pytest.fixture
def registry(workshop: Workshop) -> Registry:
    return Registry(workshop.catalog, workshop.store, clock=workshop.clock)


@pytest.fixture
def erasure(workshop: Workshop) -> UserErasure:
    return UserErasure(workshop.catalog, workshop.store, clock=workshop.clock)


def upload(workshop: Workshop, tenant: str, user: str | None) -> TrainingFile:
    with workshop.files.stage() as staged:
        staged.write(LINES)
        checked = check_file(staged.path, "train.jsonl", "fine-tune")
        return workshop.files.add(tenant, staged.path, checked, user=user)


def push(
    registry: Registry, tenant: str, name: str, user: str | None, content: str = SECRET
) -> ContentKey:
    """Makes `content` a version of a prefix; the registry does not look inside."""
    digest = f"{sum(content.encode()) * 7919:064x}"
    info = VersionInfo(
        digest=digest,
        length=1,
        position_offset=1,
        dtype="float32",
        nbytes=4,
        base_fingerprint=FINGERPRINT,
        provenance={"note": content},
    )
    with registry.stage() as staged:
        staged.write(content.encode())
        version, _ = registry.add_version(tenant, name, info, staged.path, user=user)
    return ContentKey(version.owner, version.digest)


def erase(erasure: UserErasure, tenant: str, user: str) -> tuple[Erasure, int]:
    erased = erasure.forget(tenant, user)
    return erased, erasure.remove(erased)


def stored(folder: Path) -> bytes:
    """All bytes in the store's folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def tables_with(workshop: Workshop, word: str) -> set[str]:
    """Tables of the catalog that have the word in some column of some row."""
    with workshop.catalog.read() as connection:
        return {
            table.name
            for table in metadata.sorted_tables
            if any(word in repr(tuple(row)) for row in connection.execute(select(table)))
        }


def running_job(workshop: Workshop, tmp_path: Path, user: str | None, file: TrainingFile) -> Job:
    """A job that a worker has, with an event and a checkpoint."""
    job = workshop.job("acme", file, user=user, suffix="ann-mill", metadata={"who": SECRET})
    [claimed] = workshop.claims.claim("w1", FINGERPRINT, 1)
    workshop.claims.add_events(claimed, [JobEvent(message=SECRET)])
    state = tmp_path / "state"
    state.write_bytes(SECRET.encode())
    workshop.claims.save_checkpoint(claimed, state, 1, {"note": SECRET})
    assert workshop.claims.heartbeat("w1", [claimed]) == {job.id: Order.GO_ON}
    return job


def test_nothing_is_left_in_the_store_and_in_the_catalog(
    workshop: Workshop, registry: Registry, erasure: UserErasure, tmp_path: Path
) -> None:
    file = upload(workshop, "acme", "ann")
    job = running_job(workshop, tmp_path, "ann", file)
    key = push(registry, "acme", "ann-mill", "ann")
    registry.aliases.set("acme", "ann-mill", "stable", key.digest)
    registry.publications.set("acme", "ann-mill", ["beta"], everyone=False)
    assert SECRET.encode() in stored(tmp_path / "store")
    assert tables_with(workshop, SECRET) >= {"versions", "training_jobs", "job_events"}
    erased, removed = erase(erasure, "acme", "ann")
    assert (erased.prefixes, erased.training_files) == (["ann-mill"], [file.id])
    assert (erased.training_jobs, erased.versions) == ([job.id], 1)
    assert removed == len(erased.begun) == 3  # the version, the file and the checkpoint
    assert stored(tmp_path / "store") == b""
    assert tables_with(workshop, SECRET) == set()
    for word in ("ann", key.digest, file.id, job.id):
        assert tables_with(workshop, word) <= {"catalog_changes"}, word
    with pytest.raises(PrefixNotFound):
        registry.resolve("acme", PrefixReference("ann-mill"))
    with pytest.raises(NotFound):
        workshop.jobs.get("acme", job.id)
    with pytest.raises(NotFound):
        workshop.files.open("acme", file.id)


def test_a_worker_loses_the_job_and_cannot_save_or_finish_it(
    workshop: Workshop, erasure: UserErasure, tmp_path: Path
) -> None:
    job = workshop.job("acme", upload(workshop, "acme", "ann"), user="ann")
    [claimed] = workshop.claims.claim("w1", FINGERPRINT, 1)
    erase(erasure, "acme", "ann")
    assert workshop.claims.heartbeat("w1", [claimed]) == {job.id: Order.LOST}
    state = tmp_path / "state"
    state.write_bytes(SECRET.encode())
    with pytest.raises(ClaimLost):
        workshop.claims.save_checkpoint(claimed, state, 1, {})
    with pytest.raises(ClaimLost):
        workshop.claims.succeed(claimed, "ann@1", {})


def test_what_is_others_stays(workshop: Workshop, registry: Registry, erasure: UserErasure) -> None:
    kept = [
        push(registry, "acme", "bob", "bob", "of bob"),
        push(registry, "acme", "plain", None, "of nobody"),
        push(registry, "beta", "ann-mill", "ann", "of another ann"),
    ]
    files = [upload(workshop, "acme", "bob"), upload(workshop, "beta", "ann")]
    jobs = [workshop.job("acme", files[0], user="bob"), workshop.job("beta", files[1], user="ann")]
    push(registry, "acme", "ann-mill", "ann")
    erased, _ = erase(erasure, "acme", "ann")
    assert erased.prefixes == ["ann-mill"]
    for key in kept:
        with workshop.store.local(*key) as path:
            assert path is not None
    for tenant, job in zip(("acme", "beta"), jobs, strict=True):
        assert workshop.jobs.get(tenant, job.id).status is JobStatus.QUEUED
        assert workshop.files.get(tenant, job.spec.training_file)
    assert registry.resolve("beta", PrefixReference("ann-mill")).digest == kept[2].digest


def test_a_second_time_there_is_nothing_and_nothing_is_written(
    workshop: Workshop, registry: Registry, erasure: UserErasure
) -> None:
    push(registry, "acme", "ann-mill", "ann")
    erase(erasure, "acme", "ann")
    epoch = workshop.catalog.epoch()
    erased, removed = erase(erasure, "acme", "ann")
    assert (erased, removed) == (Erasure(), 0)
    assert erase(erasure, "nobody", "ann") == (Erasure(), 0)
    assert workshop.catalog.epoch() == epoch
    push(registry, "acme", "ann-mill", "ann")
    with workshop.store.local(*push(registry, "acme", "ann-mill", "ann")) as path:
        assert path is not None
        assert path.read_bytes() == SECRET.encode()


def test_a_content_that_another_prefix_needs_stays(
    registry: Registry, erasure: UserErasure
) -> None:
    key = push(registry, "acme", "ann-mill", "ann")
    assert push(registry, "acme", "copy", None) == key
    erased, removed = erase(erasure, "acme", "ann")
    assert (erased.shared, erased.begun, removed) == (1, [], 0)
    assert registry.gone_contents([key]) == []
    assert registry.resolve("acme", PrefixReference("copy")).digest == key.digest
    registry.delete_prefix("acme", "copy")
    assert registry.gone_contents([key]) == []  # its grace has begun
    other = push(registry, "acme", "ann-mill", "ann", "something else")
    erase(erasure, "acme", "ann")
    assert registry.gone_contents([key, other]) == [other]


@pytest.mark.parametrize("user", [None, "bob"])
@pytest.mark.parametrize("use", ["training", "validation"])
def test_others_jobs_on_the_users_file_are_cancelled(
    workshop: Workshop, erasure: UserErasure, user: str | None, use: str
) -> None:
    file, other = upload(workshop, "acme", "ann"), upload(workshop, "acme", None)
    if use == "training":
        files = {"training_file": file.id, "validation_file": other.id}
    else:
        files = {"training_file": other.id, "validation_file": file.id}
    running = workshop.job("acme", user=user, **files)
    [claimed] = workshop.claims.claim("w1", FINGERPRINT, 1)
    waiting, paused = (workshop.job("acme", user=user, **files) for _ in range(2))
    workshop.jobs.pause("acme", paused.id)
    unrelated = workshop.job("acme", other, user=user)
    erased, _ = erase(erasure, "acme", "ann")
    assert erased.cancelled == [running.id, waiting.id, paused.id]
    for job in (waiting, running, paused):
        assert workshop.jobs.get("acme", job.id).status is JobStatus.CANCELLED
        assert workshop.messages(job)[-1] == f"The {use} file was erased."
    assert workshop.claims.heartbeat("w1", [claimed]) == {running.id: Order.CANCEL}
    assert workshop.jobs.get("acme", unrelated.id).status is JobStatus.QUEUED


def test_others_jobs_behind_the_users_prefix_are_cancelled(
    workshop: Workshop, registry: Registry, erasure: UserErasure
) -> None:
    on = {
        (tenant, name): f"{name}@{push(registry, tenant, name, user).digest}"
        for tenant, name, user in (
            ("acme", "ann_mill", "ann"),
            ("acme", "ann-mill", None),
            ("beta", "ann_mill", "ann"),
        )
    }
    newer = f"ann_mill@{push(registry, 'acme', 'ann_mill', 'ann', 'newer').digest}"
    for name in ("ann_mill", "ann-mill"):
        registry.publications.set("acme", name, ["beta"], everyone=False)
    behind = [
        workshop.job("acme", on=on["acme", "ann_mill"], user="bob"),
        workshop.job("acme", on=newer),
        workshop.job("beta", on=f"acme/{newer}"),
        workshop.job("beta", on=f"acme/{newer}", user="ann"),  # another ann
    ]
    others = [
        workshop.job("acme", on=on["acme", "ann-mill"]),
        workshop.job("acme"),
        workshop.job("beta", on=on["beta", "ann_mill"]),
        workshop.job("beta", on=f"acme/{on['acme', 'ann-mill']}"),
    ]
    erased, _ = erase(erasure, "acme", "ann")
    told = "The prefix behind which the job is trained was erased."
    for job in behind:
        assert workshop.jobs.get(job.tenant, job.id).status is JobStatus.CANCELLED
        assert workshop.messages(job)[-1] == told
    for job in others:
        assert workshop.jobs.get(job.tenant, job.id).status is JobStatus.QUEUED
    assert erased.cancelled == [job.id for job in behind[:2]]  # the tenant hears of its own


def test_no_checkpoint_of_the_users_and_of_cancelled_jobs_is_left(
    workshop: Workshop, registry: Registry, erasure: UserErasure, tmp_path: Path
) -> None:
    on = f"acme/ann-mill@{push(registry, 'acme', 'ann-mill', 'ann').digest}"
    registry.publications.set("acme", "ann-mill", ["beta"], everyone=False)
    files = {tenant: upload(workshop, tenant, None) for tenant in ("acme", "beta")}
    workshop.job("acme", files["acme"], user="ann")  # it ends
    workshop.job("acme", files["acme"], user="ann")
    workshop.job("acme", upload(workshop, "acme", "ann"), user="bob")
    workshop.job("beta", files["beta"], on=on)
    state = tmp_path / "state"
    jobs = {}
    for job in workshop.claims.claim("w1", FINGERPRINT, 4):
        jobs[job.tenant, job.spec.user] = job
        for step in (1, 2, 3):
            state.write_bytes(SECRET.encode())
            workshop.claims.save_checkpoint(job, state, step, {})
    workshop.claims.succeed(jobs["acme", "ann"], None, {})
    erased, removed = erase(erasure, "acme", "ann")
    assert removed == len(erased.begun) == 3  # the version, the file and the job that was running
    assert len(erased.others) == 2
    kept = {path.stem for path in (tmp_path / "store").rglob("*.safetensors")}
    assert len(kept) == len(files)


def test_a_users_own_jobs_are_forgotten_and_not_cancelled_however_many(
    workshop: Workshop, erasure: UserErasure
) -> None:
    file = upload(workshop, "acme", "ann")
    own = [workshop.job("acme", file, user="ann").id for _ in range(70)]
    erased, _ = erase(erasure, "acme", "ann")
    assert (erased.training_jobs, erased.cancelled) == (own, [])


@pytest.fixture
def blocked(
    workshop: Workshop, erasure: UserErasure
) -> Iterator[Callable[[Connection], Future[Erasure]]]:
    """Begins to erase ann, and waits until that waits for a lock of the given transaction."""
    if workshop.catalog.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    with ThreadPoolExecutor(1) as pool:

        def begin(connection: Connection) -> Future[Erasure]:
            erased = pool.submit(erasure.forget, "acme", "ann")
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            deadline = time.monotonic() + 10
            while not connection.scalar(waiting):
                assert time.monotonic() < deadline, "it waits for nothing"
                time.sleep(0.01)
            return erased

        yield begin


def of_job(job: Job) -> ColumnElement[bool]:
    return training_jobs.c.public_id == job.id


def test_jobs_are_locked_in_the_order_of_their_making(
    workshop: Workshop, blocked: Callable[[Connection], Future[Erasure]]
) -> None:
    file = upload(workshop, "acme", "ann")
    others, own = workshop.job("acme", file), workshop.job("acme", file, user="ann")
    with workshop.catalog.engine.begin() as worker:  # as a heartbeat of a worker that has both
        worker.execute(select(training_jobs).where(of_job(others)).with_for_update())
        erased = blocked(worker)
        worker.execute(select(training_jobs).where(of_job(own)).with_for_update(nowait=True))
    assert (erased.result().training_jobs, erased.result().cancelled) == ([own.id], [others.id])


def test_a_job_that_ends_while_its_file_is_erased_is_not_cancelled(
    workshop: Workshop, blocked: Callable[[Connection], Future[Erasure]]
) -> None:
    job = workshop.job("acme", upload(workshop, "acme", "ann"))
    with workshop.catalog.engine.begin() as worker:
        worker.execute(update(training_jobs).where(of_job(job)).values(status="succeeded"))
        erased = blocked(worker)
    assert erased.result().cancelled == []
    assert workshop.jobs.get("acme", job.id).status is JobStatus.SUCCEEDED


def test_jobs_of_others_that_have_ended_stay_as_they_are(
    workshop: Workshop, erasure: UserErasure
) -> None:
    job = workshop.job("acme", upload(workshop, "acme", "ann"))
    [claimed] = workshop.claims.claim("w1", FINGERPRINT, 1)
    workshop.claims.succeed(claimed, "tone@1", {})
    erased, _ = erase(erasure, "acme", "ann")
    assert erased.cancelled == []
    assert workshop.jobs.get("acme", job.id).status is JobStatus.SUCCEEDED


def test_a_prefix_is_its_first_users(registry: Registry) -> None:
    push(registry, "acme", "ann-mill", "ann")
    push(registry, "acme", "ann-mill", "ann", "again")
    push(registry, "acme", "ann-mill", None, "and again")
    for name, user in (("ann-mill", "bob"), ("plain", "ann")):
        if name == "plain":
            push(registry, "acme", name, None, "plain")
        with pytest.raises(Conflict, match="not this user's"):
            push(registry, "acme", name, user, "stolen")
    names = [record.name for record in registry.list_prefixes("acme", user="ann").items]
    assert names == ["ann-mill"]


@contextmanager
def seen_statements(workshop: Workshop) -> Iterator[list[str]]:
    seen: list[str] = []

    def listen(_one: object, _two: object, statement: str, *_rest: object) -> None:
        seen.append(statement)

    event.listen(workshop.catalog.engine, "before_cursor_execute", listen)
    try:
        yield seen
    finally:
        event.remove(workshop.catalog.engine, "before_cursor_execute", listen)


def test_many_things_go_in_batches_and_no_table_is_scanned(
    workshop: Workshop, registry: Registry, erasure: UserErasure
) -> None:
    for number in range(70):
        push(registry, "acme", f"p{number}", "ann", f"content {'x' * number}")
    upload(workshop, "acme", "ann")
    epoch = workshop.catalog.epoch()
    with seen_statements(workshop) as seen:
        erased, removed = erase(erasure, "acme", "ann")
    assert len(erased.prefixes) == removed - 1 == 70
    assert workshop.catalog.epoch() == epoch + 2
    if workshop.catalog.engine.dialect.name == "postgresql":
        return  # it scans small tables whatever their indexes
    tables = {table.name for table in metadata.sorted_tables}
    with workshop.catalog.read() as connection:
        for statement in {each for each in seen if each.startswith(("SELECT", "UPDATE", "DELETE"))}:
            plan = connection.execute(
                text(f"EXPLAIN QUERY PLAN {statement.replace('?', '1')}")
            ).all()
            scanned = {row.detail.split()[1] for row in plan if row.detail.startswith("SCAN")}
            assert not scanned & tables - {"catalog_epoch"}, (statement, plan)


def test_what_a_failing_store_keeps_is_removed_later(
    workshop: Workshop, registry: Registry, erasure: UserErasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = push(registry, "acme", "ann-mill", "ann")
    with monkeypatch.context() as patch:
        patch.setattr(type(workshop.store), "delete", failing)
        erased, removed = erase(erasure, "acme", "ann")
    assert (len(erased.begun), removed) == (1, 0)
    assert registry.gone_contents([key]) == [key]
    registry.finish_removals()
    with workshop.store.local(*key) as path:
        assert path is None


def failing(*_: object) -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize("user", ["", "x" * 513, "a\nb", "a\0b"])
def test_what_no_user_can_be_called_is_refused(erasure: UserErasure, user: str) -> None:
    with pytest.raises(InvalidRequest, match="printable characters"):
        erasure.forget("acme", user)
