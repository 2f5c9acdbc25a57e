"""A process that dies at any statement of any change: the job is in one state, and goes on.

Dying is an exception that nothing of ours catches, before each statement in turn and before each
commit: what the database then has is what it would have if the process were gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from app.db.schema import training_files, training_jobs
from app.errors import Unavailable
from app.jobs.types import ClaimedJob, ClaimLost, JobEvent, JobProgress, JobStatus, Order
from app.registry.registry import Registry
from tests.jobs.conftest import FINGERPRINT, Workshop

Act = Callable[[Workshop, ClaimedJob, Path], object]


class Died(BaseException):
    """The process is gone."""


ACTS: dict[str, Act] = {
    "report": lambda shop, job, _: shop.claims.report(
        job, JobProgress(step=1, total_steps=2, trained_tokens=10)
    ),
    "add_events": lambda shop, job, _: shop.claims.add_events(job, [JobEvent(message="a")]),
    "heartbeat": lambda shop, job, _: shop.claims.heartbeat("w1", [job]),
    "save_checkpoint": lambda shop, job, path: shop.claims.save_checkpoint(job, path, 1, {}),
    "load_checkpoint": lambda shop, job, path: shop.claims.load_checkpoint(job, path),
    "store_result": lambda shop, job, path: shop.claims.store_result(job, path),
    "succeed": lambda shop, job, path: shop.claims.succeed(
        job, "tone@abc", {}, [shop.claims.store_result(job, path)]
    ),
    "fail": lambda shop, job, _: shop.claims.fail(job, "a_code", "why"),
    "release": lambda shop, job, _: shop.claims.release(job),
    "cancel": lambda shop, job, _: shop.jobs.cancel(job.tenant, job.id),
    "pause": lambda shop, job, _: shop.jobs.pause(job.tenant, job.id),
    "create": lambda shop, job, _: shop.jobs.create(job.tenant, job.spec),
    "upload": lambda shop, job, _: shop.upload(job.tenant),
    "claim": lambda shop, *_: shop.claims.claim("w2", FINGERPRINT, 1),
    "expire": lambda shop, *_: _late(shop).claims.expire(),
}


def _late(shop: Workshop) -> Workshop:
    shop.clock.now += 31
    return shop


@contextmanager
def dying_at(shop: Workshop, number: int) -> Iterator[list[int]]:
    """Lets the process die before its statement or commit of this number, from 0."""
    count = [0]

    def live(*_: Any) -> None:
        count[0] += 1
        if count[0] == number + 1:
            raise Died

    names = ("before_cursor_execute", "commit")
    for name in names:
        event.listen(shop.catalog.engine, name, live)
    try:
        yield count
    finally:
        for name in names:
            event.remove(shop.catalog.engine, name, live)


@pytest.mark.parametrize("name", ACTS)
def test_a_process_that_dies_leaves_a_job_that_ends_once(
    workshop: Workshop, tmp_path: Path, name: str
) -> None:
    state = tmp_path / "state"
    file = workshop.upload("acme")
    for number in range(60):
        state.write_bytes(b"state")
        workshop.job("acme", file)
        [job] = workshop.claims.claim("w1", FINGERPRINT, 1)
        if name == "claim":
            workshop.job("acme", file)
        with dying_at(workshop, number) as count:
            try:
                ACTS[name](workshop, job, state)
            except Died:
                pass
            else:
                assert count[0] <= number
                break
        finish(workshop, tmp_path)
    else:
        raise AssertionError("the act never came to its end")
    assert number > 2
    finish(workshop, tmp_path)
    left_over(workshop)


def finish(workshop: Workshop, folder: Path) -> None:
    """Has everything trained by another worker, and checks that each job ends once."""
    workshop.clock.now += 31
    path = folder / "copy"
    for row in _jobs(workshop):
        if row.status == JobStatus.PAUSED.value:
            workshop.jobs.resume(row.tenant_id, row.public_id)
    while claimed := workshop.claims.claim("w3", FINGERPRINT, 100):
        for job in claimed:
            assert workshop.claims.heartbeat("w3", [job]) == {job.id: Order.GO_ON}
            workshop.claims.load_checkpoint(job, path)
            workshop.claims.succeed(job, "tone@abc", {})
            with pytest.raises(ClaimLost):
                workshop.claims.succeed(job, "tone@abc", {})
    for row in _jobs(workshop):
        assert row.status in ("succeeded", "failed", "cancelled")
        events, _ = workshop.jobs.new_events(row.tenant_id, row.public_id, 0)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        ends = [event for event in events if "has made" in event.message]
        assert len(ends) == (row.status == "succeeded")


def left_over(workshop: Workshop) -> None:
    """The store has the files that the catalog has, and no other."""
    workshop.clock.now += 100
    Registry(workshop.catalog, workshop.store, clock=workshop.clock).collect_garbage(-3600.0)
    with workshop.catalog.read() as connection:
        needed = set(connection.scalars(select(training_files.c.digest)))
    stored = {path.stem for path in workshop.store.root.glob("*/*.safetensors")}
    assert stored == needed
    assert not list(workshop.store.root.glob(".staging/*"))


def _jobs(workshop: Workshop) -> list[Any]:
    with workshop.catalog.read() as connection:
        return list(connection.execute(select(training_jobs)).all())


def test_a_store_that_does_not_answer_changes_nothing(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.job("acme")
    [job] = workshop.claims.claim("w1", FINGERPRINT, 1)
    state = tmp_path / "state"
    state.write_bytes(b"one")
    workshop.claims.save_checkpoint(job, state, 1, {})

    def fail(*_: Any) -> None:
        raise Unavailable("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(workshop.store, "commit", fail)
        state.write_bytes(b"two")
        with pytest.raises(Unavailable):
            workshop.claims.save_checkpoint(job, state, 2, {})
    assert workshop.claims.load_checkpoint(job, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"one"
