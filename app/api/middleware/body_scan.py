"""How much a JSON body holds, counted before any object is made of it.

Parsing keeps the event loop (and, since it holds the interpreter's lock, every thread) for as long
as the body has values. So they are counted first, in pieces between which others run.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping

from app.errors import InvalidRequest

UNSCANNED_BYTES = 1 << 16
"""A body of this size is parsed in a few milliseconds, whatever it holds."""

_PIECE = 1 << 16
_DIGITS = re.compile(rb"[0-9]{512}")
_PAIR, _QUOTE = b"\\\\", b'\\"'


_BOUNDS: Mapping[str, tuple[int, str]] = {
    "values": (139_264, "values"),
    "fractions": (16_384, "values that are neither texts nor whole numbers"),
    "strings": (32_768, "texts"),
    "containers": (16_384, "lists and objects"),
    "keys": (8192, "keys"),
    "escapes": (1 << 20, "backslashes"),
}
"""How much of each a body may hold: the token ids of one long prompt, as many texts and keys as any
route takes, and no more than is parsed in some 30 ms."""


async def check_body(content: bytes) -> None:
    """Raise InvalidRequest if the body holds more than any route takes."""
    if b"\0" in content:
        raise InvalidRequest("the body is not JSON in UTF-8: it holds a NUL byte")
    if len(content) <= UNSCANNED_BYTES:
        return
    counts, start, in_string = Counter[str](), 0, False
    while start < len(content):
        end = _end_of_piece(content, start)
        in_string = _count(content[start:end], counts, in_string=in_string)
        _check(counts)
        start = end
        await asyncio.sleep(0)


def _end_of_piece(content: bytes, start: int) -> int:
    """Where a piece ends that does not cut an escape in two."""
    end = min(start + _PIECE, len(content))
    tail = content[start:end]
    num_backslashes = len(tail) - len(tail.rstrip(b"\\"))
    return min(end + num_backslashes % 2, len(content))


def _count(piece: bytes, counts: Counter[str], *, in_string: bool) -> bool:
    """Add what the piece holds; whether it ends within a string."""
    plain = piece.replace(_PAIR, b"").replace(_QUOTE, b"")
    # what stands between quotes alternates: outside a string, within one, outside, …
    parts = plain.split(b'"')
    outside = b"".join(parts[1 if in_string else 0 :: 2])
    if _DIGITS.search(outside):
        raise InvalidRequest("the body holds a number of 512 digits or more")
    opened = outside.count(b"[") + outside.count(b"{")
    counts["values"] += outside.count(b",") + opened
    counts["fractions"] += sum(map(outside.count, (b".", b"e", b"E")))
    counts["strings"] += len(parts) // 2
    counts["containers"] += opened
    counts["keys"] += outside.count(b":")
    counts["escapes"] += piece.count(b"\\")
    return in_string == (len(parts) % 2 == 1)


def _check(counts: Counter[str]) -> None:
    for name, (most, what) in _BOUNDS.items():
        if counts[name] > most:
            raise InvalidRequest(f"the body holds more than {most:,} {what}; send less at once")
