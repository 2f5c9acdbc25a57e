"""K/V memory: what is reserved, which prefixes are shared, and when they go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.decoding.beam_search import BeamParams
from app.engine.kv_cache.memory import SHARED_LENGTH, KVReservation, Memories, Memory
from app.engine.kv_cache.slots import (
    ClearSlot,
    LoadPrefixes,
    SlotTable,
    fine_length_classes,
    length_classes,
)
from app.engine.request import GenerationRequest
from app.errors import InvalidRequest
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.engine.harness import make_request

LONG = SHARED_LENGTH


def prefix_of(decoder: int = 0, cross: int = 0) -> Prefix:
    modules = {}
    for role, length in (("decoder", decoder), ("cross", cross)):
        if length:
            tensor = torch.zeros(1, 1, length, 2)
            modules[role] = KeyValues(tensor, tensor)
    return Prefix(modules, PrefixMetadata(position_offset=0))


def request_of(
    prefixes: Sequence[Prefix] = (), prompt: int = 10, max_tokens: int = 20, **changes: object
) -> GenerationRequest:
    return make_request("it", range(prompt), max_tokens, prefixes, **changes)


def row_table(max_columns: int = 10_000) -> SlotTable:
    return SlotTable(length_classes(700), max_columns)


def source_table(max_columns: int = 10_000) -> SlotTable:
    return SlotTable(fine_length_classes(700), max_columns)


def occupants(table: SlotTable) -> list[object]:
    return [item for slots in table.rows for item in slots]


# --- sharing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "shared"),
    [
        ((LONG - 1,), False),
        ((LONG,), True),
        ((LONG // 2, LONG // 2 - 1), False),
        ((LONG // 2, LONG // 2), True),
    ],
)
def test_prefixes_are_shared_from_a_length_on_that_counts_them_together(
    lengths: tuple[int, ...], shared: bool
) -> None:
    memory = Memory(row_table(), "decoder")
    request = request_of([prefix_of(length) for length in lengths])
    holding = memory.hold(request, [10])
    assert len(holding.segments) == shared
    assert memory.own_prefix(request) == (0 if shared else sum(lengths))


def test_those_who_hold_the_same_prefixes_in_the_same_order_share_one_place() -> None:
    table = row_table()
    memory = Memory(table, "decoder")
    a, b = prefix_of(LONG), prefix_of(LONG)
    [first], [again] = (memory.hold(request_of([a, b]), []).segments for _ in range(2))
    [turned] = memory.hold(request_of([b, a]), []).segments
    [alone] = memory.hold(request_of([a]), []).segments
    assert first is again
    assert first.num_users == 2
    assert len({first, turned, alone}) == len(occupants(table)) == 3
    assert [item.occupant for item in table.take_operations()] == [first, turned, alone]


def test_an_equal_prefix_that_is_another_object_is_not_shared() -> None:
    memory = Memory(row_table(), "decoder")
    [one], [other] = (memory.hold(request_of([prefix_of(LONG)]), []).segments for _ in range(2))
    assert one is not other


def test_a_shared_prefix_is_loaded_once_and_leaves_with_its_last_user() -> None:
    table = row_table()
    memory = Memory(table, "decoder")
    request = request_of([prefix_of(LONG)])
    holdings = [memory.hold(request, [10]) for _ in range(3)]
    [segment] = occupants(table)
    assert [type(item) for item in table.take_operations()] == [LoadPrefixes]
    for holding in holdings:
        assert occupants(table) == [segment]
        memory.let_go(holding)
    assert occupants(table) == []
    assert table.reserved_columns == 0
    assert table.take_operations() == ()
    [fresh] = memory.hold(request, [10]).segments
    assert fresh is not segment


def test_a_suspect_prefix_is_shared_with_nobody_new_and_its_place_is_cleared() -> None:
    table = row_table()
    memory = Memory(table, "decoder")
    request = request_of([prefix_of(LONG)])
    first, second = (memory.hold(request, [10]) for _ in range(2))
    [segment] = first.segments
    segment.tainted = True
    memory.let_go(first)
    third = memory.hold(request, [10])
    assert third.segments != second.segments == (segment,)
    table.take_operations()
    slot = segment.slot
    memory.let_go(second)
    assert ClearSlot(segment, slot) in table.take_operations()
    assert occupants(table) == list(third.segments)
    memory.let_go(third)
    assert table.reserved_columns == 0


# --- reservation -------------------------------------------------------------------------------


def test_the_columns_of_a_shared_prefix_are_reserved_once() -> None:
    table = row_table()
    memory = Memory(table, "decoder")
    request = request_of([prefix_of(100)])
    memory.hold(request, [32, 32])
    assert table.reserved_columns == 128 + 64
    memory.hold(request, [33])
    assert table.reserved_columns == 128 + 64 + 48


@pytest.mark.parametrize("length", [10, 100])
def test_what_fits_is_what_can_be_held(length: int) -> None:
    """A second user of a shared prefix needs less than the first."""
    request = request_of([prefix_of(length)])
    slots = [length + 30] if length < LONG else [30]
    for columns in range(0, 400, 8):
        table = row_table(columns)
        memory = Memory(table, "decoder")
        held = 0
        while memory.fits(request, slots):
            memory.hold(request, slots)
            held += 1
            assert table.reserved_columns <= columns
        each = table.reservation(slots[0])
        once = table.reservation(length) if length >= LONG else 0
        assert held == max(0, columns - once) // each


def test_the_most_that_a_request_needs_counts_its_prefix_as_if_nobody_shared_it() -> None:
    memory = Memory(row_table(), "decoder")
    request = request_of([prefix_of(100)])
    before = memory.most(request, [32])
    memory.hold(request, [32])
    assert memory.most(request, [32]) == before == 128 + 32


@pytest.mark.parametrize(
    ("changes", "slots"),
    [
        ({}, [15 + 10 + 20]),
        ({"n": 3}, [15 + 10 + 20] * 3),
        ({"beam": BeamParams(4), "n": 2}, [15 + 10, 20, 20, 20, 20]),
    ],
    ids=["one row", "three rows", "beams"],
)
def test_beams_reserve_their_prompt_once_and_for_each_what_it_generates(
    changes: dict[str, object], slots: list[int]
) -> None:
    assert Memories(row_table()).row_slots(request_of([prefix_of(15)], **changes)) == slots


@pytest.mark.parametrize(
    ("changes", "slots"),
    [({"n": 2}, [15 + 1 + 20] * 2), ({"beam": BeamParams(3)}, [15 + 1, 20, 20, 20])],
    ids=["rows", "beams"],
)
def test_with_an_encoder_rows_begin_with_the_start_token_alone(
    changes: dict[str, object], slots: list[int]
) -> None:
    memories = Memories(row_table(), source_table())
    assert memories.row_slots(request_of([prefix_of(15, 7)], **changes)) == slots


def test_a_source_is_reserved_once_for_all_rows_behind_its_own_cross_prefix() -> None:
    rows, sources = row_table(), source_table()
    memories = Memories(rows, sources)
    request = request_of([prefix_of(LONG, 7)], prompt=30, n=3)
    decoder, cross = memories.hold(request)
    assert sources.reserved_columns == 40
    assert not cross.segments
    # its own prefix, and a place for what all rows begin with
    assert rows.reserved_columns == 64 + 32
    for _ in range(3):
        memories.hold_row(request)
    assert rows.reserved_columns == 64 + 32 + 3 * 32
    assert len(decoder.segments) == 1
    decoder, cross = memories.let_prompt_go((decoder, cross))
    assert rows.reserved_columns == 64 + 3 * 32
    memories.let_rows_go(request, 3)
    memories.let_go((decoder, cross))
    assert rows.reserved_columns == sources.reserved_columns == 0


@pytest.mark.parametrize(("row_columns", "source_columns"), [(31, 999), (999, 31)])
def test_a_request_waits_until_both_memories_have_room(
    row_columns: int, source_columns: int
) -> None:
    request = request_of(prompt=20)
    assert Memories(row_table(32), source_table(32)).fits(request)
    memories = Memories(row_table(row_columns), source_table(source_columns))
    assert not memories.fits(request)
    with pytest.raises(InvalidRequest, match="exceed the K/V memory of 31 columns"):
        memories.check(request)


LENGTHS = st.lists(st.sampled_from((3, 30, 40, LONG, 90)), max_size=3)


@given(
    shelf=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=3),
    acts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.booleans()), max_size=30),
)
def test_whatever_comes_and_goes_in_any_order_nothing_is_left_at_the_end(
    shelf: list[tuple[list[int], list[int]]], acts: list[tuple[int, int, bool]]
) -> None:
    rows, sources = row_table(), source_table()
    memories = Memories(rows, sources)
    stacks = [
        [prefix_of(*pair) for pair in zip(decoder, cross, strict=False)] for decoder, cross in shelf
    ]
    held: list[tuple[KVReservation, KVReservation]] = []
    for which, gone, tainted in acts:
        held.append(memories.hold(request_of(stacks[which % len(stacks)], n=2)))
        if gone < len(held):
            holdings = held.pop(gone)
            for holding in holdings:
                for segment in holding.segments:
                    segment.tainted |= tainted
            memories.let_go(holdings)
        for table, place in ((rows, 0), (sources, 1)):
            used = [segment for pair in held for segment in pair[place].segments]
            assert set(occupants(table)) == set(used)
            assert all(used.count(segment) == segment.num_users for segment in used)
    for holdings in held:
        memories.let_go(holdings)
    for table in (rows, sources):
        table.check_integrity()
        assert table.reserved_columns == 0
        assert occupants(table) == []
