"""Sources wait in order, one pass at a time, and less is read while rows decode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.encoder import source_queue
from app.engine.encoder.source_queue import SourceQueue
from app.engine.kv_cache.entries import Source
from app.engine.kv_cache.slots import FINE_STEPS, SlotTable, length_classes
from app.engine.request import GenerationRequest
from tests.engine.harness import make_request

TABLE = SlotTable(length_classes(600, FINE_STEPS), 10_000)


def make_source(tokens: int) -> Source:
    return Source(make_request("it", range(tokens)))


def filled(*tokens: int, limit: int = 100) -> tuple[SourceQueue, list[Source]]:
    queue, made = SourceQueue(limit, TABLE), [make_source(count) for count in tokens]
    for source in made:
        queue.add(source)
    return queue, made


def test_a_pass_takes_the_oldest_until_the_next_one_does_not_fit() -> None:
    queue, made = filled(50, 30, 40, 10)
    assert queue.begin(0) == tuple(made[:2])
    queue.end(made[:2])
    assert queue.begin(0) == tuple(made[2:])


def test_a_source_of_more_tokens_than_a_pass_is_read_alone() -> None:
    queue, [long, short] = filled(500, 1)
    assert queue.begin(0) == (long,)
    queue.end([long])
    assert queue.begin(0) == (short,)


def test_no_pass_begins_while_one_is_under_way() -> None:
    queue, made = filled(60, 60)
    assert queue.begin(0) == (made[0],)
    assert queue.begin(0) == ()
    assert queue.num_waiting == 2
    queue.end([made[0]])
    assert queue.num_waiting == 1
    assert queue.begin(0) == (made[1],)


def test_a_pass_is_over_only_when_all_its_sources_have_ended() -> None:
    queue, [first, second, third] = filled(50, 50, 50)
    assert queue.begin(0) == (first, second)
    queue.end([second])
    assert queue.begin(0) == ()
    queue.end([first])
    assert queue.begin(0) == (third,)


def test_beside_rows_that_decode_a_pass_reads_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_queue, "_TOKENS_BESIDE_ROWS", 40)
    queue, [first, second, third] = filled(30, 30, 30)
    assert queue.begin(1) == (first,)
    queue.end([first])
    assert queue.begin(0) == (second, third)


def test_what_is_forgotten_is_not_read() -> None:
    queue, [first, second, third] = filled(60, 20, 20)
    queue.forget(second)
    assert queue.begin(0) == (first, third)
    queue.forget(first)
    assert queue.num_waiting == 2
    queue.end([first, third])
    assert queue.num_waiting == 0


@given(
    tokens=st.lists(st.integers(1, 150), max_size=20),
    forgotten=st.sets(st.integers(0, 19)),
    decoding=st.lists(st.integers(0, 3), min_size=20, max_size=20),
)
def test_every_source_is_read_once_in_order_whatever_is_forgotten(
    tokens: list[int], forgotten: set[int], decoding: list[int]
) -> None:
    queue, made = filled(*tokens)
    kept = [source for index, source in enumerate(made) if index not in forgotten]
    for index in forgotten & set(range(len(made))):
        queue.forget(made[index])
    read: list[Source] = []
    for num_decode in decoding:
        chosen = queue.begin(num_decode)
        assert len(chosen) == 1 or sum(source.num_tokens for source in chosen) <= 100
        read.extend(chosen)
        queue.end(chosen)
    assert read == kept


def test_whose_turn_it_is_is_read_first_and_equals_by_age() -> None:
    queue, made = filled(50, 30, 40, 20)
    turns = {50: 1.0, 30: 2.0, 40: 0.0, 20: 0.0}

    def turn(request: GenerationRequest) -> tuple[bool, float]:
        return False, turns[len(request.prompt_ids)]

    assert queue.begin(0, turn) == (made[2], made[3])
    queue.end(made[2:])
    assert queue.begin(0, turn) == (made[0], made[1])


def test_a_second_pass_begins_of_sources_to_which_the_first_gives_way() -> None:
    queue, [wide, other, narrow, late] = filled(90, 80, 20, 10)

    def turn(_: GenerationRequest) -> tuple[bool, float]:
        return False, 0.0

    def gives_way(request: GenerationRequest, others: list[GenerationRequest]) -> bool:
        return request is wide.request and others in ([narrow.request], [late.request])

    assert queue.begin(1, turn, gives_way) == (wide,)
    queue.forget(late)
    assert queue.begin(1, turn, gives_way) == (narrow,)
    queue.add(late)
    assert queue.begin(1, turn, gives_way) == ()
    assert queue.num_waiting == 4
    queue.end([narrow])
    assert queue.begin(1, turn, gives_way) == (late,)
    queue.end([late])
    queue.end([wide])
    assert queue.begin(1, turn, gives_way) == (other,)
