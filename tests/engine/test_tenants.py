"""Tenants side by side in one scheduler: floods, shares, caps, big requests, nobody left out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.request import GenerationRequest
from app.engine.step import StepPlan
from tests.engine.timed import (
    FLAT,
    ON_CPU,
    SMALL_MODEL,
    Costs,
    TimedScheduler,
    first_token_times,
    requests_of,
    requests_per_second,
    tenant_request,
)


def p99(times: list[float]) -> float:
    return times[int(0.99 * len(times))]


def shares_in_windows(timed: TimedScheduler, start: float, end: float) -> list[float]:
    """What "a" got for each token of "b", in every window of 5 s."""
    shares = []
    while start + 5 <= end:
        got = timed.tokens_between(start, start + 5)
        shares.append(got["a"] / got["b"])
        start += 0.5
    return shares


# --- a flood -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "seconds", "seed", "shape"),
    [
        (FLAT, 15, 1, {}),
        (SMALL_MODEL, 12, 2, {}),
        (ON_CPU, 60, 1, {}),
        (ON_CPU, 60, 2, {"new": 200}),
        (ON_CPU, 60, 3, {"prompt": 300}),
    ],
    ids=["flat", "small model", "cpu", "cpu, long replies", "cpu, long prompts"],
)
def test_a_flood_delays_anothers_first_token_by_half_at_most(
    costs: Costs, seconds: float, seed: int, shape: dict[str, float]
) -> None:
    rate = requests_per_second(costs) / 2
    alone = first_token_times(costs, rate, seconds, [], seed)
    beside = first_token_times(costs, rate, seconds, requests_of("flood", 1000, **shape), seed)
    assert min(len(alone), len(beside)) > 200
    assert p99(beside) <= 1.5 * p99(alone)


def test_beside_a_tenant_that_keeps_within_its_share_a_flood_goes_on() -> None:
    timed = TimedScheduler(ON_CPU)
    timed.submit(requests_of("a", 1000))
    for index in itertools.count():
        timed.submit([tenant_request("b", str(index))])
        timed.advance_until((index + 1) / 5)
        if timed.now > 30:
            break
    got = timed.tokens_between(10, 30)
    assert got["a"] > got["b"] / 6


def test_a_tenant_alone_uses_every_row() -> None:
    timed = TimedScheduler()
    timed.submit(requests_of("a", 200))
    timed.advance()
    assert timed.scheduler.figures().num_rows == 64


def test_a_tenant_uses_every_row_again_once_the_other_was_away_for_long() -> None:
    timed = TimedScheduler(FLAT, 8)
    timed.submit(requests_of("b", 3, new=10))
    timed.submit(requests_of("a", 400))
    timed.advance_until(5.0)
    assert timed.rows_of("a") < 8
    timed.advance_until(12.0)
    assert timed.rows_of("a") == 8


def test_a_newcomer_gets_the_next_free_row() -> None:
    timed = TimedScheduler(FLAT, 8)
    timed.submit(tenant_request("a", str(index), new=20 + 5 * index) for index in range(8))
    timed.submit(tenant_request("a", f"more {index}") for index in range(100))
    for _ in range(10):
        timed.advance()
    timed.submit(requests_of("b", 1))
    while "a0" in timed.running():
        assert timed.rows_of("a") == 8
        timed.advance()
    timed.advance()
    assert (timed.rows_of("a"), timed.rows_of("b")) == (7, 1)


# --- shares ------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 2.0])
@pytest.mark.parametrize("costs", [FLAT, ON_CPU], ids=["flat", "cpu"])
def test_a_backlog_is_served_by_weight_in_every_window(costs: Costs, weight: float) -> None:
    timed = TimedScheduler(costs)
    timed.submit(requests_of("a", 3000, weight=weight))
    timed.submit(requests_of("b", 3000))
    timed.advance_until(15.0)
    shares = shares_in_windows(timed, 0.5, 15.0)
    assert len(shares) >= 19
    assert all(share == pytest.approx(weight, rel=0.1) for share in shares)


def test_a_tenant_that_joins_a_backlog_gets_its_share_and_no_more() -> None:
    timed = TimedScheduler(ON_CPU)
    timed.submit(requests_of("a", 1000))
    timed.advance_until(20.0)
    timed.submit(requests_of("b", 1000))
    timed.advance_until(50.0)
    shares = shares_in_windows(timed, 27.0, 50.0)
    assert all(share == pytest.approx(1.0, rel=0.1) for share in shares)


def test_idling_gives_no_credit_and_a_return_no_burst() -> None:
    timed = TimedScheduler(ON_CPU)
    timed.submit(requests_of("b", 1))
    timed.submit(requests_of("a", 2000))
    timed.advance_until(60.0)
    assert timed.tokens_between(1, 60)["a"] > 25_000
    timed.submit([tenant_request("b", f"late {index}") for index in range(1000)])
    timed.advance_until(90.0)
    assert timed.tokens_between(60, 90)["b"] < timed.tokens_between(60, 90)["a"] * 1.05
    shares = shares_in_windows(timed, 67.0, 90.0)
    assert all(share == pytest.approx(1.0, rel=0.1) for share in shares)


def test_replies_that_end_early_do_not_cost_what_they_might_have_been() -> None:
    timed = TimedScheduler(ON_CPU)
    timed.draw = lambda row: 0 if row.num_generated == 40 else 5
    early = [
        GenerationRequest(**{**vars(one), "sampling": ends(one, 500)})
        for one in requests_of("a", 1000)
    ]
    timed.submit(early)
    timed.submit(requests_of("b", 1000, new=41))
    timed.advance_until(40.0)
    shares = shares_in_windows(timed, 15.0, 40.0)
    assert all(share == pytest.approx(1.0, rel=0.1) for share in shares)


def ends(request: GenerationRequest, limit: int) -> object:
    return type(request.sampling)(max_tokens=limit)


# --- caps --------------------------------------------------------------------------------


def test_a_row_cap_holds_for_its_tenant_alone() -> None:
    timed = TimedScheduler(FLAT, 16)
    timed.submit(requests_of("a", 100, row_cap=3))
    timed.submit(requests_of("b", 100))
    for _ in range(300):
        timed.advance()
        assert timed.rows_of("a") <= 3
    assert timed.rows_of("a") == 3
    assert timed.rows_of("b") == 13


def test_rows_that_have_ended_no_longer_count_for_a_row_cap() -> None:
    timed = TimedScheduler(FLAT, 16)
    timed.draw = lambda row: 0 if row.num_generated >= 3 and row.index == 0 else 5
    first = tenant_request("a", "0", n=2, row_cap=2)
    timed.submit([GenerationRequest(**{**vars(first), "sampling": ends(first, 48)})])
    timed.submit([tenant_request("a", "1", row_cap=2)])
    timed.advance()
    assert timed.running() == {"a0"}
    for _ in range(6):
        timed.advance()
    assert timed.running() == {"a0", "a1"}


def test_a_tenant_at_its_row_cap_does_not_hold_up_the_others() -> None:
    timed = TimedScheduler(FLAT, 16)
    timed.submit(requests_of("a", 50, row_cap=1))
    timed.advance()
    timed.submit(requests_of("b", 1))
    timed.advance()
    assert timed.rows_of("b") == 1


def test_a_tenant_that_a_cap_holds_back_earns_no_credit() -> None:
    timed = TimedScheduler(FLAT, 16)
    timed.submit(requests_of("a", 300, row_cap=1))
    timed.submit(requests_of("b", 3000))
    timed.advance_until(10.0)
    tenants = timed.scheduler.debug_state()["tenants"]
    assert abs(tenants["a"]["counter"] - tenants["b"]["counter"]) < 2 * (32 + 2 * 48)


# --- big requests ------------------------------------------------------------------------


def test_a_big_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    timed = TimedScheduler(FLAT, 16)
    timed.submit(requests_of("small", 2000, new=10))
    timed.advance()
    timed.submit([tenant_request("big", "0", n=16)])
    steps = 0
    while not timed.rows_of("big") and steps < 100:
        timed.advance()
        steps += 1
    assert steps <= 12
    timed.advance_until(1.5)
    assert timed.rows_of("small") > 0


def test_a_request_for_much_memory_is_not_overtaken_for_ever_by_small_ones() -> None:
    timed = TimedScheduler(FLAT, 16, kv_columns=1000)
    timed.submit(requests_of("small", 2000, new=10))
    timed.advance()
    timed.submit([tenant_request("big", "0", prompt=500, new=60)])
    steps = 0
    while not timed.rows_of("big") and steps < 100:
        timed.advance()
        steps += 1
    assert steps <= 12


def test_the_turn_of_a_big_request_that_is_cancelled_passes_on() -> None:
    timed = TimedScheduler(FLAT, 4)
    timed.submit(requests_of("small", 4, new=30))
    timed.advance()
    timed.submit([tenant_request("big", "0", n=4), tenant_request("late", "0")])
    timed.scheduler.cancel("small0")
    timed.advance()
    assert timed.rows_of("late") == 0
    assert timed.scheduler.cancel("big0")
    timed.advance()
    assert timed.rows_of("late") == 1


# --- prompts -----------------------------------------------------------------------------


def chunks_of(plan: StepPlan | None) -> list[tuple[str, int]]:
    assert plan is not None
    return [(chunk.row.request.id, chunk.count) for chunk in plan.chunks[plan.num_decode :]]


def test_a_prompt_does_not_wait_for_the_long_prompts_of_another_tenant() -> None:
    timed = TimedScheduler(ON_CPU)
    timed.submit(requests_of("b", 1, new=400))
    timed.advance()
    timed.submit(requests_of("a", 6, prompt=500, new=20))
    assert chunks_of(timed.advance())[0][0] == "a0"
    timed.submit([tenant_request("c", "0")])
    for _ in range(4):
        if "c0" in timed.first_token_after:
            break
        first = chunks_of(timed.advance())
        assert "c0" in [name for name, _ in first]
    assert "c0" in timed.first_token_after
    assert "a1" not in timed.first_token_after


# --- nobody is left out ------------------------------------------------------------------

TENANTS = st.lists(
    st.fixed_dictionaries(
        {
            "count": st.integers(1, 12),
            "prompt": st.integers(1, 60),
            "new": st.integers(1, 20),
            "n": st.integers(1, 6),
            "weight": st.sampled_from([0.1, 1.0, 4.0]),
            "priority": st.integers(-1, 1),
            "row_cap": st.sampled_from([None, 6, 7]),
            "at": st.integers(0, 30),
        }
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(mix=TENANTS)
def test_every_request_of_every_mix_ends_and_a_newcomer_waits_a_bounded_time(
    mix: list[dict[str, float]],
) -> None:
    timed = TimedScheduler(FLAT, 6, kv_columns=1200)
    newcomer, came, began = tenant_request("new", "0"), 15, None
    for step in range(6000):
        for index, facts in enumerate(mix):
            if facts["at"] == step:
                kept = {key: value for key, value in facts.items() if key not in ("at", "count")}
                timed.submit(requests_of(f"t{index}-", int(facts["count"]), **kept))
        if step == came:
            timed.submit([newcomer])
        timed.advance()
        if began is None and newcomer.id in timed.running():
            began = step
        if step > 30 and timed.scheduler.idle:
            break
    assert timed.is_empty()
    total = 1 + sum(int(facts["count"]) for facts in mix)
    assert sum(len(timed.ends(name)) for name in timed.events) == total
    # at worst each tenant has one more turn before it, and each turn empties the rows
    assert began is not None
    assert began - came <= (len(mix) + 2) * 30
    tenants = timed.scheduler.debug_state()["tenants"].values()
    assert all(tenant["running_share"] == tenant["waiting_share"] == 0 for tenant in tenants)
