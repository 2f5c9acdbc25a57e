"""How prefixes are named: what parses, what is refused, and that nothing becomes a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.prefix.reference import (
    MAX_PARTS,
    PrefixReference,
    check_alias,
    check_name,
    looks_hexadecimal,
    parse_model_field,
)

_DIGEST = "3f9a0c" + "0" * 58

_NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
_PARTS = st.builds(PrefixReference, _NAMES, st.none() | _NAMES, st.none() | _NAMES)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("e2e", [PrefixReference("e2e")]),
        ("e2e@stable", [PrefixReference("e2e", "stable")]),
        ("e2e@3f9a0c", [PrefixReference("e2e", "3f9a0c")]),
        (f"e2e@{_DIGEST}", [PrefixReference("e2e", _DIGEST)]),
        ("acme/e2e", [PrefixReference("e2e", None, "acme")]),
        ("acme/e2e@stable", [PrefixReference("e2e", "stable", "acme")]),
        ("e2e+alice", [PrefixReference("e2e"), PrefixReference("alice")]),
        (
            "alice+acme/e2e@beta+e2e",
            [
                PrefixReference("alice"),
                PrefixReference("e2e", "beta", "acme"),
                PrefixReference("e2e"),
            ],
        ),
        ("e2e+e2e", [PrefixReference("e2e"), PrefixReference("e2e")]),
        ("0", [PrefixReference("0")]),
        ("a" * 64, [PrefixReference("a" * 64)]),
    ],
)
def test_a_reference_is_taken_apart(text: str, parts: list[PrefixReference]) -> None:
    assert parse_model_field(text) == tuple(parts)


@given(st.lists(_PARTS, min_size=1, max_size=MAX_PARTS))
def test_what_is_written_is_read_back(parts: list[PrefixReference]) -> None:
    assert parse_model_field("+".join(map(str, parts))) == tuple(parts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "e2e+",
        "+e2e",
        "e2e++alice",
        "@",
        "e2e@",
        "@stable",
        "e2e@@stable",
        "e2e@a@b",
        "/e2e",
        "acme/",
        "a/b/e2e",
        "acme//e2e",
        "acme/e2e@b/c",
        "../e2e",
        "..",
        ".e2e",
        "-e2e",
        "_e2e",
        "E2E",
        "e2e ",
        " e2e",
        "e 2 e",
        "e2e\n",
        "e2e\0",
        "é2e",
        "e\u0435e",
        "２",
        "e2e@STABLE",
        "a" * 65,
        "e2e@" + "a" * 65,
        "a" * 65 + "/e2e",
        "e2e%2f..",
        "e2e\\..",
    ],
)
def test_what_breaks_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_model_field(text)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


def test_eight_prefixes_can_be_composed_and_no_more() -> None:
    assert len(parse_model_field("+".join(["a"] * MAX_PARTS))) == MAX_PARTS == 8
    with pytest.raises(InvalidRequest, match="at most 8"):
        parse_model_field("+".join(["a"] * 9))


def test_a_million_plus_signs_are_refused_in_few_words() -> None:
    with pytest.raises(InvalidRequest, match="at most 8"):
        parse_model_field("+" * 1_000_000)


def test_a_long_name_is_shown_cut() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_name("x" * 1_000_000)
    assert len(caught.value.message) < 300
    assert caught.value.param == "name"


@given(st.text(max_size=80))
def test_any_text_is_names_or_refused(text: str) -> None:
    try:
        parts = parse_model_field(text)
    except InvalidRequest:
        return
    for part in parts:
        for name in (part.name, part.selector or "a", part.tenant or "a"):
            assert check_name(name).isascii()
            assert "/" not in name
            assert not name.startswith(".")


@pytest.mark.parametrize("digits", ["3f9a0c", "000000", "abcdef", "a" * 64, _DIGEST])
def test_what_looks_hexadecimal_is_a_digest_and_no_alias(digits: str) -> None:
    assert looks_hexadecimal(digits)
    assert PrefixReference("e2e", digits).selects_digest
    with pytest.raises(InvalidRequest, match="cannot look like a digest") as caught:
        check_alias(digits)
    assert caught.value.param == "alias"


@pytest.mark.parametrize("alias", ["stable", "latest", "abcde", "3f9a0g", "3f9a-0c", "a.b_c"])
def test_what_does_not_look_hexadecimal_is_an_alias(alias: str) -> None:
    assert check_alias(alias) == alias
    assert not PrefixReference("e2e", alias).selects_digest


def test_without_a_selector_no_digest_is_selected() -> None:
    assert not PrefixReference("e2e").selects_digest
