"""Admission: what can never run is refused by name, and no more waits than may."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from app.engine.admission import Admission
from app.engine.config import EngineConfig
from app.engine.fairness.forecast import SchedulerFigures
from app.engine.kv_cache.slots import SlotTable, length_classes
from app.engine.request_state import RequestState
from app.errors import ContextLengthExceeded, InvalidRequest, Overloaded, TenantQueueFull
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec, ModuleShape
from tests.engine.harness import make_request
from tests.engine.rows import TEXT
from tests.engine.timed import tenant_request

CONTEXT = 128
SPEC = BaseModelSpec("tiny", "0" * 64, {"decoder": ModuleShape(1, 1, 2)}, CONTEXT)


def make_admission(kv_columns: int = 10_000, **limits: int) -> Admission:
    config = EngineConfig(**{"max_rows": 4, "max_prefix_length": 64, **limits})
    table = SlotTable(length_classes(config.max_prefix_length + CONTEXT), kv_columns)
    return Admission(config, SPEC, TEXT, table)


def prefix_of(length: int, offset: int) -> Prefix:
    tensors = KeyValues(torch.zeros(1, 1, length, 2), torch.zeros(1, 1, length, 2))
    return Prefix({"decoder": tensors}, PrefixMetadata(position_offset=offset))


def test_check_accepts_requests_that_just_fit() -> None:
    admission = make_admission()
    admission.check(make_request("it", range(100), 28, n=4))
    admission.check(make_request("it", [319], 7, [prefix_of(60, 60), prefix_of(4, 60)]))
    admission.check(make_request("it", [1], 127, [prefix_of(64, 0)], logit_bias={0: 1.0, 319: 1.0}))
    admission.check(make_request("it", [1], 0))


@pytest.mark.parametrize(
    ("prompt", "facts", "param", "message"),
    [
        ([], {}, "prompt", "no tokens"),
        ([1, 320], {}, "prompt", "0 to 319"),
        ([-1, 2], {}, "prompt", "0 to 319"),
        ([1], {"logit_bias": {320: 1.0}}, "logit_bias", "0 to 319"),
        ([1], {"logit_bias": {-1: 1.0}}, "logit_bias", "0 to 319"),
        ([1], {"n": 5}, "n", "from 1 to 4"),
        ([1], {"n": 0}, "n", "from 1 to 4"),
        ([1], {"prefixes": [prefix_of(33, 0)] * 2}, "model", "66 positions .* limit is 64"),
    ],
)
def test_check_names_the_field_of_a_request_that_can_never_run(
    prompt: list[int], facts: dict[str, object], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        make_admission().check(make_request("it", prompt, **facts))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("prompt_length", "max_tokens", "prefixes", "param"),
    [
        (100, 29, [], "max_tokens"),
        (128, 1, [], "prompt"),
        (60, 9, [prefix_of(60, 60)], "max_tokens"),
        (8, 1, [prefix_of(60, 60), prefix_of(4, 60)], "prompt"),
    ],
)
def test_positions_beyond_the_context_are_refused_and_the_reason_is_named(
    prompt_length: int, max_tokens: int, prefixes: list[Prefix], param: str
) -> None:
    request = make_request("it", [1] * prompt_length, max_tokens, prefixes)
    with pytest.raises(ContextLengthExceeded, match="128 positions") as caught:
        make_admission().check(request)
    assert caught.value.param == param


def test_rows_that_never_fit_the_memory_together_are_refused() -> None:
    admission = make_admission(kv_columns=96)
    admission.check(make_request("it", range(1, 21), 12, n=3))
    with pytest.raises(InvalidRequest, match="K/V memory of 96 columns") as caught:
        admission.check(make_request("it", range(1, 21), 13, n=3))
    assert caught.value.param == "n"


def test_no_more_requests_are_open_than_may_wait_and_run() -> None:
    admission = make_admission(max_waiting=2)
    for index in range(6):
        admission.enter(make_request(str(index), [1]))
    with pytest.raises(Overloaded, match="6 requests"):
        admission.enter(make_request("late", [1]))
    assert admission.num_open == 6
    admission.leave("3")
    admission.enter(make_request("late", [1]))
    assert admission.num_open == 6


def test_prompt_tokens_that_wait_are_bounded_and_given_back() -> None:
    admission = make_admission(max_waiting_tokens=100)
    admission.enter(make_request("a", [1] * 60))
    admission.enter(make_request("b", [1] * 40))
    with pytest.raises(Overloaded, match="100 prompt tokens"):
        admission.enter(make_request("c", [1]))
    admission.leave("b")
    admission.enter(make_request("c", [1] * 40))


def test_a_prompt_above_the_bound_may_enter_alone() -> None:
    admission = make_admission(max_waiting_tokens=10)
    admission.enter(make_request("long", [1] * 50))
    with pytest.raises(Overloaded):
        admission.enter(make_request("short", [1]))


def test_an_id_is_open_once_and_the_second_does_not_close_the_first() -> None:
    admission = make_admission(max_waiting_tokens=100)
    admission.enter(make_request("it", [1] * 60))
    with pytest.raises(InvalidRequest, match="'it' is open already"):
        admission.enter(make_request("it", [1]))
    assert admission.num_open == 1
    admission.leave("it")
    admission.enter(make_request("it", [1] * 100))


def test_leaving_twice_or_unknown_changes_nothing() -> None:
    admission = make_admission(max_waiting_tokens=10)
    admission.enter(make_request("it", [1] * 10))
    for name in ("nobody", "it", "it"):
        admission.leave(name)
    assert admission.num_open == 0
    admission.enter(make_request("it", [1] * 10))
    with pytest.raises(Overloaded):
        admission.enter(make_request("more", [1]))


def test_the_bound_holds_when_many_threads_enter_at_once() -> None:
    admission = make_admission(max_waiting=16)

    def enter(index: int) -> bool:
        try:
            admission.enter(make_request(str(index), [1]))
        except Overloaded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        entered = list(pool.map(enter, range(200)))
    assert sum(entered) == admission.num_open == 20


def test_figures_are_those_of_the_last_step() -> None:
    admission = make_admission()
    assert admission.figures == SchedulerFigures()
    admission.note_step(SchedulerFigures(3, 4))
    assert (admission.figures.num_waiting, admission.figures.num_rows) == (3, 4)


def test_a_tenants_full_queue_refuses_that_tenant_alone() -> None:
    admission = make_admission()
    active = [RequestState(tenant_request("a", f"active {at}"), 0, 0.0) for at in range(2)]
    admission.note_step(SchedulerFigures(1, 4, 1, tuple(active)))
    for index in range(2 + 3):
        admission.enter(tenant_request("a", str(index), queue_cap=3))
    with pytest.raises(TenantQueueFull, match="3 requests of this tenant may wait, and 3 do") as it:
        admission.enter(tenant_request("a", "late", queue_cap=3))
    assert (it.value.status, it.value.code, it.value.retry_after) == (429, "tenant_queue_full", 1.0)
    admission.enter(tenant_request("b", "0", queue_cap=1))
    admission.enter(tenant_request("c", "0"))
    assert admission.num_open == 7
    admission.leave("a0")
    admission.enter(tenant_request("a", "late", queue_cap=3))


def test_a_burst_that_finds_free_rows_may_exceed_the_queue_cap() -> None:
    admission = make_admission()
    for index in range(4 + 1):
        admission.enter(tenant_request("a", str(index), queue_cap=1))
    with pytest.raises(TenantQueueFull):
        admission.enter(tenant_request("a", "late", queue_cap=1))


def test_tenants_without_open_requests_leave_no_count_behind() -> None:
    admission = make_admission()
    for name in ("a", "b"):
        admission.enter(tenant_request(name, "0", queue_cap=5))
        admission.leave(f"{name}0")
    assert admission.debug_state() == {"open": {}, "tokens": {}}


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e4])
def test_check_refuses_an_invalid_weight(weight: float) -> None:
    with pytest.raises(InvalidRequest, match="weight is from"):
        make_admission().check(tenant_request("a", "0", weight=weight))


def test_more_rows_than_the_tenant_may_hold_are_refused() -> None:
    make_admission().check(tenant_request("a", "0", n=2, row_cap=2))
    with pytest.raises(InvalidRequest, match="n must be from 1 to 2, not 3") as caught:
        make_admission().check(tenant_request("a", "0", n=3, row_cap=2))
    assert caught.value.param == "n"
