"""Meters in one process: never above the limit, never below zero, all or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tenancy.limits.decision import Cost
from app.tenancy.limits.limits import TenantLimits
from app.tenancy.limits.local import LocalLimits

LIMITS = TenantLimits(requests_per_minute=6, tokens_per_minute=600, max_rows=4)
ONE = Cost(tokens=10, rows=1)


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(local: LocalLimits, times: int, cost: Cost = ONE, **limits: Any) -> int:
    """How many of `times` requests are granted; each ends at once."""
    chosen = TenantLimits(**limits)
    granted = 0
    for _ in range(times):
        if local.take("acme", chosen, cost).granted:
            granted += 1
            local.give("acme", chosen, requests=0, tokens=0, rows=cost.rows)
    return granted


def test_a_minutes_allowance_may_be_used_at_once_and_comes_back_in_a_minute() -> None:
    clock = Clock()
    local = LocalLimits(clock=clock)
    assert taken(local, 100, requests_per_minute=60) == 60
    clock.now += 0.5
    assert taken(local, 100, requests_per_minute=60) == 0
    clock.now += 0.5
    assert taken(local, 100, requests_per_minute=60) == 1
    clock.now += 30
    assert taken(local, 100, requests_per_minute=60) == 30
    clock.now += 10**6
    assert taken(local, 100, requests_per_minute=60) == 60


def test_rows_come_free_when_they_are_given_back() -> None:
    local, limits = LocalLimits(), TenantLimits(max_rows=4)
    assert local.take("acme", limits, Cost(0, 3)).granted
    assert not local.take("acme", limits, Cost(0, 2)).granted
    assert local.take("acme", limits, Cost(0, 1)).rows == 4
    local.give("acme", limits, requests=0, tokens=0, rows=3)
    assert local.take("acme", limits, Cost(0, 2)).granted


def test_tenants_do_not_share() -> None:
    local, limits = LocalLimits(), TenantLimits(requests_per_minute=1)
    assert local.take("acme", limits, ONE).granted
    assert not local.take("acme", limits, ONE).granted
    assert local.take("other", limits, ONE).granted


@pytest.mark.parametrize("failing", [Cost(10, 5), Cost(601, 1)])
def test_a_refused_request_takes_from_no_limit(failing: Cost) -> None:
    local = LocalLimits(clock=Clock())
    before = local.take("acme", LIMITS, ONE)
    after = local.take("acme", LIMITS, failing)
    assert not after.granted
    assert (before.requests, before.tokens, before.rows) == (1, 10, 1)
    assert (after.requests, after.tokens, after.rows) == (1, 10, 1)


def test_a_lower_limit_holds_at_once_and_locks_out_for_a_minute_at_most() -> None:
    clock = Clock()
    local = LocalLimits(clock=clock)
    assert taken(local, 1000, requests_per_minute=1000) == 1000
    assert taken(local, 1, requests_per_minute=60) == 0
    clock.now += 1
    assert taken(local, 2, requests_per_minute=60) == 1


def test_a_higher_limit_holds_at_once() -> None:
    local = LocalLimits(clock=Clock())
    assert taken(local, 9, requests_per_minute=5) == 5
    assert taken(local, 99, requests_per_minute=20) == 15


@pytest.mark.parametrize("leap", [-86_400.0, -5.0, 0.0])
def test_a_clock_that_stands_or_goes_back_gives_nothing_and_locks_nobody_out(leap: float) -> None:
    clock = Clock()
    local = LocalLimits(clock=clock)
    assert taken(local, 99, requests_per_minute=60) == 60
    clock.now += leap
    assert taken(local, 99, requests_per_minute=60) == 0
    clock.now += 10
    assert taken(local, 99, requests_per_minute=60) == 10


def test_a_clock_that_leaps_ahead_gives_one_allowance_only() -> None:
    clock = Clock()
    local = LocalLimits(clock=clock)
    taken(local, 60, requests_per_minute=60)
    clock.now += 86_400
    assert taken(local, 999, requests_per_minute=60) == 60


def test_memory_is_bounded_and_what_runs_is_not_forgotten() -> None:
    clock = Clock()
    local = LocalLimits(clock=clock, max_tenants=100)
    busy = TenantLimits(max_rows=1)
    assert local.take("busy", busy, ONE).granted
    for number in range(5000):
        local.take(f"t{number}", TenantLimits(requests_per_minute=9), ONE)
        local.give(f"t{number}", TenantLimits(requests_per_minute=9), requests=0, tokens=0, rows=1)
    assert len(local) <= 100
    assert not local.take("busy", busy, ONE).granted


def test_the_idle_are_forgotten_after_a_minute_without_loss() -> None:
    clock = Clock()
    local = LocalLimits(clock=clock)
    for number in range(50):
        local.take(f"t{number}", LIMITS, ONE)
        local.give(f"t{number}", LIMITS, requests=0, tokens=0, rows=1)
    clock.now += 61
    for _ in range(60):
        local.take("acme", TenantLimits(requests_per_minute=1), ONE)
    assert len(local) == 1


def test_what_was_forgotten_is_not_given_back() -> None:
    local = LocalLimits()
    local.give("acme", LIMITS, requests=1, tokens=10, rows=1)
    assert len(local) == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 700), st.integers(1, 5)),
        st.tuples(st.just("give"), st.integers(-100, 100), st.integers(0, 1)),
        st.tuples(st.just("wait"), st.integers(0, 40), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_counts_as_a_naive_model_does(steps: list[tuple[str, int, int]]) -> None:
    """The model: used amounts as exact sixtieths, run down second by second."""
    clock = Clock(0.0)
    local = LocalLimits(clock=clock)
    requests, tokens = 0, 0  # sixtieths
    running: list[Cost] = []
    for kind, amount, number in steps:
        if kind == "wait":
            clock.now += amount
            for _ in range(amount):
                requests, tokens = max(0, requests - 6), max(0, tokens - 600)
        elif kind == "take":
            cost = Cost(amount, number)
            rows = sum(other.rows for other in running)
            expected = (
                requests + 60 <= 360
                and tokens + 60 * cost.tokens <= 36_000
                and rows + cost.rows <= 4
            )
            standing = local.take("acme", LIMITS, cost)
            assert standing.granted == expected
            if expected:
                requests, tokens = requests + 60, tokens + 60 * cost.tokens
                running.append(cost)
            assert standing.requests == pytest.approx(requests / 60, abs=1e-6)
            assert standing.tokens == pytest.approx(tokens / 60, abs=1e-6)
            assert standing.rows == sum(other.rows for other in running)
            assert 0 <= standing.requests <= 6
            assert 0 <= standing.tokens <= 600
            assert 0 <= standing.rows <= 4
        elif running:
            cost = running.pop()
            local.give("acme", LIMITS, requests=number, tokens=amount, rows=cost.rows)
            requests = max(0, requests - 60 * number)
            tokens = min(36_000, max(0, tokens - 60 * amount))
