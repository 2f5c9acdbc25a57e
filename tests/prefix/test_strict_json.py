"""Strict JSON: what it takes is what everybody else reads; the rest is refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.prefix.strict_json import MAX_DEPTH, parse_object, printable

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@given(st.dictionaries(_TEXT, _VALUES, max_size=4), st.booleans())
def test_what_was_written_is_read(value: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    if _depth(value) <= MAX_DEPTH:
        assert parse_object(text, floats=True) == value
    else:
        with pytest.raises(ValueError, match="too deeply"):
            parse_object(text, floats=True)


@given(st.text(st.sampled_from('{}[]":,\\u0dNaI1e9.- \n'), max_size=40), st.booleans())
def test_any_text_is_an_object_or_refused(text: str, floats: bool) -> None:
    try:
        value = parse_object(text, floats=floats)
    except ValueError:
        return
    assert value == json.loads(text)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("3", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{} {}", "is not JSON: Extra data"),
        ('{"a": 1, "a": 1}', "has the key 'a' twice"),
        ('{"a": 1, "\\u0061": 1}', "has the key 'a' twice"),
        ('{"b": [{"": 1, "": 2}]}', "has the key '' twice"),
        ('{"a": 1e999}', "beyond all floats"),
        ('{"a": -1e999}', "beyond all floats"),
        ('{"a": NaN}', "has NaN"),
        ('{"a": Infinity}', "has Infinity"),
        ('{"a": -0}', "the integer -0"),
        ('{"a": 123456789012345678901}', "an integer of 21 digits"),
        ('{"a": "\\ud83d"}', "lone surrogate"),
        ('{"\\ude00": 1}', "lone surrogate"),
        ('{"a": "\\u0000"}', "NUL"),
        ('{"a":' * 9 + "1" + "}" * 9, "too deeply"),
        ("[" * 100_000, "too deeply"),
        ('{"a":' * 100_000, "too deeply"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_object(text, floats=True)


@pytest.mark.parametrize("number", ["1.0", "1e3", "-0.0", "1E0"])
def test_floats_are_taken_only_where_they_may_stand(number: str) -> None:
    text = f'{{"a": {number}}}'
    assert parse_object(text, floats=True) == {"a": float(number)}
    with pytest.raises(ValueError, match="only integers stand"):
        parse_object(text, floats=False)


def test_a_surrogate_pair_is_a_character() -> None:
    assert parse_object('{"a": "\\ud83d\\ude00"}', floats=False) == {"a": "\N{GRINNING FACE}"}


def test_brackets_in_strings_are_not_nesting() -> None:
    text = json.dumps({"a": "[{" * 1000, "[" * 100: 1})
    assert parse_object(text, floats=False) == json.loads(text)


def test_eight_levels_are_taken() -> None:
    text = '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    assert parse_object(text, floats=False) == json.loads(text)


def test_a_strangers_text_is_shown_short_and_printable() -> None:
    assert printable("é\n\x1b" + "x" * 100) == ascii("é\n\x1b" + "x" * 57)
