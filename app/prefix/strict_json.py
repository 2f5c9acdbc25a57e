"""JSON objects written by strangers: no key twice, nothing deep, huge, infinite or unencodable."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

MAX_DEPTH = 8
"""Objects and lists inside each other."""

_MAX_DIGITS = 20
_MAX_SHOWN = 60


def parse_object(text: str, *, floats: bool) -> dict[str, Any]:
    """The object that `text` stands for; ValueError says what is wrong, as in "has ... twice".

    Numbers that are no integers are taken only with `floats`.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_int=_bounded_int,
            parse_float=_finite_float if floats else _no_float,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    _check(value, 1)
    return value


def printable(text: str) -> str:
    """A stranger's text as part of a message: printable and short."""
    return ascii(text[:_MAX_SHOWN])


def _check(value: Any, depth: int) -> None:
    """What holds for every string and every level of a value."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in value):
            raise ValueError(f"has a NUL or a lone surrogate in {printable(value)}")
    elif isinstance(value, list | dict):
        if depth > MAX_DEPTH:
            raise _too_deep()
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts:
            _check(part, depth + 1)


def _too_deep() -> ValueError:
    return ValueError(f"is nested too deeply; {MAX_DEPTH} levels are taken")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"has the key {printable(twice)} twice")
    return result


def _bounded_int(literal: str) -> int:
    if len(literal) > _MAX_DIGITS:
        raise ValueError(f"has an integer of {len(literal)} digits")
    if literal == "-0":
        raise ValueError("has the integer -0")
    return int(literal)


def _finite_float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"has the number {printable(literal)}, which is beyond all floats")
    return value


def _no_float(literal: str) -> NoReturn:
    raise ValueError(f"has the number {printable(literal)} where only integers stand")


def _no_constant(literal: str) -> NoReturn:
    raise ValueError(f"has {literal}, which is no number of JSON")
