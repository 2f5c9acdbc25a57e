"""The K/V pool: zeroed, grown without losing anything, never larger than it may be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.kv_cache.entries import Slot
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import (
    ClearSlot,
    CopyColumns,
    LoadPrefixes,
    SlotTable,
    length_classes,
    slot_of,
)
from app.engine.sequence import TokenSequence
from app.errors import GenerationFault
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import ModuleShape
from tests.engine.rows import make_row

SHAPE = ModuleShape(layers=2, kv_heads=3, head_dim=4)
CLASSES = (8, 16, 32)
COLUMN = KVPool.column_bytes(SHAPE, torch.float32)


def make_pool(max_columns: int = 10_000) -> KVPool:
    return KVPool(SHAPE, CLASSES, max_columns * COLUMN, torch.device("cpu"), torch.float32)


def prefix_of(length: int, value: float) -> Prefix:
    size = (SHAPE.layers, SHAPE.kv_heads, length, SHAPE.head_dim)
    tensors = KeyValues(torch.full(size, value), torch.full(size, -value))
    return Prefix({"decoder": tensors}, PrefixMetadata(position_offset=length))


def row_with(*prefixes: Prefix) -> TokenSequence:
    return make_row(prefixes=prefixes)


def fill(pool: KVPool, slot: Slot, value: float) -> None:
    pool.ensure(slot)
    for layer in range(SHAPE.layers):
        pool.keys(slot.length_class, layer)[slot.index] = value
        pool.values(slot.length_class, layer)[slot.index] = -value


def carry_out(table: SlotTable, pool: KVPool) -> None:
    """The table's operations, as a step carries them out."""
    num_rows = [len(rows) for rows in table.rows]
    operations = table.take_operations()
    pool.fit(num_rows, operations)
    for operation in operations:
        pool.apply(operation)
        assert pool.nbytes <= 2 * pool.max_bytes
    pool.fit(num_rows)


def contents(pool: KVPool, slot: Slot) -> torch.Tensor:
    """Keys of one slot, [layers, kv_heads, columns, head_dim]."""
    return torch.stack(
        [pool.keys(slot.length_class, layer)[slot.index] for layer in range(SHAPE.layers)]
    )


def test_a_column_is_keys_and_values_of_one_token_in_all_layers() -> None:
    assert COLUMN == 2 * 2 * 3 * 4 * 4
    assert KVPool.column_bytes(SHAPE, torch.bfloat16) == COLUMN // 2


def test_nothing_is_allocated_before_it_is_used_and_new_memory_is_zero() -> None:
    pool = make_pool()
    assert pool.nbytes == 0
    pool.ensure(Slot(1, 0))
    assert pool.nbytes > 0
    assert float(contents(pool, Slot(1, 0)).abs().max()) == 0


def test_growing_keeps_what_is_there_and_zeroes_the_rest() -> None:
    pool = make_pool()
    for index in range(4):
        fill(pool, Slot(0, index), float(index + 1))
    pool.ensure(Slot(0, 37))
    for index in range(4):
        assert bool((contents(pool, Slot(0, index)) == index + 1).all())
    assert float(contents(pool, Slot(0, 37)).abs().max()) == 0


def test_copying_takes_the_first_columns_only_across_classes() -> None:
    pool, row = make_pool(), make_row()
    fill(pool, Slot(0, 0), 1.0)
    fill(pool, Slot(1, 3), 2.0)
    pool.apply(CopyColumns(row, Slot(0, 0), Slot(1, 3), 5))
    copied = contents(pool, Slot(1, 3))
    assert bool((copied[:, :, :5] == 1).all())
    assert bool((copied[:, :, 5:] == 2).all())


def test_clearing_zeroes_one_slot_and_no_other() -> None:
    pool, row = make_pool(), make_row()
    fill(pool, Slot(0, 0), 1.0)
    fill(pool, Slot(0, 1), float("nan"))
    pool.apply(ClearSlot(row, Slot(0, 1)))
    assert float(contents(pool, Slot(0, 1)).abs().max()) == 0
    assert float(contents(pool, Slot(0, 0)).min()) == 1


def test_prefixes_are_at_the_front_of_the_slot_in_their_order() -> None:
    pool = make_pool()
    pool.apply(LoadPrefixes(row_with(prefix_of(3, 1.0), prefix_of(2, 7.0)), Slot(0, 2)))
    columns = contents(pool, Slot(0, 2))[0, 0, :, 0].tolist()
    assert columns == [1.0, 1.0, 1.0, 7.0, 7.0, 0.0, 0.0, 0.0]
    assert float(pool.values(0, 1)[2, 0, 3, 0]) == -7.0


def test_a_prefix_that_does_not_fit_its_slot_is_an_error_that_names_it() -> None:
    prefix = prefix_of(9, 1.0)
    with pytest.raises(GenerationFault, match=prefix.digest[:12]):
        make_pool().apply(LoadPrefixes(row_with(prefix), Slot(0, 0)))


@settings(max_examples=60, deadline=None)
@given(
    budget=st.integers(2, 12),
    moves=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 32)), max_size=60),
)
def test_bytes_stay_within_the_budget_while_rows_come_grow_and_go(
    budget: int, moves: list[tuple[int, int]]
) -> None:
    max_columns = budget * CLASSES[-1]
    table, pool = SlotTable(CLASSES, max_columns), make_pool(max_columns)
    rows: dict[int, TokenSequence] = {}
    for name, columns in moves:
        if name not in rows:
            if not table.can_reserve(CLASSES[-1]):
                continue
            table.reserve(CLASSES[-1])
            rows[name] = make_row(generated=[1])
            table.place(rows[name], columns)
        elif columns < 5:
            table.release(rows.pop(name))
            table.reserve(-CLASSES[-1])
        else:
            table.make_room(rows[name], columns)
        carry_out(table, pool)
        for row in rows.values():
            pool.ensure(slot_of(row))
        assert pool.nbytes <= max_columns * COLUMN


def test_memory_of_short_rows_goes_to_long_ones_and_contents_stay() -> None:
    table, pool = SlotTable(CLASSES, 4 * 32), make_pool(4 * 32)
    rows = [make_row(name=str(index), generated=[1]) for index in range(4)]
    for columns in CLASSES:
        for value, row in enumerate(rows, 1):
            if row.slot is None:
                table.place(row, columns)
                fill(pool, slot_of(row), float(value))
                row.num_computed = 8
            table.make_room(row, columns)
            carry_out(table, pool)
            assert pool.nbytes <= 4 * 32 * COLUMN
    for value, row in enumerate(rows, 1):
        assert bool((contents(pool, slot_of(row))[:, :, :8] == value).all())


def test_with_memory_to_spare_nothing_is_given_back() -> None:
    pool = make_pool()
    pool.ensure(Slot(0, 9))
    before = pool.nbytes
    pool.fit((0, 0, 0))
    assert pool.nbytes == before


def test_classes_of_a_real_model_hold_its_longest_row() -> None:
    capacities = length_classes(1024 + 512)
    pool = KVPool(SHAPE, capacities, 1 << 30, torch.device("cpu"), torch.float32)
    pool.ensure(Slot(len(capacities) - 1, 0))
    assert pool.keys(len(capacities) - 1, 0).shape[2] == 1536
