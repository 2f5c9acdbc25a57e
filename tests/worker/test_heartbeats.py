"""Leases are renewed whatever the worker computes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from app.errors import Unavailable
from app.jobs.types import ClaimedJob, JobSpec, Order
from app.worker.heartbeats import Heartbeats


def claimed(number: int) -> ClaimedJob:
    spec = JobSpec(
        base_model="m", base_fingerprint="f", method="prefix", suffix="s", training_file="file-1"
    )
    return ClaimedJob(id=f"ftjob-{number}", tenant="t", spec=spec, attempt=1, token=f"t{number}")


def test_orders_are_those_of_the_last_beat() -> None:
    told = {"ftjob-1": Order.GO_ON, "ftjob-2": Order.CANCEL}
    beats = Heartbeats(lambda jobs: {job.id: told[job.id] for job in jobs})
    first, second = claimed(1), claimed(2)
    beats.add(first)
    beats.add(second)
    assert beats.order(second) is Order.GO_ON
    beats.beat()
    assert (beats.order(first), beats.order(second)) == (Order.GO_ON, Order.CANCEL)
    beats.remove(second)
    assert beats.order(second) is Order.LOST


def test_a_job_that_the_catalog_does_not_answer_for_is_lost() -> None:
    beats = Heartbeats(lambda _: {})
    beats.add(claimed(1))
    beats.beat()
    assert beats.order(claimed(1)) is Order.LOST


def test_beats_go_on_while_the_catalog_fails() -> None:
    calls: list[int] = []
    enough = threading.Event()

    def beat(jobs: Sequence[ClaimedJob]) -> Mapping[str, Order]:
        calls.append(len(jobs))
        if len(calls) < 3:
            raise Unavailable("the catalog is busy")
        enough.set()
        return {job.id: Order.PAUSE for job in jobs}

    beats = Heartbeats(beat, period_s=0.01)
    beats.add(claimed(1))
    beats.start()
    assert enough.wait(5)
    beats.stop()
    assert beats.order(claimed(1)) is Order.PAUSE
