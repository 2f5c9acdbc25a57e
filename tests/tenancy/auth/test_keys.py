"""The form of keys: what is made is read again, and nothing that merely looks like it."""

from __future__ import annotations

import hashlib
import hmac
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tenancy.auth.keys import KEY_LENGTH, PATTERN, digest, is_kid, mint, read_kid

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def base62(number: int) -> str:
    """Six digits, as one would write them by hand."""
    return "".join(BASE62[number // 62**place % 62] for place in range(5, -1, -1))


def test_a_key_has_its_four_parts() -> None:
    key = mint()
    prefix, kid, secret, checksum = key.text.split("_")
    assert (prefix, kid, len(kid), len(secret)) == ("pfx", key.kid, 12, 32)
    assert set(kid + secret + checksum) <= set(BASE62)
    assert checksum == base62(zlib.crc32(f"pfx_{kid}_{secret}".encode()))
    assert len(key.text) == KEY_LENGTH


def test_a_key_is_read_again() -> None:
    for _ in range(200):
        key = mint()
        assert read_kid(key.text) == key.kid
        assert PATTERN.fullmatch(key.text)
        assert is_kid(key.kid)


def test_no_two_keys_are_alike() -> None:
    keys = [mint() for _ in range(500)]
    assert len({key.kid for key in keys}) == 500
    assert len({key.text[17:49] for key in keys}) == 500


def test_a_key_does_not_show_itself() -> None:
    key = mint()
    assert key.text not in f"{key!r} {key}"
    assert key.text[17:49] not in f"{key!r} {key}"


def test_any_changed_character_is_noticed() -> None:
    text = mint().text
    for place in range(len(text)):
        other = "0" if text[place] != "0" else "1"
        assert read_kid(text[:place] + other + text[place + 1 :]) is None


@pytest.mark.parametrize("change", ["{}x", " {}", "{} ", "{}\n", "x{}", "{}\0"])
def test_nothing_may_stand_around_a_key(change: str) -> None:
    assert read_kid(change.format(mint().text)) is None


@given(st.text(max_size=80))
def test_other_text_is_no_key(text: str) -> None:
    assert read_kid(text) is None


@pytest.mark.parametrize("digit", ["\u0661", "\uff11", "é", "_", "-"])
def test_only_ascii_letters_and_digits_make_a_key(digit: str) -> None:
    body = f"pfx_{'a' * 11}{digit}_{'b' * 32}"
    assert read_kid(f"{body}_{base62(zlib.crc32(body.encode()))}") is None


def test_the_digest_is_the_hmac_of_the_whole_key() -> None:
    text = mint().text
    expected = hmac.new(b"pepper", text.encode(), hashlib.sha256).hexdigest()
    assert digest(b"pepper", text) == expected
    assert digest(b"Pepper", text) != expected


@pytest.mark.parametrize("text", ["", "x" * 10_000, "\ud800", "ÿ" * 600])
def test_any_text_has_a_digest_of_the_same_length(text: str) -> None:
    assert len(digest(b"pepper", text)) == 64


@pytest.mark.parametrize("kid", ["", "a" * 11, "a" * 13, "a" * 11 + "\0", "a" * 11 + "/", "é" * 12])
def test_what_is_no_kid(kid: str) -> None:
    assert not is_kid(kid)
