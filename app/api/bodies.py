"""Request bodies: bounded and checked before any object is made of them.

Parsing keeps the event loop (and, since it holds the interpreter's lock, every thread) for as long
as the body has values. So they are counted first, in pieces between which others run.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping

from starlette.types import Message, Receive, Scope

from app.errors import FileTooLarge, InvalidRequest, UnsupportedMediaType

_UNSCANNED_BYTES = 1 << 16
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


async def checked_body(
    scope: Scope, receive: Receive, *, takes_file: bool, takes_form: bool = False
) -> Receive | None:
    """A `receive` that gives the body, read whole; None if the client goes away while sending it.

    The body is JSON or empty. A file or a form is left to the route, which counts it while it
    streams it to disk. Raises FileTooLarge, UnsupportedMediaType, InvalidRequest for what no route
    takes, and RateLimited if the tenant has no request left: then the content is not looked at.
    """
    headers = dict(scope["headers"])
    _check_encoding(headers, takes_form=takes_form)
    if takes_file or takes_form:
        return receive
    content = await _read(headers, receive, scope["state"]["limits"].max_body_bytes)
    if content is None:
        return None
    if content:
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise UnsupportedMediaType("send the body as JSON, with content-type: application/json")
        principal = scope["state"]["principal"]
        scope["state"]["limiter"].check(principal.tenant, principal.limits, rows=0)
        if b"\0" in content:
            raise InvalidRequest("the body is not JSON in UTF-8: it holds a NUL byte")
        if len(content) > _UNSCANNED_BYTES:
            await _scan(content)
    return _replay(content, receive)


def _replay(content: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then what the connection says."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": content, "more_body": False}

    return replayed


async def _read(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes | None:
    declared = headers.get(b"content-length", b"0")
    size = int(declared) if declared.isdigit() else 0
    content, more = bytearray(), True
    while more and size <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        size, more = len(content), message.get("more_body", False)
    if size > most:
        raise FileTooLarge(f"the body is larger than {most} bytes")
    return bytes(content)


def _check_encoding(headers: Mapping[bytes, bytes], *, takes_form: bool) -> None:
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise UnsupportedMediaType("compressed bodies are not taken; send the body as it is")
    is_form = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
    if is_form and not takes_form:
        raise UnsupportedMediaType("multipart bodies are not taken; send JSON or the raw file")


async def _scan(content: bytes) -> None:
    """Raise InvalidRequest if the body holds more than any route takes."""
    counts, start, in_string = Counter[str](), 0, False
    while start < len(content):
        end = _end_of_piece(content, start)
        in_string = _count(content[start:end], counts, in_string=in_string)
        for name, (most, what) in _BOUNDS.items():
            if counts[name] > most:
                raise InvalidRequest(f"the body holds more than {most:,} {what}; send less at once")
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
    # the parts between quotes are in turn outside a string, within one, outside, …
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
