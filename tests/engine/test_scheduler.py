"""The scheduler: who starts, how prompts are cut, how rows end and what that frees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.engine.config import EngineConfig
from app.engine.kv_cache.memory import kv_needs
from app.engine.kv_cache.slots import ClearSlot, CopyColumns, LoadPrefixes
from app.engine.request import (
    FinishReason,
    PromptScored,
    RequestFailed,
    RequestFinished,
    RowFinished,
    TextDelta,
    Work,
)
from app.engine.sequence import TokenSequence
from app.engine.step import StepPlan
from app.errors import DeadlineExceeded, GenerationFault
from app.model.text import Text
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.engine.harness import make_request
from tests.engine.rows import TEXT
from tests.engine.scripted import LETTER, ScriptedScheduler

END = 0
STATES = pytest.mark.parametrize("state", ["waiting", "prefilling", "decoding"])


def prompt(length: int) -> range:
    return range(1, 1 + length)


def chunks_of(plan: StepPlan | None) -> list[tuple[str, int]]:
    assert plan is not None
    return [(chunk.row.request.id, chunk.count) for chunk in plan.chunks]


def bring_to(scripted: ScriptedScheduler, state: str, **facts: object) -> None:
    """Request "it" in `state`, with "other" decoding beside it."""
    scripted.add(make_request("other", prompt(3), 100))
    scripted.step()
    scripted.add(make_request("it", prompt(50), 20, n=3, **facts))
    for _ in range({"waiting": 0, "prefilling": 1, "decoding": 6}[state]):
        scripted.step()


def narrow() -> ScriptedScheduler:
    """At most 17 tokens a step: one that decodes, 16 of a prompt."""
    return ScriptedScheduler(EngineConfig(max_step_tokens=17))


# --- admission ---------------------------------------------------------------------------


def test_rows_enter_in_the_order_of_their_requests_while_they_fit() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=5))
    scripted.add(*(make_request(name, prompt(2), 4, n=2) for name in "abcd"))
    scripted.step()
    assert scripted.running() == {"a", "b", "c"}
    assert (scripted.scheduler.figures().num_rows, scripted.scheduler.figures().num_waiting) == (
        5,
        1,
    )
    scripted.run()
    assert scripted.is_empty()
    assert [len(scripted.ends(name)) for name in "abcd"] == [1, 1, 1, 1]


def test_a_small_request_of_a_tenant_does_not_overtake_its_large_one() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=3))
    scripted.add(make_request("first", prompt(2), 9, n=2))
    scripted.add(make_request("large", prompt(2), 9, n=2), make_request("small", prompt(2), 9))
    scripted.step()
    scripted.step()
    assert scripted.running() == {"first", "large"}
    scripted.scheduler.cancel("first")
    scripted.step()
    assert scripted.running() == {"large", "small"}


def test_rows_that_enter_late_compute_no_prompt_and_get_all_their_tokens() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=3))
    scripted.add(make_request("first", prompt(2), 4, n=2), make_request("it", prompt(20), 6, n=5))
    scripted.run()
    assert sum(plan.num_prefill_tokens for plan in scripted.plans) == 2 + 20
    assert max(plan.num_decode + plan.num_prefill_tokens // 20 for plan in scripted.plans) <= 3
    ended = [event for event in scripted.events["it"] if isinstance(event, RowFinished)]
    assert sorted((event.index, event.num_tokens) for event in ended) == [(i, 6) for i in range(5)]
    assert scripted.is_empty()


def test_the_prompt_outlives_the_row_that_computed_it_as_long_as_rows_are_to_enter() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=1))
    scripted.add(make_request("it", prompt(40), 3, n=3))
    scripted.step()
    # the place of the prompt and that of the one row
    assert scripted.table.reserved_columns == 2 * 48
    copies = []
    while not scripted.scheduler.idle:
        plan = scripted.step()
        assert plan is not None
        copies += [item for item in plan.operations if isinstance(item, CopyColumns)]
    assert {(copy.occupant.index, copy.columns) for copy in copies} >= {(0, 40), (1, 40), (2, 40)}
    assert sum(plan.num_prefill_tokens for plan in scripted.plans) == 40
    assert scripted.is_empty()


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_request_of_which_rows_are_still_to_enter_can_be_cancelled(steps: int) -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=2))
    scripted.add(make_request("other", prompt(3), 30), make_request("it", prompt(20), 3, n=7))
    for _ in range(steps):
        scripted.step()
    assert scripted.scheduler.cancel("it")
    assert scripted.open_ids == ["other"]
    scripted.run()
    assert scripted.is_empty()
    assert not scripted.ends("it")


def test_a_request_of_which_rows_are_still_to_enter_fails_whole() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=2))
    scripted.add(make_request("it", prompt(20), 3, n=7))
    for _ in range(5):
        scripted.step()
    scripted.faults["it"] = GenerationFault("bad luck")
    scripted.step()
    failed = scripted.events["it"][-1]
    assert isinstance(failed, RequestFailed)
    assert failed.error is scripted.faults["it"]
    assert scripted.is_empty()


def test_a_request_waits_until_its_worst_case_fits_the_memory() -> None:
    scripted = ScriptedScheduler(kv_columns=96)
    scripted.add(make_request("a", prompt(20), 12), make_request("b", prompt(20), 13))
    scripted.add(make_request("c", prompt(10), 10), make_request("d", prompt(1), 5))
    scripted.step()
    assert scripted.table.reserved_columns == 32 + 48
    assert scripted.running() == {"a", "b"}
    scripted.scheduler.cancel("a")
    scripted.step()
    assert scripted.running() == {"b", "c"}
    assert scripted.table.reserved_columns == 48 + 32
    scripted.scheduler.cancel("b")
    scripted.step()
    assert scripted.running() == {"c", "d"}


def test_a_reservation_counts_prefixes_prompt_new_tokens_and_every_row() -> None:
    size = (1, 1, 30, 2)
    tensors = KeyValues(torch.zeros(size), torch.zeros(size))
    prefix = Prefix({"decoder": tensors}, PrefixMetadata(position_offset=0))
    request = make_request("it", prompt(3), 4, [prefix, prefix], n=2)
    scripted = ScriptedScheduler()
    assert kv_needs(request, scripted.table)[0].slot == 30 + 30 + 3 + 4
    scripted.add(request)
    scripted.step()
    assert scripted.table.reserved_columns == 2 * 96
    assert isinstance(scripted.plans[0].operations[0], LoadPrefixes)


# --- prompts in chunks -------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_and_sampled_after_the_last() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_step_tokens=20))
    scripted.add(make_request("it", prompt(50), 2))
    plans = [scripted.step() for _ in range(3)]
    assert [chunks_of(plan) for plan in plans] == [[("it", 20)], [("it", 20)], [("it", 10)]]
    assert [len(plan.chunks[0].samplers) for plan in plans if plan] == [0, 0, 1]
    scripted.run()
    assert sum(plan.num_prefill_tokens for plan in scripted.plans) == 50


def test_the_oldest_prompt_comes_first_and_what_is_left_goes_to_the_next() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_step_tokens=20))
    scripted.add(make_request("old", prompt(30), 1), make_request("new", prompt(14), 1))
    assert chunks_of(scripted.step()) == [("old", 20)]
    assert sorted(chunks_of(scripted.step())) == [("new", 10), ("old", 10)]
    assert chunks_of(scripted.step()) == [("new", 4)]


def test_rows_that_decode_get_a_token_in_every_step_of_a_long_prompt() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_step_tokens=20))
    scripted.add(make_request("old", prompt(3), 30))
    scripted.step()
    scripted.add(make_request("new", prompt(200), 1))
    while not scripted.ends("new"):
        plan = scripted.step()
        assert chunks_of(plan)[0] == ("old", 1)
        assert plan is not None
        assert plan.num_decode == 1
        assert 1 <= plan.num_prefill_tokens <= 19
    assert len(scripted.events["old"]) == len(scripted.plans)


def test_chunks_come_in_the_order_of_slots_and_decoding_rows_first() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_step_tokens=100))
    for name, length in (("long", 60), ("short", 3), ("middle", 40)):
        scripted.add(make_request(name, prompt(length), 50))
    scripted.step()
    scripted.step()
    scripted.add(make_request("late", prompt(5), 5))
    plan = scripted.step()
    assert plan is not None
    slots = [chunk.row.slot for chunk in plan.chunks]
    places = [(slot.length_class, slot.index) for slot in slots if slot]
    assert plan.num_decode == 3
    assert len(places) == 4
    assert places[:3] == sorted(places[:3])
    assert plan.chunks[3].row.request.id == "late"


def test_scored_prompt_positions_are_bounded_per_step() -> None:
    scripted = ScriptedScheduler(EngineConfig(score_chunk=8))
    for name in "ab":
        scripted.add(make_request(name, prompt(20), 1, echo=True, logprobs=0))
    scripted.add(make_request("plain", prompt(20), 1))
    scripted.run()
    for plan in scripted.plans:
        assert sum(chunk.count for chunk in plan.chunks if chunk.scores) <= 8
    assert chunks_of(scripted.plans[0]) == [("a", 8), ("plain", 20)]


def test_prompt_scores_come_once_before_any_text_one_per_token() -> None:
    scripted = ScriptedScheduler(EngineConfig(score_chunk=8))
    scripted.add(make_request("it", prompt(20), 2, n=2, echo=True, logprobs=0))
    scripted.run()
    first, *others = scripted.events["it"]
    assert isinstance(first, PromptScored)
    assert [score.token_id for score in first.scores] == list(prompt(20))
    assert [score.logprob for score in first.scores] == [None] + [-1.0] * 19
    assert not any(isinstance(event, PromptScored) for event in others)


def test_without_new_tokens_the_prompt_is_scored_and_nothing_is_generated() -> None:
    scripted = ScriptedScheduler()
    scripted.add(make_request("it", prompt(5), 0, echo=True, logprobs=0))
    scripted.run()
    kinds = [type(event) for event in scripted.events["it"]]
    assert kinds == [PromptScored, RowFinished, RequestFinished]
    assert scripted.is_empty()


# --- several rows ------------------------------------------------------------------------


def test_rows_of_a_request_share_one_prompt_and_fork_after_it() -> None:
    scripted = narrow()
    scripted.add(make_request("it", prompt(40), 5, n=3))
    for _ in range(3):
        scripted.step()
    assert [len(plan.chunks) for plan in scripted.plans] == [1, 1, 1]
    assert [row.index for row in scripted.plans[2].chunks[0].samplers] == [0, 1, 2]
    plan = scripted.step()
    assert plan is not None
    copies = [item for item in plan.operations if isinstance(item, CopyColumns)]
    assert [(copy.occupant.index, copy.columns) for copy in copies] == [(1, 40), (2, 40)]
    assert (plan.num_decode, plan.num_prefill_tokens) == (3, 0)
    scripted.run()
    assert sum(plan.num_prefill_tokens for plan in scripted.plans) == 40
    assert scripted.is_empty()


def test_rows_of_a_request_end_one_by_one_and_the_request_with_the_last() -> None:
    def draw(row: TokenSequence) -> int:
        return END if row.num_generated == row.index else LETTER

    scripted = ScriptedScheduler(draw=draw)
    scripted.add(make_request("it", prompt(3), 9, n=3, ignore_eos=False))
    rows_left = []
    while not scripted.scheduler.idle:
        scripted.step()
        rows_left.append(scripted.scheduler.figures().num_rows)
    assert rows_left == [2, 1, 0]
    ended = [event for event in scripted.events["it"] if isinstance(event, RowFinished)]
    assert [(event.index, event.num_tokens) for event in ended] == [(0, 1), (1, 2), (2, 3)]
    assert isinstance(scripted.events["it"][-1], RequestFinished)
    assert len(scripted.ends("it")) == 1
    assert scripted.is_empty()


# --- how rows end ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "reason", "num_tokens", "stop_string"),
    [
        ({"ignore_eos": False}, FinishReason.STOP, 4, None),
        ({"ignore_eos": True}, FinishReason.LENGTH, 9, None),
        ({"stop": ("aa",)}, FinishReason.STOP, 2, "aa"),
        ({"stop": ("aa",), "min_tokens": 3}, FinishReason.STOP, 3, "aa"),
        ({"stop": ("b",)}, FinishReason.LENGTH, 9, None),
    ],
    ids=["end token", "ignored end token", "stop string", "stop after min_tokens", "max_tokens"],
)
def test_a_row_ends_by_its_first_reason(
    sampling: dict[str, object], reason: FinishReason, num_tokens: int, stop_string: str | None
) -> None:
    scripted = ScriptedScheduler(draw=lambda row: END if row.num_generated == 3 else LETTER)
    scripted.add(make_request("it", prompt(3), 9, **sampling))
    scripted.run()
    [end] = [event for event in scripted.events["it"] if isinstance(event, RowFinished)]
    assert (end.reason, end.num_tokens, end.stop_string) == (reason, num_tokens, stop_string)
    assert scripted.is_empty()


def test_times_are_measured_from_submission() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=1))
    scripted.add(make_request("first", prompt(2), 2), make_request("it", prompt(2), 2), now=10.0)
    for now in (12.0, 13.0, 20.0, 30.0):
        scripted.step(now, seconds=0.5)
    [end] = scripted.ends("it")
    assert end == RequestFinished(10.0, 10.5, total_time=20.5, work=Work(2, 2))


# --- cancelling and deadlines ------------------------------------------------------------


@STATES
def test_cancelling_frees_rows_and_reservations_at_once_in_every_state(state: str) -> None:
    scripted = narrow()
    bring_to(scripted, state)
    alone = scripted.table.reservation(103)
    assert (scripted.table.reserved_columns > alone) == (state != "waiting")
    assert scripted.scheduler.cancel("it")
    assert scripted.running() == {"other"}
    figures = scripted.scheduler.figures()
    assert (figures.num_rows, figures.num_waiting) == (1, 0)
    assert scripted.table.reserved_columns == alone
    assert scripted.open_ids == ["other"]
    assert scripted.scheduler.cancel("it") == []
    told = len(scripted.events["it"])
    scripted.run()
    assert len(scripted.events["it"]) == told
    assert scripted.is_empty()


def test_cancelling_an_unknown_request_does_nothing() -> None:
    assert ScriptedScheduler().scheduler.cancel("nobody") == []


def test_cancelling_makes_room_for_waiting_requests() -> None:
    scripted = ScriptedScheduler(EngineConfig(max_rows=1))
    scripted.add(*(make_request(name, prompt(2), 50) for name in "abc"))
    scripted.step()
    scripted.scheduler.cancel("b")
    scripted.scheduler.cancel("a")
    scripted.step()
    assert scripted.running() == {"c"}


@STATES
def test_a_deadline_ends_its_own_request_in_every_state(state: str) -> None:
    scripted = narrow()
    bring_to(scripted, state, deadline=5.0)
    scripted.expire(4.999)
    assert scripted.ends("it") == []
    scripted.expire(5.0)
    [end] = scripted.ends("it")
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, DeadlineExceeded)
    assert scripted.running() == {"other"}
    scripted.expire(6.0)
    scripted.run()
    assert len(scripted.ends("it")) == 1
    [other] = scripted.ends("other")
    assert isinstance(other, RequestFinished)
    assert scripted.is_empty()


# --- faults ------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["prefilling", "decoding"])
def test_a_fault_ends_its_whole_request_once_and_its_slots_are_cleared(state: str) -> None:
    scripted = narrow()
    bring_to(scripted, state)
    held = {row.slot for rows in scripted.table.rows for row in rows if row.request.id == "it"}
    scripted.faults["it"] = GenerationFault("bad luck")
    scripted.step()
    assert scripted.running() == {"other"}
    failed = scripted.events["it"][-1]
    assert isinstance(failed, RequestFailed)
    assert failed.error is scripted.faults["it"]
    plan = scripted.step()
    assert plan is not None
    assert {item.target for item in plan.operations if isinstance(item, ClearSlot)} == held
    scripted.run()
    assert len(scripted.ends("it")) == 1
    assert isinstance(scripted.ends("other")[0], RequestFinished)
    assert scripted.is_empty()


def test_tokens_whose_text_fails_end_their_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = narrow()
    bring_to(scripted, "decoding")
    [row] = [row for rows in scripted.table.rows for row in rows if row.request.id == "other"]

    def fail(*_: object) -> None:
        raise ValueError("no such byte")

    monkeypatch.setattr(row.output, "push", fail)
    scripted.step()
    [end] = scripted.ends("other")
    assert isinstance(end, RequestFailed)
    assert "no such byte" in end.error.message
    assert scripted.running() == {"it"}
    scripted.run()
    assert isinstance(scripted.ends("it")[0], RequestFinished)


def test_prompt_scores_whose_text_fails_end_their_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def token_text(_: Text, token: int) -> str:
        if token == 7:
            raise ValueError("no such byte")
        return "a"

    monkeypatch.setattr(Text, "token_text", token_text)
    scripted = ScriptedScheduler()
    scripted.add(make_request("bad", (5, 6, 7), 3, n=2, echo=True, logprobs=0))
    scripted.add(make_request("good", (5, 6, 8), 3, echo=True, logprobs=0))
    scripted.run()
    [end] = scripted.ends("bad")
    assert isinstance(end, RequestFailed)
    assert isinstance(end.error, GenerationFault)
    assert scripted.events["bad"] == [end]
    assert isinstance(scripted.ends("good")[0], RequestFinished)
    assert scripted.is_empty()


# --- anything, in any order --------------------------------------------------------------

LIMITS = EngineConfig(max_rows=5, max_step_tokens=24, score_chunk=7)
KV_COLUMNS = 400


class AnyOrder(RuleBasedStateMachine):
    """Requests come, fail, go and end at random; the limits hold and all get one answer."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.scripted = ScriptedScheduler(LIMITS, kv_columns=KV_COLUMNS, draw=self.drawn)
        self.cancelled: set[str] = set()
        self.added = 0

    @staticmethod
    def drawn(row: TokenSequence) -> int:
        number = 31 * int(row.request.id) + 7 * row.index + 13 * row.num_generated
        return END if number % 9 == 0 else LETTER

    @rule(
        target=names,
        length=st.integers(1, 60),
        max_tokens=st.integers(0, 20),
        n=st.integers(1, 3),
        scores=st.booleans(),
    )
    def add(self, length: int, max_tokens: int, n: int, scores: bool) -> str:
        self.added += 1
        name = str(self.added)
        scoring = {"echo": True, "logprobs": 0} if scores else {}
        self.scripted.add(
            make_request(name, prompt(length), max_tokens, n=n, ignore_eos=False, **scoring)
        )
        return name

    @rule(name=consumes(names))
    def cancel(self, name: str) -> None:
        if self.scripted.scheduler.cancel(name):
            self.cancelled.add(name)

    @rule(name=consumes(names))
    def fail(self, name: str) -> None:
        self.scripted.faults[name] = GenerationFault("bad luck")

    @rule()
    def step(self) -> None:
        due = {
            row
            for rows in self.scripted.table.rows
            for row in rows
            if row.num_generated and not row.in_prefill
        }
        plan = self.scripted.step()
        chunks = plan.chunks if plan else ()
        assert len({chunk.row for chunk in chunks}) == len(chunks)
        assert due <= {chunk.row for chunk in chunks}
        if plan is not None:
            assert plan.num_prefill_tokens <= LIMITS.max_step_tokens - plan.num_decode
            assert sum(chunk.count for chunk in chunks if chunk.scores) <= LIMITS.score_chunk

    @invariant()
    def limits_hold(self) -> None:
        assert self.scripted.scheduler.figures().num_rows <= LIMITS.max_rows
        assert 0 <= self.scripted.table.reserved_columns <= KV_COLUMNS
        for rows in self.scripted.table.rows:
            for row in rows:
                assert row.num_cached <= row.max_columns

    def teardown(self) -> None:
        self.scripted.run()
        assert self.scripted.is_empty()
        for name in map(str, range(1, self.added + 1)):
            assert len(self.scripted.ends(name)) == (name not in self.cancelled)


AnyOrder.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_text_is_that_of_the_tokens_drawn() -> None:
    scripted = ScriptedScheduler()
    scripted.add(make_request("it", prompt(3), 3))
    scripted.run()
    texts = [event.text for event in scripted.events["it"] if isinstance(event, TextDelta)]
    assert "".join(texts) == TEXT.decode([LETTER] * 3)
