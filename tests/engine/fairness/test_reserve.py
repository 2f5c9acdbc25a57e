"""Whoever comes starts at once, whatever another tenant has taken: rows, memory, prompts, queue."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

from app.engine.config import EngineConfig
from app.engine.fairness.tenant_share import Stock
from app.engine.request import GenerationRequest
from tests.engine.timed import (
    FLAT,
    ON_CPU,
    Costs,
    TimedScheduler,
    requests_of,
    tenant_request,
)

RESERVE = 1 / 8
WARM_UP_S, ASKED = 6.0, 12


def kept(costs: Costs = ON_CPU, max_rows: int = 64, **facts: Any) -> TimedScheduler:
    """A scheduler as a server with keys has it."""
    return TimedScheduler(costs, max_rows, reserve=RESERVE, **facts)


# --- the rule ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "kept_rows"), [(64, 8), (63, 7), (16, 2), (8, 1), (3, 1), (2, 1), (1, 0), (4096, 512)]
)
def test_a_part_is_kept_of_all_that_can_be_divided(whole: int, kept_rows: int) -> None:
    assert EngineConfig(reserve=RESERVE).reserved(whole) == kept_rows
    assert EngineConfig().reserved(whole) == 0


def test_tenants_that_come_together_all_find_something() -> None:
    free, taken = 8, []
    for _ in range(4):
        held = 0
        while Stock(64, 8, free).allows(held, 1) or held == 0:
            held, free = held + 1, free - 1
        taken.append(held)
    assert taken == [4, 2, 1, 1]


def test_no_tenant_takes_more_of_the_reserve_than_its_share() -> None:
    assert Stock(64, 8, 8).allows(0, 2, fair=1 / 28)
    assert not Stock(64, 8, 8).allows(2, 1, fair=1 / 28)
    assert Stock(64, 8, 9).allows(50, 1, fair=1 / 32)


# --- a lone tenant -----------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [1, 2, 7, 24])
@pytest.mark.parametrize("wide", [False, True], ids=["many requests", "wide ones"])
def test_a_tenant_alone_never_has_the_last_rows(max_rows: int, wide: bool) -> None:
    timed = kept(FLAT, max_rows)
    most = EngineConfig(max_rows, reserve=RESERVE).max_tenant_rows
    shape = {"count": 4, "n": max_rows} if wide else {"count": 4 * max_rows}
    timed.submit(requests_of("a", **shape, new=30))
    for _ in range(300):
        timed.advance()
        assert timed.rows_of("a") <= most
    assert timed.is_empty()
    assert max(sum(got.values()) for _, got in timed.tokens) == most


def test_a_tenant_alone_never_has_the_last_of_the_memory() -> None:
    timed = kept(FLAT, 64, kv_columns=8000)
    timed.submit(requests_of("a", 30, prompt=300, new=80))
    for _ in range(300):
        timed.advance()
        assert timed.table.reserved_columns <= 7000
    assert timed.is_empty()


# --- a newcomer --------------------------------------------------------------------------


def first_tokens(timed: TimedScheduler, flood: Iterable[GenerationRequest]) -> list[float]:
    """Sorted times to first token of a tenant that asks now and then, once the flood is there."""
    chance = random.Random(1)
    waiting = iter(flood)
    asked: list[GenerationRequest] = []
    at = WARM_UP_S + chance.expovariate(1.5)
    while len(asked) < ASKED or asked[-1].id not in timed.first_token_after:
        assert timed.now < 200, "it starves"
        while (
            timed.scheduler.figures().num_waiting < 30 and (one := next(waiting, None)) is not None
        ):
            timed.submit([one])
        if timed.now >= at and len(asked) < ASKED:
            asked.append(tenant_request("new", str(len(asked)), new=6))
            timed.submit(asked[-1:], at)
            at += chance.expovariate(1.5)
        if timed.advance() is None:
            timed.now = max(timed.now, at)
    return sorted(timed.first_token_after[one.id] for one in asked)


@cache
def alone_times() -> list[float]:
    """Those of the tenant when nobody else is there."""
    return first_tokens(kept(), [])


def flood_of(*tenants: str, **shape: Any) -> Iterable[GenerationRequest]:
    """Requests without an end, of the tenants in turn."""
    return (
        tenant_request(tenants[index % len(tenants)], f"-{index}", **shape)
        for index in range(100_000)
    )


SHAPES = {
    "wide": {"n": 64, "new": 400},
    "wide, long prompts": {"n": 64, "new": 200, "prompt": 400},
    "narrow": {"new": 400},
    "narrow, short": {"new": 8},
    "long prompts": {"prompt": 600, "new": 4},
    "scored prompts": {"prompt": 600, "new": 1, "scored": True},
    "beams of 4": {"beams": 4, "new": 60},
    "beams of 32": {"beams": 32, "new": 20},
    "beams of 56": {"beams": 56, "new": 20},
    "heavy weight": {"new": 200, "weight": 10.0},
    "light weight": {"n": 64, "new": 200, "weight": 0.1},
    "row cap": {"n": 40, "new": 200, "row_cap": 40},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_beside_a_flood_of_another_the_first_token_takes_little_longer(
    shape: dict[str, Any],
) -> None:
    alone = alone_times()
    beside = first_tokens(kept(), flood_of("flood", **shape))
    # a step of all rows takes five times that of one
    assert beside[ASKED // 2] <= 6 * alone[ASKED // 2]
    if "weight" not in shape:
        assert beside[-1] <= 10 * alone[-1]


@pytest.mark.parametrize("count", [2, 3, 7, 20])
@pytest.mark.parametrize("shape", [{"n": 64, "new": 200}, {"new": 200}], ids=["wide", "narrow"])
def test_beside_floods_of_several_the_first_token_takes_little_longer(
    count: int, shape: dict[str, Any]
) -> None:
    alone = alone_times()
    floods = flood_of(*(f"flood{index}" for index in range(count)), **shape)
    beside = first_tokens(kept(), floods)
    assert beside[ASKED // 2] <= 6 * alone[ASKED // 2]


def test_beside_a_flood_for_all_the_memory_the_first_token_takes_little_longer() -> None:
    alone = alone_times()
    for shape in ({"prompt": 300, "new": 200}, {"n": 30, "prompt": 30, "new": 300}):
        beside = first_tokens(kept(kv_columns=8000), flood_of("flood", **shape))
        assert beside[ASKED // 2] <= 6 * alone[ASKED // 2]
        assert beside[-1] <= 10 * alone[-1]


@pytest.mark.parametrize(
    "shape",
    [{"prompt": 600, "new": 30}, {"prompt": 60, "new": 100}, {"n": 64, "new": 200}],
    ids=["long sources", "short sources", "wide"],
)
def test_beside_a_flood_of_sources_the_first_token_takes_little_longer(
    shape: dict[str, Any],
) -> None:
    alone = first_tokens(kept(source_columns=20_000), [])
    beside = first_tokens(kept(source_columns=20_000), flood_of("flood", **shape))
    assert beside[ASKED // 2] <= 6 * alone[ASKED // 2]
