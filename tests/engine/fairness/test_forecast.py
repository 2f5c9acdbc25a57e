"""What those are told who were refused: they come back then, and most of them are taken."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest

from app.engine.admission import Admission
from app.engine.config import EngineConfig
from app.engine.fairness.forecast import (
    MAX_WAIT_S,
    Forecast,
    Promises,
    RowUse,
    SchedulerFigures,
    seconds_until_free,
    simulate_queue,
)
from app.engine.request import GenerationRequest
from app.errors import Overloaded, PolyprefixError, RateLimited
from app.prefix.spec import BaseModelSpec, ModuleShape
from app.tenancy.limits.limiter import Limiter
from app.tenancy.limits.limits import TenantLimits
from tests.engine.rows import TEXT
from tests.engine.timed import ON_CPU, TimedScheduler, requests_of, tenant_request

SPEC = BaseModelSpec("tiny", "0" * 64, {"decoder": ModuleShape(1, 1, 2)}, 1024)


class Served:
    """Clients of a scheduler whose time is scripted: each that is refused comes back as told."""

    def __init__(self, config: EngineConfig, limits: TenantLimits | None = None) -> None:
        self.timed = TimedScheduler(ON_CPU, config.max_rows)
        scheduler = self.timed.scheduler
        self.admission = Admission(
            config,
            SPEC,
            TEXT,
            self.timed.table,
            expected_tokens=scheduler.expected_tokens,
            clock=self.clock,
        )
        self.limiter = Limiter(clock=self.clock, rows_wait=self.admission.rows_wait)
        self.limits = limits or TenantLimits()
        self.told: dict[str, list[float]] = {}
        self.began: dict[str, float] = {}
        self._ends: dict[str, Callable[[], None]] = {}
        self._arrivals: list[tuple[float, int, GenerationRequest]] = []
        self._number = count()

    def clock(self) -> float:
        return self.timed.now

    def arrive(self, at: float, request: GenerationRequest) -> None:
        heapq.heappush(self._arrivals, (at, next(self._number), request))

    def play(self) -> None:
        """Until every client was taken and has its answer."""
        while self._arrivals or not self.timed.scheduler.idle:
            while self._arrivals and self._arrivals[0][0] <= self.timed.now:
                self._ask(heapq.heappop(self._arrivals)[2])
            if self.timed.advance() is None:
                self.timed.now = max(self.timed.now, self._arrivals[0][0])
                continue
            self._note()

    def _ask(self, request: GenerationRequest) -> None:
        try:
            self._enter(request)
        except PolyprefixError as error:
            wait = error.retry_after or math.nan
            self.told.setdefault(request.id, []).append(wait)
            self.arrive(self.timed.now + wait, request)
        else:
            self.began[request.id] = self.timed.now
            self.timed.submit([request])

    def _enter(self, request: GenerationRequest) -> None:
        tokens = len(request.prompt_ids) + request.num_rows * request.sampling.max_tokens
        reserving = self.limiter.reserve(
            request.tenant, self.limits, tokens=tokens, rows=request.num_rows
        )
        reservation = asyncio.run(reserving)
        try:
            self.admission.enter(request)
        except PolyprefixError:
            reservation.release()
            raise
        self._ends[request.id] = reservation.release

    def _note(self) -> None:
        for name in list(self._ends):
            if self.timed.ends(name):
                self.admission.leave(name)
                self._ends.pop(name)()
        self.admission.note_step(self.timed.scheduler.figures())

    def check(self, *, least: int) -> None:
        """Of those who waited as told, four fifths were taken; and the rows were not idle."""
        waits = [wait for told in self.told.values() for wait in told]
        assert all(1 <= wait <= MAX_WAIT_S for wait in waits)
        assert len(self.told) >= least
        # every wait but a client's last one was untrue
        untrue = sum(len(told) - 1 for told in self.told.values())
        assert untrue <= 0.2 * len(waits), (untrue, self.told)


def clients(served: Served, number: int, *, every: float = 0.2, **shape: Any) -> None:
    """Requests one after another, once the engine has seen a few steps."""
    served.arrive(0.0, tenant_request("other", "0", new=10))
    for index in range(number):
        served.arrive(1.0 + index * every, tenant_request("a", str(index), **shape))


@pytest.mark.parametrize(("rows", "every"), [(1, 0.2), (4, 0.0), (4, 0.5), (8, 0.3)])
def test_a_client_that_waits_as_told_gets_rows_of_its_limit(rows: int, every: float) -> None:
    served = Served(EngineConfig(), TenantLimits(max_rows=rows))
    clients(served, 5 + rows, every=every, new=400)
    served.play()
    served.check(least=5)
    ideal = TimedScheduler(ON_CPU)
    ideal.submit(requests_of("a", 5 + rows, new=400, row_cap=rows))
    ideal.advance_until(math.inf)
    assert served.timed.now <= 1.5 * ideal.now + 3


def test_a_client_that_waits_as_told_gets_several_rows() -> None:
    served = Served(EngineConfig(), TenantLimits(max_rows=8))
    clients(served, 7, n=3, new=300)
    served.play()
    served.check(least=5)


def test_a_client_that_waits_as_told_gets_its_place_in_the_tenants_queue() -> None:
    served = Served(EngineConfig(max_rows=8))
    clients(served, 20, every=0.05, new=150, queue_cap=4)
    served.play()
    served.check(least=8)


def test_a_client_that_waits_as_told_gets_its_place_in_the_servers_queue() -> None:
    served = Served(EngineConfig(max_rows=8, max_waiting=4))
    clients(served, 20, every=0.05, new=150)
    served.play()
    served.check(least=8)


def test_the_time_that_is_told_is_near_the_time_that_it_takes() -> None:
    served = Served(EngineConfig(), TenantLimits(max_rows=1))
    served.arrive(0.0, tenant_request("a", "0", new=400))
    served.arrive(1.0, tenant_request("a", "1", new=10))
    served.play()
    # 400 steps of one row take 6.5 s
    assert served.told["a1"] == [6.0]


def test_replies_that_end_early_are_expected_to() -> None:
    served = Served(EngineConfig(), TenantLimits(max_rows=1))
    served.timed.draw = lambda row: 0 if row.num_generated == 99 else 5
    stopping = tenant_request("a", "0", new=500)
    for index in range(4):
        sampling = type(stopping.sampling)(max_tokens=500)
        request = GenerationRequest(f"a{index}", "a", stopping.prompt_ids, sampling, whole=True)
        served.arrive(index * 5.0, request)
        served.arrive(index * 5.0 + 0.1, tenant_request("a", f" late {index}", new=5))
    served.play()
    assert served.told["a late 0"][0] > 7
    assert served.told["a late 3"][0] <= 4


# --- the parts ---------------------------------------------------------------------------


def test_rows_are_free_when_enough_requests_have_ended_and_those_before_are_served() -> None:
    stays = [RowUse(2, 3.0), RowUse(1, 1.0), RowUse(1, 9.0)]
    assert seconds_until_free(0, stays, [], 1) == 1.0
    assert seconds_until_free(0, stays, [], 3) == 3.0
    assert seconds_until_free(2, stays, [], 2) == 0.0
    assert seconds_until_free(0, stays, [RowUse(1, 5.0)], 1) == 3.0
    assert seconds_until_free(0, [RowUse(1, 1.0)], [RowUse(1, 5.0)], 1) == 6.0
    assert seconds_until_free(0, stays, [], 5) is None
    assert seconds_until_free(0, [], [], 1) is None


def test_requests_that_wait_take_turns_on_the_rows_that_run() -> None:
    waiting: Sequence[tuple[int, float]] = [(1, 4.0), (2, 1.0), (1, 1.0)]
    assert simulate_queue([1.0, 2.0], waiting, 2) == [(1.0, 5.0), (2.0, 4.0), (4.0, 5.0)]
    assert simulate_queue([], [(1, 2.0)], 0) == [(0.0, 2.0)]


def test_told_waits_are_remembered_until_then_within_bounds() -> None:
    told = Promises()
    told.add("a", 5.0, RowUse(1, 2.0))
    assert told.open("a", 4.9) == [RowUse(1, 2.0)]
    assert told.open("b", 4.9) == told.open("a", 5.0) == []
    for index in range(5000):
        told.add(f"t{index}", 9.0, RowUse(1, 0.0))
        told.add("many", 9.0, RowUse(1, 0.0))
    assert len(told) <= 4096
    assert len(told.open("many", 0.0)) <= 128


def test_a_wait_is_between_one_second_and_one_minute() -> None:
    forecast = Forecast(lambda request: request.sampling.max_tokens, 64)
    assert forecast.room_wait(None) == 1.0
    assert forecast.rows_wait("a", [], 0, 1, 100) == 1.0
    forecast.figures = SchedulerFigures(step_s=10.0)
    waiting = [tenant_request("a", str(index), new=500) for index in range(70)]
    assert forecast.queue_wait("a", waiting, 70) == MAX_WAIT_S


def test_refusals_say_what_they_are_told() -> None:
    served = Served(EngineConfig(max_rows=1, max_waiting=0), TenantLimits())
    served.admission.enter(tenant_request("a", "0"))
    with pytest.raises(Overloaded, match="try again in 1 s"):
        served.admission.enter(tenant_request("a", "1"))
    served.limits = TenantLimits(max_rows=1)
    asyncio.run(served.limiter.reserve("a", served.limits, tokens=1, rows=1))
    with pytest.raises(RateLimited, match="try again in 1 s"):
        asyncio.run(served.limiter.reserve("a", served.limits, tokens=1, rows=1))
