"""Names change in source and target together, or not at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.demo.records import Fact, attributes, respell_relation, surface
from app.demo.substitution import NamePool, substitute
from app.demo.synthetic import invent, linearise

POOL = NamePool(["Aarhus", "Mount Hood", "The Old Bell"], ["stone", "river", "copper", "field"])


@given(st.integers(0, 10_000))
def test_what_is_copied_in_the_original_is_copied_after_substitution(seed: int) -> None:
    rng = random.Random(seed)
    facts = (Fact("Alan_Bean", "born in", "Wheeler,_Texas"), Fact("Alan_Bean", "year", "1932"))
    target = "Alan Bean was born in Wheeler, Texas in 1932."
    changed, text = substitute(facts, target, POOL, rng, underscores=True)
    for fact in changed:
        assert surface(fact.subject) in text
        assert surface(fact.value) in text
    assert changed[0].subject == changed[1].subject
    assert "Alan" not in text
    assert [fact.relation for fact in changed] == ["born in", "year"]
    assert " " not in changed[0].subject


def test_what_the_target_does_not_mention_stays() -> None:
    facts = (Fact("Alan_Bean", "nationality", "United_States"),)
    changed, text = substitute(facts, "Alan Bean is American.", POOL, random.Random(1))
    assert changed[0].value == "United_States"
    assert "American" in text


def test_a_name_inside_another_name_is_left_alone() -> None:
    facts = (Fact("Aarhus Airport", "city", "Aarhus"),)
    changed, text = substitute(facts, "Aarhus Airport serves Aarhus.", POOL, random.Random(3))
    assert changed[0].value == "Aarhus"
    assert text.endswith("serves Aarhus.")
    assert text.startswith(surface(changed[0].subject))


def test_numbers_become_numbers_of_the_same_form() -> None:
    like = POOL.like("1,234.5", random.Random(0))
    assert [c for c in like if not c.isdigit()] == [",", "."]


def test_nothing_is_replaced_at_share_zero() -> None:
    facts = (Fact("Bean", "is", "here"),)
    assert substitute(facts, "Bean is here", POOL, random.Random(0), share=0.0) == (
        facts,
        "Bean is here",
    )


def test_a_pool_without_names_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        NamePool([], ["word"])


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("camel", "runwayLength"),
        ("words", "runway length"),
        ("snake", "runway_length"),
        ("title", "Runway length"),
        ("raw", "runwayLength"),
    ],
)
def test_relations_are_respelled(style: str, expected: str) -> None:
    assert respell_relation("runwayLength", style) == expected


def test_attribute_lists_name_every_value() -> None:
    facts = (Fact("Alan_Bean", "birthPlace", "Wheeler"), Fact("Alan_Bean", "year", '"1932"'))
    for seed in range(20):
        line = attributes(facts, random.Random(seed))
        assert line.count(" | ") == 2
        assert all(value in line for value in (": Alan Bean", ": Wheeler", ": 1932"))


@given(st.integers(0, 100_000))
def test_invented_texts_tell_every_value_that_is_not_yes_or_no(seed: int) -> None:
    item = invent(POOL, random.Random(seed))
    text = item.text.lower()
    kind = item.fields[1][1].lower()
    for _, value in item.fields:
        assert value in ("yes", "no") or value.lower() in text or value.lower() == kind
    assert item.text[0].isupper() or not item.text[0].isalpha()
    assert "{" not in item.text
    assert linearise(item.fields).count(" : ") >= len(item.fields)
