"""Values that outputs leave out or make up are counted by field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.evaluation.baselines import BASELINES, contribution_sentence, e2e_template
from app.evaluation.slots import SlotCounts, slot_errors

FULL = (
    "name : Café Brazil | eatType : coffee shop | food : Chinese | priceRange : less than £20"
    " | customer rating : low | area : riverside | familyFriendly : no | near : The Bakers"
)


def errors(source: str, text: str) -> dict[str, tuple[int, int]]:
    """Missing and invented values by field, of fields with errors."""
    report = slot_errors([source], [text])
    assert report is not None
    return {
        name: (each.missing, each.invented)
        for name, each in report.fields.items()
        if each.missing or each.invented
    }


@pytest.mark.parametrize(
    "text",
    [
        "Cafe Brazil is a cheap Chinese coffee shop by the river near The Bakers. It has a low"
        " customer rating and is not family-friendly.",
        "The inexpensive café Café Brazil at the riverside, close to the bakers, serves Chinese,"
        " has one star and is adults only.",
        "Café Brazil, a coffee shop near The Bakers in riverside with prices under £20, has poor"
        " reviews and Chinese food. Children are not welcome.",
    ],
)
def test_the_usual_ways_to_say_a_value_are_known(text: str) -> None:
    assert errors(FULL, text) == {}


def test_missing_and_invented_values_are_counted_by_field() -> None:
    text = "Cafe Brazil is an expensive Italian coffee shop in the city centre. It is kid friendly."
    assert errors(FULL, text) == {
        "food": (1, 1),
        "priceRange": (1, 1),
        "customer rating": (1, 0),
        "area": (1, 1),
        "familyFriendly": (1, 1),
        "near": (1, 0),
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("yes", "Aromi is kid friendly."),
        ("yes", "Aromi welcomes children."),
        ("yes", "Aromi is a family-friendly place."),
        ("no", "Aromi is not family-friendly."),
        ("no", "Aromi is non kids friendly."),
        ("no", "Aromi isn't a child friendly place."),
        ("no", "Aromi is for adults only."),
    ],
)
def test_family_friendly_and_its_negation_are_told_apart(value: str, text: str) -> None:
    source = "name : Aromi | familyFriendly : {}"
    assert errors(source.format(value), text) == {}
    other = {"yes": "no", "no": "yes"}[value]
    assert errors(source.format(other), text) == {"familyFriendly": (1, 1)}


def test_a_field_that_the_input_lacks_may_not_be_said() -> None:
    assert errors("name : Aromi", "Aromi is a pub with a high customer rating.") == {
        "eatType": (0, 1),
        "customer rating": (0, 1),
    }
    assert errors("name : Aromi", "Aromi is a restaurant.") == {}


def test_a_rating_out_of_five_is_not_five_stars() -> None:
    source = "name : Aromi | customer rating : 3 out of 5"
    assert errors(source, "Aromi has a rating of 3 out of 5 stars.") == {}
    assert errors(source, "Aromi is rated 5 out of 5.") == {"customer rating": (1, 1)}


def test_names_of_other_inputs_are_inventions() -> None:
    inputs = ["name : Aromi | near : Raja Indian Cuisine", "name : Cotto | near : The Bakers"]
    report = slot_errors(inputs, ["Aromi is near Raja Indian Cuisine.", "Aromi is near Cotto."])
    assert report is not None
    assert report.fields["name"] == SlotCounts(2, 0, 1)
    assert report.fields["near"] == SlotCounts(2, 1, 0)
    assert "food" not in report.fields, "a name says nothing of food"
    assert (report.error_rate, report.share_all_right) == (50, 50)
    assert report.as_dict()["fields"]["name"] == {"total": 2, "missing": 0, "invented": 1}  # type: ignore[index]


def test_triples_are_found_by_subject_and_object() -> None:
    source = ' | Aarhus_Airport : runwayLength : 2702.0 | Aarhus_Airport : city : "Århus, Denmark"'
    assert errors(source, "Aarhus airport in Arhus, Denmark has a runway of 2702 metres.") == {}
    assert errors(source, "The airport's runway is 2,702 long.") == {
        "subject": (1, 0),
        "object": (2, 0),
    }


def test_other_fields_are_found_by_their_words() -> None:
    assert errors("title : Emma | year : 1815", "Emma appeared in 1815.") == {}
    assert errors("title : Emma | year : 1815", "Emma appeared.") == {"year": (1, 0)}


def test_free_text_has_no_slots() -> None:
    assert slot_errors(["name : Aromi", "An abstract."], ["Aromi.", "x"]) is None


def test_the_template_says_every_slot() -> None:
    data = json.loads((Path(__file__).parent / "e2e_ten.json").read_text(encoding="utf-8"))
    inputs = [FULL, *(each["input"] for each in data["instances"])]
    report = slot_errors(inputs, list(map(e2e_template, inputs)))
    assert report is not None
    assert (report.error_rate, report.all_right) == (0, 11)


def test_the_template_knows_the_authors_names_of_fields() -> None:
    source = "name : Aromi | Type : coffee shop | price : cheap | family friendly : yes"
    assert slot_errors([source], [e2e_template(source)]) is not None
    assert e2e_template(source) == (
        "Aromi is a coffee shop. It has a price range of cheap and is family friendly."
    )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("An abstract.", "it is no table"),
        (" | Aarhus : city : Denmark", "it is no table"),
        ("title : Emma | year : 1815", "it has a field 'title'"),
    ],
)
def test_the_template_refuses_other_inputs(source: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=f"e2e-template.*{why}"):
        e2e_template(source)


def test_the_regular_expression_takes_the_contribution_or_the_first_sentence() -> None:
    abstract = "Models are slow. They need data, e.g. labels. Here, we also propose X. It works."
    assert contribution_sentence(abstract) == "Here, we also propose X."
    assert contribution_sentence("Models are slow. They wait.") == "Models are slow."
    assert contribution_sentence("In this work\nwe introduces a thing") == (
        "In this work we introduces a thing"
    )
    assert set(BASELINES) == {"e2e-template", "summary-regex"}
