"""Large contents as JSON, written in pieces.

The library's encoder keeps the interpreter's lock until it is done, in any thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_SLICE = 64
"""Items of a list that are written at once."""


def encode_json(content: Any) -> bytes:
    """Compact JSON in UTF-8; never NaN."""
    return b"".join(_pieces(content))


def _pieces(content: Any) -> Iterator[bytes]:
    if isinstance(content, dict):
        yield b"{"
        for number, (name, value) in enumerate(content.items()):
            yield (b"," if number else b"") + _dumps(name) + b":"
            yield from _pieces(value)
        yield b"}"
    elif isinstance(content, list) and content:
        yield b"["
        yield from _items(content)
        yield b"]"
    else:
        yield _dumps(content)


def _items(content: list[Any]) -> Iterator[bytes]:
    first = content[0]
    holds_lists = isinstance(first, list) or (
        isinstance(first, dict) and any(isinstance(value, list | dict) for value in first.values())
    )
    if holds_lists:
        for number, item in enumerate(content):
            yield b"," if number else b""
            yield from _pieces(item)
        return
    for start in range(0, len(content), _SLICE):
        yield (b"," if start else b"") + _dumps(content[start : start + _SLICE])[1:-1]


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
