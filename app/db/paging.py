"""Pages of lists and their cursors: opaque to clients, stable while rows come and go.

A cursor holds the key of the last row that was seen, so what is added or removed elsewhere in the
list neither repeats nor skips a row.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import InvalidRequest

Item = TypeVar("Item")

MAX_LIMIT = 100
_MAX_CURSOR = 200
_MAX_ID = 2**63 - 1


@dataclass(frozen=True)
class Page(Generic[Item]):
    """A part of a list; `next_cursor` asks for the following part and is None at the end."""

    items: tuple[Item, ...]
    next_cursor: str | None


def check_limit(limit: int) -> int:
    """The limit itself, if it is from 1 to `MAX_LIMIT`; InvalidRequest otherwise."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be from 1 to {MAX_LIMIT}", param="limit")
    return limit


def make_cursor(key: str | int) -> str:
    """The cursor that continues after the row with this key."""
    return _to_base64(str(key).encode())


def read_cursor(cursor: str, *, longest: int = _MAX_CURSOR) -> str:
    """The key that a cursor was made of; InvalidRequest if it was not made here.

    A cursor has at most `longest` characters.
    """
    refused = InvalidRequest("the cursor is not one that a list has given", param="cursor")
    try:
        key = _from_base64(cursor if len(cursor) <= longest else "").decode("ascii")
    except ValueError:
        raise refused from None
    if not key or make_cursor(key) != cursor:
        raise refused
    return key


def make_number_cursor(number: int, owner: str) -> str:
    """The cursor that continues after a row with this number, sealed with the reader's owner key.

    Rows of all tenants are numbered in one series, so the numbers would say what others do.
    """
    tag = _keyed(number.to_bytes(8, "big"), owner)
    return _to_base64(tag + _xor(number.to_bytes(8, "big"), _keyed(tag, owner)))


def read_number_cursor(cursor: str, owner: str) -> int:
    """The number in a cursor; InvalidRequest if it was not made here for this owner."""
    refused = InvalidRequest("the cursor is not one that this list has given", param="cursor")
    try:
        sealed = _from_base64(cursor[:_MAX_CURSOR])
    except ValueError:
        raise refused from None
    tag, hidden = sealed[:8], sealed[8:16]
    number = int.from_bytes(_xor(hidden, _keyed(tag, owner)), "big")
    if number > _MAX_ID or make_number_cursor(number, owner) != cursor:
        raise refused
    return number


def _to_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _keyed(data: bytes, owner: str) -> bytes:
    return hashlib.blake2b(data, digest_size=8, key=owner.encode()).digest()


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=False))
