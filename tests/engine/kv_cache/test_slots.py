"""Slots: rows stay dense, and carrying the operations out moves the right contents."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.engine.kv_cache.entries import Slot
from app.engine.kv_cache.slots import (
    ClearSlot,
    CopyColumns,
    LoadPrefixes,
    SlotTable,
    length_classes,
    slot_of,
)
from app.engine.sequence import TokenSequence
from tests.engine.rows import make_row

STALE = math.nan


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 48, 49, 64, 100, 1024, 1536, 1537, 9000])
def test_classes_grow_by_at_most_a_half_and_end_where_the_longest_row_fits(columns: int) -> None:
    classes = length_classes(columns)
    assert classes[-1] >= columns
    assert len(classes) == 1 or classes[-2] < columns
    assert all(
        smaller < larger <= smaller * 1.5
        for smaller, larger in zip(classes, classes[1:], strict=False)
    )


def test_a_row_goes_into_the_smallest_class_that_holds_it() -> None:
    table = SlotTable((32, 48, 64), 1000)
    assert [table.class_for(columns) for columns in (1, 32, 33, 48, 49, 64)] == [0, 0, 1, 1, 2, 2]
    assert table.reservation(33) == 48
    with pytest.raises(ValueError, match="65 columns"):
        table.class_for(65)


def test_reservations_are_bounded_and_given_back() -> None:
    table = SlotTable((32, 48), 100)
    table.reserve(64)
    assert table.can_reserve(36)
    assert not table.can_reserve(37)
    table.reserve(-64)
    assert table.can_reserve(100)
    table.check_integrity()


def test_the_last_row_moves_into_a_freed_slot() -> None:
    table = SlotTable((32,), 1000)
    rows = [make_row(name=str(index), generated=[1]) for index in range(3)]
    for row in rows:
        table.place(row, 10)
        row.num_computed = 3
    table.release(rows[0])
    assert table.rows == [[rows[2], rows[1]]]
    assert rows[2].slot == Slot(0, 0)
    assert rows[0].slot is None
    assert table.take_operations() == (CopyColumns(rows[2], Slot(0, 2), Slot(0, 0), 3),)
    assert table.take_operations() == ()


def test_releasing_twice_is_harmless() -> None:
    table = SlotTable((32,), 1000)
    row = make_row(generated=[1])
    table.place(row, 10)
    table.release(row)
    table.release(row)
    assert table.take_operations() == ()


@pytest.mark.parametrize("how", ["failed", "cancelled before its first token"])
def test_a_slot_that_may_hold_nan_is_cleared_before_anything_moves_in(how: str) -> None:
    table = SlotTable((32,), 1000)
    bad, last = make_row(generated=[1] if how == "failed" else []), make_row(generated=[1])
    for row in (bad, last):
        table.place(row, 10)
        row.num_computed = 3
    bad.tainted = how == "failed"
    table.release(bad)
    assert table.take_operations() == (
        ClearSlot(bad, Slot(0, 0)),
        CopyColumns(last, Slot(0, 1), Slot(0, 0), 3),
    )


def test_the_place_that_an_unproven_row_leaves_behind_is_cleared() -> None:
    table = SlotTable((32,), 1000)
    proven, may_hold_nan = make_row(generated=[1]), make_row()
    table.place(proven, 10)
    table.place(may_hold_nan, 10)
    may_hold_nan.num_computed = 2
    table.release(proven)
    assert table.take_operations() == (
        CopyColumns(may_hold_nan, Slot(0, 1), Slot(0, 0), 2),
        ClearSlot(may_hold_nan, Slot(0, 1)),
    )


def test_the_place_that_a_row_of_a_failed_request_leaves_behind_is_cleared() -> None:
    """Its rows are freed one after the other, and the last moves as the first one goes."""
    table = SlotTable((32,), 1000)
    first, last = make_row(generated=[1]), make_row(generated=[1])
    for row in (first, last):
        table.place(row, 10)
        row.num_computed, row.tainted = 3, True
    for row in (first, last):
        table.release(row)
    assert table.take_operations() == (
        ClearSlot(first, Slot(0, 0)),
        CopyColumns(last, Slot(0, 1), Slot(0, 0), 3),
        ClearSlot(last, Slot(0, 1)),
        ClearSlot(last, Slot(0, 0)),
    )


def test_a_row_that_has_nothing_yet_moves_without_a_copy() -> None:
    """Nothing has made its old slot exist in the pool."""
    table = SlotTable((32,), 1000)
    first, second = make_row(generated=[1]), make_row()
    table.place(first, 10)
    table.place(second, 10)
    table.release(first)
    assert second.slot == Slot(0, 0)
    assert not any(isinstance(item, CopyColumns) for item in table.take_operations())


def test_integrity_fails_for_a_row_that_is_not_where_its_slot_says() -> None:
    table = SlotTable((32,), 1000)
    row = make_row()
    table.place(row, 10)
    row.slot = Slot(0, 1)
    with pytest.raises(RuntimeError, match="is not at 0:0"):
        table.check_integrity()


class Contents(RuleBasedStateMachine):
    """A slot table against a dictionary of what each row should find in its slot.

    Operations are carried out on toy arrays of one number per column. Rows that are not proven may
    hold NaN; no row may ever see a NaN that it did not write itself, not even behind its columns.
    """

    rows = Bundle("rows")

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(length_classes(100), 10**6)
        self.arrays: dict[Slot, list[float]] = {}
        self.expected: dict[TokenSequence, list[float]] = {}
        self.poisoned: set[TokenSequence] = set()
        self.count = 0

    def slot_array(self, slot: Slot) -> list[float]:
        capacity = self.table.capacities[slot.length_class]
        return self.arrays.setdefault(slot, [0.0] * capacity)

    def write(self, row: TokenSequence, tokens: int) -> None:
        """Compute `tokens` tokens, as a forward pass writes their columns."""
        array = self.slot_array(slot_of(row))
        for _ in range(tokens):
            self.count += 1
            value = STALE if row in self.poisoned else float(self.count)
            array[row.num_computed] = value
            self.expected[row].append(value)
            row.num_computed += 1

    def carry_out(self) -> None:
        for operation in self.table.take_operations():
            target = self.slot_array(operation.target)
            if isinstance(operation, CopyColumns):
                source = self.slot_array(operation.source)
                target[: operation.columns] = source[: operation.columns]
            elif isinstance(operation, ClearSlot):
                target[:] = [0.0] * len(target)
            else:
                assert isinstance(operation, LoadPrefixes)

    @rule(target=rows, columns=st.integers(1, 60), tokens=st.integers(0, 20), bad=st.booleans())
    def admit(self, columns: int, tokens: int, bad: bool) -> TokenSequence:
        row = make_row(name=str(len(self.expected)), prompt=[1] * 20)
        self.table.place(row, max(columns, tokens), with_prefixes=True)
        self.expected[row] = []
        if bad:
            self.poisoned.add(row)
        self.carry_out()
        self.write(row, tokens)
        return row

    @rule(row=rows)
    def step(self, row: TokenSequence) -> None:
        """One decoding step; the first one proves the row or finds the poison."""
        if row.slot is None:
            return
        if row in self.poisoned:
            row.tainted = True
            self.table.release(row)
            return
        row.token_ids.append(1)
        self.table.make_room(row, row.num_computed + 1)
        self.carry_out()
        if row.num_computed < 90:
            self.write(row, 1)

    @rule(target=rows, row=rows, room=st.integers(0, 30))
    def fork(self, row: TokenSequence, room: int) -> TokenSequence:
        twin = make_row(name=f"twin-{len(self.expected)}", prompt=[1] * 20)
        if row.slot is None or row in self.poisoned or not row.num_generated:
            return twin
        twin.num_computed = row.num_computed
        twin.token_ids.append(1)
        self.expected[twin] = list(self.expected[row])
        self.table.fork(row, twin, row.num_computed, row.num_computed + room)
        return twin

    @rule(row=consumes(rows))
    def release(self, row: TokenSequence) -> None:
        self.table.release(row)

    @rule(first=consumes(rows), second=consumes(rows))
    def release_two_in_one_step(self, first: TokenSequence, second: TokenSequence) -> None:
        self.table.release(first)
        self.table.release(second)

    @invariant()
    def every_row_finds_its_own_contents(self) -> None:
        self.table.check_integrity()
        self.carry_out()
        for row, values in self.expected.items():
            if row.slot is None:
                continue
            array = self.slot_array(row.slot)
            if row in self.poisoned:
                continue
            assert array[: row.num_computed] == values[: row.num_computed]
            assert not any(math.isnan(value) for value in array)


Contents.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestContents = Contents.TestCase
