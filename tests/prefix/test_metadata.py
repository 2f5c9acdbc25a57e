"""Metadata: strings to checked values and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidPrefix
from app.prefix.metadata import parse_metadata, render_metadata
from app.prefix.prefix import PrefixMetadata
from tests.prefix.files import FINGERPRINT, METADATA

BOUNDS: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 1_000_000),
    "min_tokens": (0, 1_000_000),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 1_000_000),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "num_beams": (1, 64),
    "length_penalty": (-10, 10),
    "no_repeat_ngram_size": (0, 64),
}


def parse(length: int = 3, **changes: str) -> PrefixMetadata:
    return parse_metadata({**METADATA, **changes}, length)


def parse_decoding(value: Any) -> Any:
    return parse(decoding=json.dumps(value)).decoding


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
_NUMBERS = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
_METADATA = st.builds(
    PrefixMetadata,
    position_offset=st.integers(0, 3),
    base_model=st.none() | _TEXT,
    base_fingerprint=st.none() | st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    input_template=st.none()
    | st.tuples(_TEXT, _TEXT)
    .map("{input}".join)
    .filter(lambda template: template.count("{input}") == 1),
    decoding=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 2),
            "num_beams": st.integers(1, 64),
            "stop": st.lists(_TEXT.filter(bool), max_size=16),
        },
    ),
    provenance=st.dictionaries(
        _TEXT, _NUMBERS | _TEXT | st.lists(_NUMBERS, max_size=3), max_size=4
    ),
)


@given(_METADATA)
def test_what_is_written_is_read_back(metadata: PrefixMetadata) -> None:
    assert parse_metadata(render_metadata(metadata), 3) == metadata


def test_what_is_not_said_is_not_written() -> None:
    assert render_metadata(PrefixMetadata(3)) == METADATA
    assert parse() == PrefixMetadata(3)


@pytest.mark.parametrize("offset", [0, 1, 511, 512])
def test_the_offset_is_from_nought_to_the_length(offset: int) -> None:
    assert parse(512, position_offset=str(offset)).position_offset == offset
    with pytest.raises(InvalidPrefix, match="from 0 to 512"):
        parse(512, position_offset="513")


@pytest.mark.parametrize(
    "template",
    [
        "{input}",
        " {input} <|endoftext|>",
        "{{input}}",
        "{input} {0} {x.__class__} %s {}",
        "{input}\n\t{",
        "é{input}\N{GRINNING FACE}",
        "[" * 100 + "{input}",
        "{input}" + "a" * 4089,
    ],
)
def test_a_template_is_kept_to_the_letter(template: str) -> None:
    assert parse(input_template=template).input_template == template


@pytest.mark.parametrize("field", BOUNDS)
def test_decoding_is_taken_up_to_its_bounds_and_no_further(field: str) -> None:
    least, greatest = BOUNDS[field]
    assert parse_decoding({field: least}) == {field: least}
    assert parse_decoding({field: greatest}) == {field: greatest}
    step = 1 if isinstance(least, int) and isinstance(greatest, int) else 0.005
    for beyond in (least - step, greatest + step):
        with pytest.raises(InvalidPrefix, match=f"decoding's {field} is"):
            parse_decoding({field: beyond})


@pytest.mark.parametrize("field", BOUNDS)
@pytest.mark.parametrize("value", [True, False, None, "1", [1], {"a": 1}])
def test_decoding_takes_numbers_only(field: str, value: object) -> None:
    with pytest.raises(InvalidPrefix, match=f"decoding's {field} must be"):
        parse_decoding({field: value})


def test_there_are_no_other_fields_of_decoding() -> None:
    every = {field: least for field, (least, _) in BOUNDS.items()} | {"stop": ["."]}
    assert parse_decoding(every) == every
    with pytest.raises(InvalidPrefix, match="unknown field 'seed'; known are stop, max_tokens"):
        parse_decoding({**every, "seed": 1})


def test_sixteen_stops_of_256_characters_are_taken() -> None:
    stops = [character * 256 for character in "abcdefghijklmnop"]
    assert parse_decoding({"stop": stops}) == {"stop": stops}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("base_model", "m" * 256),
        ("base_model", "é" * 128),
        ("base_model", ""),
        ("base_fingerprint", FINGERPRINT),
        ("decoding", "{}" + " " * 8190),
        ("provenance", json.dumps({"n": "x" * (16384 - len('{"n": ""}'))})),
    ],
)
def test_values_of_just_the_allowed_size_are_taken(key: str, text: str) -> None:
    assert render_metadata(parse(**{key: text}))["format"] == "polyprefix/1"
    with pytest.raises(InvalidPrefix, match=f"{key} is longer than"):
        parse(**{key: text + "x" * 257})


def test_provenance_may_say_anything_in_json() -> None:
    said = {"loss": 1.5, "steps": [1, 2.0, None, True], "data": {"sha256": "ab" * 32}, "é": "[[[["}
    assert parse(provenance=json.dumps(said)).provenance == said


@pytest.mark.parametrize("key", ["owner", "Format", "decoding ", "", "__class__", "\u0441ross"])
def test_unknown_keys_are_refused_by_name(key: str) -> None:
    with pytest.raises(InvalidPrefix) as caught:
        parse(**{key: "x"})
    assert f"unknown key {ascii(key)}" in caught.value.message
