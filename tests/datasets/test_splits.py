"""Subsets are drawn by seed and are nested; hold-outs part a data set by an attribute."""

from __future__ import annotations

import pytest

from app.datasets.example import Example
from app.datasets.splits import WEBNLG_UNSEEN, HoldOut, Selection, subset
from app.errors import InvalidRequest

EXAMPLES = [
    Example(f"input {at}", tuple(f"target {at} {n}" for n in range(at % 3 + 1)), at + 1)
    for at in range(40)
]


def pairs(examples: list[Example]) -> set[tuple[str, str]]:
    return {(each.input, target) for each in examples for target in each.targets}


def test_a_subset_has_as_many_pairs_as_asked_and_depends_on_the_seed() -> None:
    first, again, other = (subset(EXAMPLES, 20, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert len(pairs(first)) == 20
    assert pairs(first) < pairs(EXAMPLES)
    lines = [each.line for each in first]
    assert lines == sorted(set(lines))


def test_subsets_of_one_seed_are_nested() -> None:
    small, large = (subset(EXAMPLES, size, 5) for size in (10, 30))
    assert pairs(small) < pairs(large)


def test_a_subset_larger_than_the_data_is_refused() -> None:
    total = len(pairs(EXAMPLES))
    assert subset(EXAMPLES, total, 1) == EXAMPLES
    with pytest.raises(InvalidRequest, match=f"there are {total}"):
        subset(EXAMPLES, total + 1, 1)


def of(category: str, line: int) -> Example:
    return Example("x", ("y",), line, {"category": (category,)})


def test_a_hold_out_parts_the_data_by_a_field() -> None:
    data = [of("City", 1), of("Astronaut", 2), of("Airport", 3), of("Food", 4)]
    seen, unseen = HoldOut.parse("category=Astronaut, Airport").split(data)
    assert [each.line for each in seen] == [1, 4]
    assert [each.line for each in unseen] == [2, 3]


def test_webnlgs_unseen_categories_have_a_name() -> None:
    hold_out = HoldOut.parse("webnlg-unseen")
    assert hold_out == HoldOut("category", WEBNLG_UNSEEN)
    seen, unseen = hold_out.split([of("City", 1), of("Politician", 2)])
    assert (len(seen), len(unseen)) == (1, 1)


@pytest.mark.parametrize("text", ["category", "category=", "=x", "", "category=,"])
def test_a_hold_out_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must look like"):
        HoldOut.parse(text)


def test_a_hold_out_needs_the_field_and_both_parts() -> None:
    with pytest.raises(InvalidRequest, match="no field `topic`; they have category"):
        HoldOut.parse("topic=x").split([of("City", 1)])
    with pytest.raises(InvalidRequest, match="every example has category City"):
        HoldOut.parse("category=City").split([of("City", 1)])
    with pytest.raises(InvalidRequest, match="no example has category Food"):
        HoldOut.parse("category=Food").split([of("City", 1)])


def test_a_selection_holds_out_first_and_draws_from_what_is_left() -> None:
    kinds = [
        Example(each.input, each.targets, each.line, attributes={"kind": (str(each.line % 4),)})
        for each in EXAMPLES
    ]
    chosen = Selection(subset=12, subset_seed=3, hold_out=HoldOut.parse("kind=0"))
    train, held = chosen.split(kinds)
    assert len(pairs(train)) == 12
    assert {each.line % 4 for each in train} == {1, 2, 3}
    assert [each.line for each in held] == list(range(4, 41, 4))
    assert chosen.as_dict() == {"subset": 12, "subset_seed": 3, "hold_out": "kind=0"}
    assert Selection().split(kinds) == (kinds, [])
    assert Selection().as_dict() == {}
