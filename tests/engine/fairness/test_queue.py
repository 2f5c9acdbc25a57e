"""The queue itself: counters, lifts, order inside a tenant, bounds, and what it costs."""

from __future__ import annotations

import time

import pytest

from app.engine.fairness.prefill_budget import Speed
from app.engine.fairness.queue import FairQueue
from app.engine.fairness.tenant_share import MEMORY_S, WHOLE, TenantShare
from app.engine.request import GenerationRequest
from app.engine.request_state import RequestState
from tests.engine.timed import tenant_request

FLAT = Speed(0.01, 0.0, 64)


class Served:
    """A queue of which one request at a time is started and served in full."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.now = 0.0

    def add(self, *requests: GenerationRequest) -> None:
        for request in requests:
            entry = RequestState(request, 0, self.now, share=WHOLE // 64)
            entry.num_rows = request.num_rows
            self.queue.add(entry, self.now)

    def start(self) -> RequestState | None:
        self.queue.begin(self.now, FLAT)
        return next(self.queue.starts(lambda _: True), None)

    def serve(self, count: int) -> list[str]:
        names = []
        for _ in range(count):
            entry = self.start()
            assert entry is not None
            self.now += 0.01
            self.queue.serve(entry, entry.request.sampling.max_tokens)
            self.queue.end(entry)
            names.append(entry.request.id)
        return names

    def tenant(self, name: str) -> dict[str, float]:
        return self.queue.debug_state()["tenants"][name]


def test_one_tenants_requests_start_in_the_order_of_their_arrival() -> None:
    served = Served()
    served.add(*(tenant_request("a", str(index), new=1 + index % 7) for index in range(20)))
    assert served.serve(20) == [f"a{index}" for index in range(20)]


def test_a_higher_priority_is_first_inside_its_tenant_and_nowhere_else() -> None:
    served = Served()
    served.add(*(tenant_request("a", str(index), priority=index % 2) for index in range(4)))
    served.add(*(tenant_request("b", str(index)) for index in range(4)))
    names = served.serve(8)
    assert [name for name in names if name[0] == "a"] == ["a1", "a3", "a0", "a2"]
    assert [name[0] for name in names] == list("abababab")


def test_turns_go_by_what_was_served_and_by_weight() -> None:
    served = Served()
    served.add(*(tenant_request("a", str(index), prompt=10, new=15) for index in range(60)))
    served.add(*(tenant_request("b", str(index), prompt=20, new=50) for index in range(60)))
    served.add(
        *(tenant_request("c", str(index), prompt=10, new=15, weight=2) for index in range(60))
    )
    names = [name[0] for name in served.serve(70)]
    assert [names.count(name) for name in "abc"] == [21, 7, 42]


def test_what_was_expected_and_not_served_is_given_back() -> None:
    served = Served()
    served.add(tenant_request("a", "0", prompt=10, new=100))
    entry = served.start()
    assert entry is not None
    assert served.tenant("a")["counter"] == 10 + 2 * 100
    served.queue.serve(entry, 30)
    assert served.tenant("a")["counter"] == 10 + 2 * 100
    served.queue.end(entry)
    assert served.tenant("a")["counter"] == 10 + 2 * 30
    served.add(tenant_request("a", "1", prompt=10, new=100))
    entry = served.start()
    assert entry is not None
    assert served.tenant("a")["counter"] == 70 + 10 + 2 * 30
    served.queue.serve(entry, 50)
    assert served.tenant("a")["counter"] == 70 + 10 + 2 * 50


def test_a_new_or_returning_tenant_starts_at_the_counter_of_the_last_start() -> None:
    served = Served()
    served.add(*(tenant_request("b", str(index)) for index in range(2)))
    served.add(*(tenant_request("a", str(index)) for index in range(60)))
    served.serve(40)
    here = served.queue.debug_state()["last_started"]
    assert here > 30 * 128
    served.add(tenant_request("b", "again"), tenant_request("c", "new"))
    assert served.tenant("b")["counter"] == served.tenant("c")["counter"] == here
    assert sorted(served.serve(3))[1:] == ["bagain", "cnew"]


def test_a_tenant_with_a_waiting_request_is_not_lifted() -> None:
    served = Served()
    served.add(tenant_request("b", "0"))
    served.add(*(tenant_request("a", str(index), prompt=10, new=15) for index in range(3)))
    served.queue.begin(served.now, FLAT)
    started = list(served.queue.starts(lambda entry: entry.request.tenant == "a"))
    assert len(started) == 3
    assert served.queue.debug_state()["last_started"] == 80
    served.add(tenant_request("b", "1"))
    assert served.tenant("b")["counter"] == 0


def test_counters_stay_small_and_their_differences_the_same() -> None:
    served = Served()
    served.add(*(tenant_request("a", str(index), prompt=9000, new=500) for index in range(400)))
    served.add(*(tenant_request("b", str(index), prompt=9000, new=500) for index in range(400)))
    names = served.serve(800)
    assert [name[0] for name in names[::2]] == ["a"] * 400
    assert abs(served.tenant("a")["counter"]) < 2.0**21
    assert abs(served.tenant("a")["counter"] - served.tenant("b")["counter"]) <= 10_000


def test_tenants_that_idle_are_forgotten_in_time_and_number() -> None:
    served = Served()
    for index in range(1000):
        served.add(tenant_request(f"t{index}-", "0"))
        served.serve(1)
    assert len(served.queue.debug_state()["tenants"]) <= 258
    served.now += MEMORY_S
    served.queue.begin(served.now, FLAT)
    assert not served.queue.debug_state()["tenants"]
    assert not served.queue.debug_state()["idle"]


def test_a_removed_request_leaves_nothing_behind() -> None:
    served = Served()
    served.add(*(tenant_request("a", str(index), priority=index % 3) for index in range(9)))
    for index in (4, 0, 8, 1, 2, 3, 5, 6, 7):
        assert served.queue.remove(f"a{index}") is True
    assert served.queue.remove("a4") is False
    assert not served.queue.waiting
    assert not served.queue.queued
    assert served.tenant("a")["idle"]
    assert served.tenant("a")["demand"] == 0
    assert served.start() is None


def test_cancelling_one_of_ten_thousand_does_not_look_at_the_others() -> None:
    served = Served()
    served.add(*(tenant_request("a", str(index)) for index in range(10_000)))
    started = time.process_time()
    for index in reversed(range(10_000)):
        served.queue.remove(f"a{index}")
    assert time.process_time() - started < 0.5


def test_peaks_and_rates_fade() -> None:
    tenant = TenantShare("a", 0)
    entry = RequestState(tenant_request("a", "0"), 0, 0.0, share=1000)
    tenant.add(entry, 0.0)
    tenant.remove(entry)
    tenant.start(entry)
    tenant.serve(entry, 48, 0.0)
    assert tenant.token_rate(0.0) == pytest.approx(4.8)
    assert tenant.token_rate(MEMORY_S) == pytest.approx(4.8 / 2.71828, rel=1e-4)
    tenant.end(entry)
    assert tenant.peak_demand(4.9) == 1000
    assert tenant.peak_demand(9.0) == 1000
    assert tenant.peak_demand(16.0) == 0


def test_the_first_rows_of_a_batch_are_worth_most_where_rows_cost_time() -> None:
    assert Speed(0.01, 0.0, 64).worth(0.25) == pytest.approx(0.25)
    assert Speed(0.01, 0.001, 40).worth(0.25) == pytest.approx(0.25 * 0.05 / 0.02)
    assert Speed(0.01, 0.001, 40).worth(1.5) == 1.0
    assert Speed(0.01, 0.001, 40).tokens_per_s == pytest.approx(800)
