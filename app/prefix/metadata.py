"""The metadata of a prefix file: from strings to checked values and back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from app.errors import InvalidPrefix
from app.prefix.prefix import PrefixMetadata, canonical_json
from app.prefix.strict_json import parse_object

FORMAT = "polyprefix/1"

_MAX_BYTES = {
    "format": 32,
    "base_model": 256,
    "base_fingerprint": 64,
    "position_offset": 8,
    "input_template": 4096,
    "decoding": 8192,
    "provenance": 16384,
}
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,7}")
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256

_BOUNDS: dict[str, tuple[type, float, float]] = {
    "max_tokens": (int, 1, 1_000_000),
    "min_tokens": (int, 0, 1_000_000),
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 1_000_000),
    "min_p": (float, 0, 1),
    "repetition_penalty": (float, 0.01, 10),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "num_beams": (int, 1, 64),
    "length_penalty": (float, -10, 10),
    "no_repeat_ngram_size": (int, 0, 64),
}
"""Decoding defaults that a file may set: kind, least and greatest value."""


def parse_metadata(raw: Mapping[str, str], length: int) -> PrefixMetadata:
    """Checked metadata of a prefix with `length` positions; InvalidPrefix says what is wrong."""
    for key, value in raw.items():
        if key not in _MAX_BYTES:
            known = ", ".join(_MAX_BYTES)
            _refuse(f"unknown key {ascii(key[:60])}; known are {known}")
        if len(value.encode()) > _MAX_BYTES[key]:
            _refuse(f"{key} is longer than {_MAX_BYTES[key]} bytes")
    if raw.get("format") != FORMAT:
        _refuse(f"format is {ascii(raw.get('format'))}; it must be {FORMAT!r}")
    fingerprint = raw.get("base_fingerprint")
    if fingerprint is not None and not _FINGERPRINT.fullmatch(fingerprint):
        _refuse("base_fingerprint is not 64 lower-case hexadecimal digits")
    return PrefixMetadata(
        position_offset=_parse_offset(raw.get("position_offset"), length),
        base_model=raw.get("base_model"),
        base_fingerprint=fingerprint,
        input_template=_check_template(raw.get("input_template")),
        decoding=parse_decoding(raw.get("decoding", "{}")),
        provenance=_parse_object("provenance", raw.get("provenance")),
    )


def render_metadata(metadata: PrefixMetadata) -> dict[str, str]:
    """The strings that `parse_metadata` reads."""
    rendered = {"format": FORMAT, "position_offset": str(metadata.position_offset)}
    for key in ("base_model", "base_fingerprint", "input_template"):
        value = getattr(metadata, key)
        if value is not None:
            rendered[key] = value
    for key in ("decoding", "provenance"):
        value = getattr(metadata, key)
        if value:
            rendered[key] = canonical_json(value)
    return rendered


def parse_decoding(text: str) -> dict[str, Any]:
    """Decoding defaults from JSON, checked as those of a file; InvalidPrefix says what is wrong."""
    return _check_decoding(_parse_object("decoding", text))


def _parse_offset(text: str | None, length: int) -> int:
    if text is None:
        _refuse(
            "position_offset is missing; it says by how many positions the prefix shifts the "
            "tokens (its length for prefixes of the authors or PEFT on GPT-2, 0 for adapters)"
        )
    if not _DECIMAL.fullmatch(text) or int(text) > length:
        _refuse(f"position_offset is {ascii(text)}; it must be an integer from 0 to {length}")
    return int(text)


def _check_template(template: str | None) -> str | None:
    if template is not None and template.count("{input}") != 1:
        _refuse("input_template must contain {input} exactly once")
    return template


def _parse_object(key: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        return parse_object(text, floats=True)
    except ValueError as error:
        _refuse(f"{key} {error}")


def _check_decoding(decoding: dict[str, Any]) -> dict[str, Any]:
    for key, value in decoding.items():
        if key == "stop":
            _check_stops(value)
        elif key == "early_stopping":
            if not isinstance(value, bool) and value != "never":
                _refuse('decoding\'s early_stopping must be true, false or "never"')
        elif key in _BOUNDS:
            _check_number(key, value)
        else:
            known = ", ".join(["stop", *_BOUNDS, "early_stopping"])
            _refuse(f"decoding has the unknown field {ascii(key[:60])}; known are {known}")
    return decoding


def _check_number(key: str, value: Any) -> None:
    kind, least, greatest = _BOUNDS[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind is int and not isinstance(value, int)) or not math.isfinite(value):
        _refuse(f"decoding's {key} must be {'an integer' if kind is int else 'a number'}")
    if not least <= value <= greatest:
        _refuse(f"decoding's {key} is {value}; it must be from {least} to {greatest}")


def _check_stops(value: Any) -> None:
    if not isinstance(value, list) or len(value) > _MAX_STOPS:
        _refuse(f"decoding's stop must be a list of at most {_MAX_STOPS} strings")
    for stop in value:
        if not isinstance(stop, str) or not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
            _refuse(f"decoding's stop strings have 1 to {_MAX_STOP_CHARACTERS} characters")


def _refuse(reason: str) -> NoReturn:
    raise InvalidPrefix(f"not a valid prefix file: metadata: {reason}")
