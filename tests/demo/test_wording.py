"""The one wording of E2E inputs that a small model learns, and the inputs it learns it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.demo.e2e.slots import slots_of, wrong_slots
from app.demo.e2e.split import HELD_OUT_NAMES, told_records
from app.demo.e2e.wording import told
from app.demo.records import read_lines
from app.demo.substitution import NamePool

HELD_OUT = Path(__file__).parent / "data" / "restaurants-held-out.jsonl"


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, Any]]:
    """The held-out inputs of E2E's development split (CC BY-SA 4.0), with all their references."""
    return list(read_lines(HELD_OUT))


@pytest.fixture(scope="module")
def pool() -> NamePool:
    """Names of many kinds, among them one that is held out and one that says a slot."""
    return NamePool(["Cocum", "Red River", "Zoë's", "a : b", "Nørrebro"], ["oak", "lantern"])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "name : Aromi | eatType : pub | food : Thai | priceRange : £20-25"
            " | customer rating : average | area : riverside | familyFriendly : no | near : Ranch",
            "Aromi is a pub that serves Thai food in the £20-25 price range. It has an average"
            " customer rating. It is located in the riverside area and is not family friendly."
            " It is near Ranch.",
        ),
        (
            "name : Aromi | customer rating : 3 out of 5 | area : city centre",
            "Aromi is a place. It has a customer rating of 3 out of 5. It is located in the city"
            " centre.",
        ),
        (
            "name : Aromi | familyFriendly : yes | near : Ranch",
            "Aromi is a place. It is family friendly. It is near Ranch.",
        ),
    ],
)
def test_slots_are_told_in_the_order_of_the_input(source: str, text: str) -> None:
    assert told(slots_of(source)) == text


def test_every_slot_of_every_invented_input_is_told(
    held_out: list[dict[str, Any]], pool: NamePool
) -> None:
    records = told_records(held_out, pool)
    assert records == told_records(held_out, pool)
    for record in records:
        [target] = record["targets"]
        assert wrong_slots(record["input"], target) == ([], [])


def test_invented_inputs_have_no_held_out_name_or_combination(
    held_out: list[dict[str, Any]], pool: NamePool
) -> None:
    def values(source: str) -> list[tuple[str, str]]:
        return [slot for slot in slots_of(source).items() if slot[0] != "name"]

    unseen = [values(record["input"]) for record in held_out]
    assert unseen
    sources = [record["input"] for record in told_records(held_out, pool)]
    assert not {slots_of(source)["name"] for source in sources} & set(HELD_OUT_NAMES)
    assert not [source for source in sources if values(source) in unseen]
