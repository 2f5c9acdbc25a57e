"""Where rows live in the K/V pool: dense slots in length classes.

A length class is a region of the pool whose slots all have the same number of columns. A row lives
in the smallest class that holds it and moves to the next one when it outgrows it, so that a step's
attention over one class never pays for a row of another length. Slots of a class are dense: when
one is freed, the last row of the class moves into it. What must be copied is recorded as pool
operations, in order, for the runner to carry out before its next forward pass.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.kv_cache.entries import KVEntry, Slot, Source

STEPS = (32, 48)
"""Class capacities are 32, 48, 64, 96, 128, 192, …: neighbours differ by at most a half."""

FINE_STEPS = (32, 40, 48, 56)
"""Capacities for entries that never grow, and so never move to another class."""


@dataclass(frozen=True, slots=True)
class CopyColumns:
    """Copy the first `columns` columns of `source` to `target`, all layers, for `occupant`."""

    occupant: KVEntry
    source: Slot
    target: Slot
    columns: int


@dataclass(frozen=True, slots=True)
class LoadPrefixes:
    """Copy the prefixes of `occupant`, in order, to the front of `target`."""

    occupant: KVEntry
    target: Slot


@dataclass(frozen=True, slots=True)
class ClearSlot:
    """Zero a slot that may hold NaN: stale, it would poison a successor behind any mask."""

    occupant: KVEntry
    target: Slot


@dataclass(frozen=True, slots=True)
class StoreSource:
    """Copy what an encoder made of a source to `target`, behind its prefixes.

    `encoded` is the runner's own (`app.engine.encoder.encoder_runner.Encoded`).
    """

    occupant: Source
    target: Slot
    encoded: object


PoolOperation = CopyColumns | LoadPrefixes | ClearSlot | StoreSource


def length_classes(max_columns: int, steps: Sequence[int] = STEPS) -> tuple[int, ...]:
    """Capacities in columns, ascending; the last one holds `max_columns`."""
    capacities: list[int] = []
    factor = 1
    while not capacities or capacities[-1] < max_columns:
        capacities.extend(step * factor for step in steps)
        factor *= 2
    while len(capacities) > 1 and capacities[-2] >= max_columns:
        capacities.pop()
    return tuple(capacities)


class SlotTable:
    """Rows in slots, the operations that keep slots dense, and the reservation of columns."""

    def __init__(self, capacities: Sequence[int], max_columns: int) -> None:
        self.capacities = tuple(capacities)
        self.rows: list[list[KVEntry]] = [[] for _ in self.capacities]
        self.max_columns = max_columns
        self.reserved_columns = 0
        self._operations: list[PoolOperation] = []

    @property
    def counts(self) -> tuple[int, ...]:
        """Occupants of each class."""
        return tuple(map(len, self.rows))

    @property
    def operations(self) -> tuple[PoolOperation, ...]:
        """The recorded operations, oldest first."""
        return tuple(self._operations)

    def class_for(self, columns: int) -> int:
        """Index of the smallest class with at least `columns` columns."""
        index = bisect_left(self.capacities, columns)
        if index == len(self.capacities):
            raise ValueError(f"no length class holds {columns} columns")
        return index

    def reservation(self, columns: int) -> int:
        """Columns that a row of at most `columns` columns sets aside."""
        return self.capacities[self.class_for(columns)]

    def can_reserve(self, columns: int) -> bool:
        """Whether that many more columns fit the K/V memory."""
        return self.reserved_columns + columns <= self.max_columns

    def reserve(self, columns: int) -> None:
        """Set columns aside for a row's worst case, or give them back if `columns` is negative.

        No row is ever preempted for lack of them.
        """
        self.reserved_columns += columns

    def place(self, row: KVEntry, columns: int, *, with_prefixes: bool = False) -> Slot:
        """Give `row` a slot in the class that holds `columns`; it may begin with its prefixes."""
        length_class = self.class_for(columns)
        row.slot = Slot(length_class, len(self.rows[length_class]))
        self.rows[length_class].append(row)
        if with_prefixes and row.prefixes:
            self._operations.append(LoadPrefixes(row, row.slot))
        return row.slot

    def place_encoded(self, source: Source, encoded: object) -> None:
        """Give a source a slot that begins with its prefixes and holds what was encoded."""
        self.place(source, source.num_cached, with_prefixes=True)
        self._operations.append(StoreSource(source, slot_of(source), encoded))

    def fork(self, source: KVEntry, target: KVEntry, columns: int, room: int) -> None:
        """Place `target` in a slot with `room` columns, beginning with a copy of `source`'s."""
        slot = self.place(target, room)
        self._operations.append(CopyColumns(target, slot_of(source), slot, columns))

    def overwrite(self, row: KVEntry, source: KVEntry) -> None:
        """Let `row` hold a copy of the columns of `source` in the place of its own."""
        length_class = slot_of(source).length_class
        if slot_of(row).length_class != length_class:
            self.release(row)
            self.place(row, self.capacities[length_class])
        copy = CopyColumns(row, slot_of(source), slot_of(row), source.num_cached)
        self._operations.append(copy)

    def make_room(self, row: KVEntry, columns: int) -> None:
        """Move `row` to a larger class if its slot has fewer than `columns` columns."""
        old = slot_of(row)
        if self.capacities[old.length_class] >= columns:
            return
        new = self.place(row, columns)
        self._operations.append(CopyColumns(row, old, new, row.num_cached))
        self._close_gap(old)

    def release(self, row: KVEntry) -> None:
        """Free the row's slot; it is zeroed for the next one if the row may have held NaN."""
        slot = row.slot
        if slot is None:
            return
        row.slot = None
        if row.may_hold_nan:
            self._operations.append(ClearSlot(row, slot))
        self._close_gap(slot)

    def take_operations(self) -> tuple[PoolOperation, ...]:
        """The recorded operations; the record is empty afterwards."""
        operations, self._operations = tuple(self._operations), []
        return operations

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every row is where its slot says."""
        for length_class, rows in enumerate(self.rows):
            for index, row in enumerate(rows):
                if row.slot != Slot(length_class, index):
                    raise RuntimeError(f"{row} is not at {length_class}:{index}")

    def _close_gap(self, slot: Slot) -> None:
        rows = self.rows[slot.length_class]
        last = rows.pop()
        if slot.index < len(rows):
            rows[slot.index] = last
            source = slot_of(last)
            last.slot = slot
            # of a row that has no columns yet the pool may not even have the slot
            if last.num_cached > 0:
                self._operations.append(CopyColumns(last, source, slot, last.num_cached))
            if last.may_hold_nan:
                self._operations.append(ClearSlot(last, source))


def slot_of(row: KVEntry) -> Slot:
    """The row's slot; ValueError if it has none."""
    if row.slot is None:
        raise ValueError("the row has no slot")
    return row.slot
