"""Linearised inputs taken apart: fields with values, or triples."""

from __future__ import annotations

_BETWEEN = " | "
_COLON = " : "


def read_fields(source: str) -> list[tuple[str, str]]:
    """Name and value of each field of `name : X | eatType : Y`; none if the input is no table."""
    parts = [part.split(_COLON) for part in _parts(source)]
    if not all(len(part) == 2 for part in parts):
        return []
    return [(name.strip(), value.strip()) for name, value in parts]


def read_triples(source: str) -> list[tuple[str, str, str]]:
    """Subject, property and object of each part of `S : p : O | …`; none if one is no triple."""
    parts = [part.split(_COLON) for part in _parts(source)]
    if not all(len(part) >= 3 for part in parts):
        return []
    # a subject or an object may have a colon of its own: properties are single words
    return [(s.strip(), p.strip(), _COLON.join(rest).strip()) for s, p, *rest in parts]


def _parts(source: str) -> list[str]:
    return [part for part in source.strip().removeprefix("| ").split(_BETWEEN) if part.strip()]
