"""Cursors of lists: opaque to clients, stable while rows come and go.

A cursor holds the key of the last row that was seen, so what is added or removed elsewhere in the
list neither repeats nor skips a row.
"""

from __future__ import annotations

import base64
import binascii

from app.errors import InvalidRequest

MAX_LIMIT = 100
_MAX_CURSOR = 200
_MAX_ID = 2**63 - 1


def check_limit(limit: int) -> int:
    """The limit itself, if it is from 1 to `MAX_LIMIT`; InvalidRequest otherwise."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be from 1 to {MAX_LIMIT}", param="limit")
    return limit


def make_cursor(key: str | int) -> str:
    """The cursor that continues after the row with this key."""
    return base64.urlsafe_b64encode(str(key).encode()).decode().rstrip("=")


def read_cursor(cursor: str, *, longest: int = _MAX_CURSOR) -> str:
    """The key that a cursor was made of; InvalidRequest if it was not made here.

    A cursor has at most `longest` characters.
    """
    refused = InvalidRequest("the cursor is not one that a list has given", param="cursor")
    if len(cursor) > longest:
        raise refused
    try:
        key = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        raise refused from None
    if not key or make_cursor(key) != cursor:
        raise refused
    return key


def read_number_cursor(cursor: str) -> int:
    """As `read_cursor`, for lists whose keys are numbers."""
    key = read_cursor(cursor)
    if not (key.isdecimal() and len(key) < 20 and int(key) <= _MAX_ID):
        raise InvalidRequest("the cursor is not one that this list has given", param="cursor")
    return int(key)
