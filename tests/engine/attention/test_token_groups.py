"""Groups of a step's tokens: neighbouring slots together, padding bounded, no token twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.attention.backends import FUSED, PRODUCTS
from app.engine.attention.token_groups import Group, Grouping, Share
from app.engine.kv_cache.entries import Slot
from app.engine.kv_cache.pool import KVPool
from app.engine.kv_cache.slots import length_classes, slot_of
from app.engine.sequence import TokenSequence
from app.prefix.spec import ModuleShape
from tests.engine.rows import make_row

CPU, FP32 = torch.device("cpu"), torch.float32
CAPACITIES = length_classes(300)


def row_at(index: int, length_class: int = 0, columns: int = 10) -> TokenSequence:
    """A row that has computed so many columns."""
    row = make_row(range(columns))
    row.slot, row.num_computed = Slot(length_class, index), columns
    return row


def grouping(decode: str = "sdpa") -> Grouping:
    pool = KVPool(ModuleShape(1, 1, 8), CAPACITIES, 1 << 30, CPU, FP32)
    return Grouping(pool, CPU, FP32, {"sdpa": FUSED, "matmul": PRODUCTS}[decode])


def own(
    rows: Sequence[TokenSequence], counts: Sequence[int], *, joined: bool = False
) -> list[Share]:
    """Chunks of rows, laid end to end."""
    shares, first = [], 0
    for row, count in zip(rows, counts, strict=True):
        shares.append(Share(row, range(first, first + count), row.num_cached, joined))
        first += count
    return shares


def shared(rows: Sequence[TokenSequence], tokens: Sequence[Sequence[int]]) -> list[Share]:
    return [Share(row, part, joined=True) for row, part in zip(rows, tokens, strict=True)]


def slots_of(groups: Sequence[Group]) -> list[tuple[int, int, int]]:
    return [(group.length_class, group.slots.start, group.slots.stop) for group in groups]


def tokens_of(group: Group) -> list[int]:
    if isinstance(group.tokens, slice):
        return list(range(group.tokens.start, group.tokens.stop))
    return group.tokens.tolist()


def visible_of(group: Group) -> torch.Tensor:
    """[slots, padded or 1, columns], True where a token looks."""
    return group.mask[:, 0] == 0


# --- what goes together ------------------------------------------------------------------------


def test_neighbours_of_one_class_are_one_group() -> None:
    rows = [row_at(index) for index in range(3)] + [row_at(index, 2) for index in range(2)]
    groups = grouping().groups(own(rows, [1] * 5))
    assert slots_of(groups) == [(0, 0, 3), (2, 0, 2)]
    assert [tokens_of(group) for group in groups] == [[0, 1, 2], [3, 4]]


def test_a_slot_that_is_not_there_parts_its_neighbours() -> None:
    rows = [row_at(index) for index in (0, 1, 3)]
    assert slots_of(grouping().groups(own(rows, [1] * 3))) == [(0, 0, 2), (0, 3, 4)]


def test_chunks_share_a_group_up_to_twice_the_fewest_tokens() -> None:
    rows = [row_at(index) for index in range(4)]
    groups = grouping().groups(own(rows, [4, 8, 9, 5]))
    assert slots_of(groups) == [(0, 0, 2), (0, 2, 4)]
    assert [group.padded for group in groups] == [8, 9]


def test_what_is_shared_by_many_and_by_few_is_one_group_up_to_sixteen_times() -> None:
    rows = [row_at(index) for index in range(3)]
    tokens = [[0], range(1, 17), range(17, 34)]
    assert slots_of(grouping().groups(shared(rows, tokens))) == [(0, 0, 2), (0, 2, 3)]


def test_rows_that_share_and_rows_that_do_not_are_in_separate_groups() -> None:
    first, second = row_at(0), row_at(1)
    shares = [Share(first, range(1), 10), Share(second, range(1, 2), 10, joined=True)]
    groups = grouping().groups(shares)
    assert [group.joined for group in groups] == [False, True]


def test_two_parts_that_one_token_sees_are_never_one_group() -> None:
    rows = [row_at(index) for index in range(4)]
    groups = grouping().groups(shared(rows, [[0, 1], [1], [2], [0]]))
    assert slots_of(groups) == [(0, 0, 1), (0, 1, 4)]
    for group in groups:
        assert len(set(tokens_of(group))) == len(tokens_of(group))


# --- places ------------------------------------------------------------------------------------


def test_tokens_that_fill_all_places_in_order_are_a_slice() -> None:
    [group] = grouping().groups(own([row_at(0), row_at(1)], [3, 3]))
    assert group.gather == group.tokens == slice(0, 6)
    assert group.places is None


def test_tokens_that_fill_all_places_in_another_order_are_gathered() -> None:
    [group] = grouping().groups(shared([row_at(0), row_at(1)], [[2, 5], [1, 3]]))
    assert isinstance(group.gather, torch.Tensor)
    assert group.gather.tolist() == [[2, 5], [1, 3]]
    assert group.places is None
    assert tokens_of(group) == [2, 5, 1, 3]


def test_padding_repeats_a_token_of_the_same_slot() -> None:
    """So that nothing of another row, which may be NaN, is multiplied there."""
    [group] = grouping().groups(own([row_at(0), row_at(1)], [2, 3]))
    assert isinstance(group.gather, torch.Tensor)
    assert group.gather.tolist() == [[0, 1, 0], [2, 3, 4]]
    assert group.places is not None
    assert group.places.tolist() == [0, 1, 3, 4, 5]


# --- columns -----------------------------------------------------------------------------------


def test_a_chunk_is_causal_behind_what_its_row_has() -> None:
    rows = [row_at(0, columns=4), row_at(1, columns=2)]
    [group] = grouping().groups(own(rows, [2, 3]))
    assert group.columns == 6
    seen = visible_of(group).sum(-1).tolist()
    assert seen == [[5, 6, 6], [3, 4, 5]]
    assert visible_of(group)[1, 1].tolist() == [True] * 4 + [False] * 2


def test_what_is_shared_is_seen_whole_by_all_its_tokens_and_no_further() -> None:
    rows = [row_at(0, columns=4), row_at(1, columns=7)]
    [group] = grouping().groups(shared(rows, [[0, 1], [2]]))
    assert group.columns == CAPACITIES[0]
    assert visible_of(group).sum(-1).tolist() == [[4], [7]]
    assert bool(visible_of(group)[0, 0, :4].all())


@pytest.mark.parametrize(("decode", "columns"), [("sdpa", 10 + 1), ("matmul", CAPACITIES[0])])
def test_decoding_rows_look_at_whole_slots_where_their_kernel_wants_that(
    decode: str, columns: int
) -> None:
    rows = [row_at(0, columns=10), row_at(1, columns=3)]
    [group] = grouping(decode).groups(own(rows, [1, 1]))
    assert group.columns == columns
    assert visible_of(group).sum(-1).tolist() == [[11], [4]]


@settings(max_examples=60)
@given(
    facts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 40), st.integers(1, 25)),
        min_size=1,
        max_size=10,
        unique_by=lambda fact: fact[:2],
    ),
    joined=st.booleans(),
    decode=st.sampled_from(["sdpa", "matmul"]),
)
def test_every_token_of_any_chunks_is_in_one_group_with_its_own_columns(
    facts: list[tuple[int, int, int, int]], joined: bool, decode: str
) -> None:
    rows = [row_at(index, length_class, columns) for length_class, index, columns, _ in facts]
    counts = {row: count for row, (*_, count) in zip(rows, facts, strict=True)}
    rows.sort(key=slot_of)
    shares = own(rows, [counts[row] for row in rows], joined=joined)
    groups = grouping(decode).groups(shares)
    assert [token for group in groups for token in tokens_of(group)] == list(
        range(sum(counts.values()))
    )
    rest = list(shares)
    for group in groups:
        chosen = [rest.pop(0) for _ in range(group.slots.stop - group.slots.start)]
        sizes = [len(share.tokens) for share in chosen]
        assert max(sizes) <= 2 * min(sizes)
        assert [share.occupant.slot.index for share in chosen] == list(
            range(group.slots.start, group.slots.stop)
        )
        seen = visible_of(group)
        for place, share in enumerate(chosen):
            for at in range(len(share.tokens)):
                visible = share.occupant.num_cached + at + 1
                assert bool(seen[place, at, :visible].all())
                assert not bool(seen[place, at, visible:].any())
    assert rest == []
