"""K/V memory: what is reserved, which prefixes are shared, and when they go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.kv_cache.memory import (
    SHARED_LENGTH,
    KVMemory,
    Reservations,
    check_kv_needs,
    kv_needs,
)
from app.engine.kv_cache.slots import (
    FINE_STEPS,
    ClearSlot,
    LoadPrefixes,
    SlotTable,
    length_classes,
)
from app.engine.request import GenerationRequest
from app.engine.request_state import KVReservation, RequestState
from app.errors import InvalidRequest
from app.model.generation_defaults import ReplyFrame
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.engine.harness import make_request
from tests.engine.rows import TEXT

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
    return SlotTable(length_classes(700, FINE_STEPS), max_columns)


def hold(memory: KVMemory, request: GenerationRequest) -> KVReservation:
    """What a request of `memory` keeps besides its rows."""
    return memory.hold(request, kv_needs(request, memory.table)[0])


def reservations(rows: SlotTable, sources: SlotTable | None = None) -> Reservations:
    start = None if sources is None else 2
    return Reservations(EngineConfig(), TEXT, ReplyFrame(start), rows, sources)


def begun(held: Reservations, request: GenerationRequest) -> RequestState:
    """A request whose first row has entered."""
    entry = RequestState(request, 0, 0.0)
    held.measure(entry)
    held.enter(entry)
    return entry


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
    memory = KVMemory(row_table(), "decoder")
    request = request_of([prefix_of(length) for length in lengths])
    [needs] = kv_needs(request, memory.table)
    assert len(hold(memory, request).segments) == shared
    assert needs.slot == 10 + 20 + (0 if shared else sum(lengths))
    assert bool(needs.shared) is shared


def test_requests_with_the_same_prefixes_in_the_same_order_share_one_slot() -> None:
    table = row_table()
    memory = KVMemory(table, "decoder")
    a, b = prefix_of(LONG), prefix_of(LONG)
    [first], [again] = (hold(memory, request_of([a, b])).segments for _ in range(2))
    [turned] = hold(memory, request_of([b, a])).segments
    [alone] = hold(memory, request_of([a])).segments
    assert first is again
    assert first.num_users == 2
    assert len({first, turned, alone}) == len(occupants(table)) == 3
    assert [item.occupant for item in table.take_operations()] == [first, turned, alone]


def test_an_equal_prefix_that_is_another_object_is_not_shared() -> None:
    memory = KVMemory(row_table(), "decoder")
    [one], [other] = (hold(memory, request_of([prefix_of(LONG)])).segments for _ in range(2))
    assert one is not other


def test_a_shared_prefix_is_loaded_once_and_leaves_with_its_last_user() -> None:
    table = row_table()
    memory = KVMemory(table, "decoder")
    request = request_of([prefix_of(LONG)])
    holdings = [hold(memory, request) for _ in range(3)]
    [segment] = occupants(table)
    assert [type(item) for item in table.take_operations()] == [LoadPrefixes]
    for holding in holdings:
        assert occupants(table) == [segment]
        memory.let_go(holding)
    assert occupants(table) == []
    assert table.reserved_columns == 0
    assert table.take_operations() == ()
    [fresh] = hold(memory, request).segments
    assert fresh is not segment


def test_a_tainted_prefix_gets_no_new_users_and_its_slot_is_cleared() -> None:
    table = row_table()
    memory = KVMemory(table, "decoder")
    request = request_of([prefix_of(LONG)])
    first, second = (hold(memory, request) for _ in range(2))
    [segment] = first.segments
    segment.tainted = True
    memory.let_go(first)
    third = hold(memory, request)
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
    memory = KVMemory(table, "decoder")
    hold(memory, request_of([prefix := prefix_of(100)], n=2))
    assert table.reserved_columns == 128 + 32
    hold(memory, request_of([prefix], prompt=33, n=2))
    assert table.reserved_columns == 128 + 32 + 48


@pytest.mark.parametrize("length", [10, 100])
def test_fits_agrees_with_what_can_be_reserved(length: int) -> None:
    """A second user of a shared prefix needs less than the first."""
    request = request_of([prefix_of(length)])
    for columns in range(8, 400, 8):
        table = row_table(columns)
        held = reservations(table)
        entry = RequestState(request, 0, 0.0)
        held.measure(entry)
        count = 0
        while held.fits(entry):
            begun(held, request)
            count += 1
            assert table.reserved_columns <= columns
        each = table.reservation(30 if length >= LONG else length + 30)
        once = table.reservation(length) if length >= LONG else 0
        assert count == max(0, columns - once) // each


def test_needs_count_a_prefix_as_if_it_were_not_shared() -> None:
    held = reservations(row_table())
    request = request_of([prefix_of(100)])
    first, second = begun(held, request), begun(held, request)
    assert first.needs == second.needs == (1, 128 + 32)
    assert first.row_needs == (1, 32)


@pytest.mark.parametrize(
    ("changes", "row", "kept", "slot"),
    [
        ({}, 48, 0, 15 + 10 + 20),
        ({"n": 3}, 48, 32, 15 + 10 + 20),
        ({"beam": BeamParams(4), "n": 2}, 0, 32 + 4 * 32, 15 + 10),
    ],
    ids=["one row", "three rows", "beams"],
)
def test_beams_reserve_their_prompt_once_and_for_each_what_it_generates(
    changes: dict[str, object], row: int, kept: int, slot: int
) -> None:
    [needs] = kv_needs(request_of([prefix_of(15)], **changes), row_table())
    assert (needs.row, needs.kept, needs.slot) == (row, kept, slot)


@pytest.mark.parametrize(
    ("changes", "row", "kept", "slot"),
    [
        ({"n": 2}, 48, 32, 15 + 1 + 20),
        ({"beam": BeamParams(3)}, 0, 32 + 3 * 32, 15 + 1),
    ],
    ids=["rows", "beams"],
)
def test_with_an_encoder_rows_begin_with_the_start_token_alone(
    changes: dict[str, object], row: int, kept: int, slot: int
) -> None:
    needs, source = kv_needs(request_of([prefix_of(15, 7)], **changes), row_table(), source_table())
    assert (needs.row, needs.kept, needs.slot) == (row, kept, slot)
    assert (source.row, source.kept, source.slot) == (0, 32, 7 + 10)


def test_a_source_is_reserved_once_for_all_rows_behind_its_own_cross_prefix() -> None:
    rows, sources = row_table(), source_table()
    held = reservations(rows, sources)
    entry = begun(held, request_of([prefix_of(LONG, 7)], prompt=30, n=3))
    assert sources.reserved_columns == 40
    held.start_prompt(entry)
    for left in (2, 1):
        # its own prefix, a place for what all rows begin with, and the rows
        assert rows.reserved_columns == 64 + 32 + (3 - left) * 32
        entry.num_unstarted = left - 1
        held.enter(entry)
    assert rows.reserved_columns == 64 + 3 * 32
    decoder, cross = entry.reservations
    assert len(decoder.segments) == 1
    assert not cross.segments
    held.end(entry)
    assert rows.reserved_columns == sources.reserved_columns == 0


def test_integrity_fails_for_reservations_that_no_request_holds() -> None:
    rows = row_table()
    held = reservations(rows)
    held.check_integrity([])
    rows.reserve(32)
    with pytest.raises(RuntimeError, match="0 decoder columns are held, 32 reserved"):
        held.check_integrity([])


@pytest.mark.parametrize(("row_columns", "source_columns"), [(31, 999), (999, 31)])
def test_a_request_waits_until_both_memories_have_room(
    row_columns: int, source_columns: int
) -> None:
    request = request_of(prompt=20)
    entry = RequestState(request, 0, 0.0)
    roomy = reservations(row_table(32), source_table(32))
    roomy.measure(entry)
    assert roomy.fits(entry)
    rows, sources = row_table(row_columns), source_table(source_columns)
    assert not reservations(rows, sources).fits(entry)
    with pytest.raises(InvalidRequest, match="exceed the K/V memory of 31 columns"):
        check_kv_needs(request, rows, sources)


LENGTHS = st.lists(st.sampled_from((3, 30, 40, LONG, 90)), max_size=3)


@given(
    shelf=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=3),
    acts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.booleans()), max_size=30),
)
def test_reservations_that_end_in_any_order_leave_nothing(
    shelf: list[tuple[list[int], list[int]]], acts: list[tuple[int, int, bool]]
) -> None:
    rows, sources = row_table(), source_table()
    memories = reservations(rows, sources)
    stacks = [
        [prefix_of(*pair) for pair in zip(decoder, cross, strict=False)] for decoder, cross in shelf
    ]
    held: list[RequestState] = []
    for which, gone, tainted in acts:
        held.append(begun(memories, request_of(stacks[which % len(stacks)], n=2)))
        if gone < len(held):
            entry = held.pop(gone)
            for reservation in entry.reservations:
                for segment in reservation.segments:
                    segment.tainted |= tainted
            memories.end(entry)
        for table, place in ((rows, 0), (sources, 1)):
            used = [segment for entry in held for segment in entry.reservations[place].segments]
            assert set(occupants(table)) == set(used)
            assert all(used.count(segment) == segment.num_users for segment in used)
    for entry in held:
        memories.end(entry)
    for table in (rows, sources):
        table.check_integrity()
        assert table.reserved_columns == 0
        assert occupants(table) == []
