"""`multipart/form-data` bodies with one file, read as they come and strictly.

The file is handed on piece by piece; everything else is bounded: the number of parts, the size of
their headers and of text fields. A form that does not follow RFC 7578 to the letter is refused.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect

from app.errors import FileTooLarge, InvalidRequest, RequestCancelled, UnsupportedMediaType

_MAX_PARTS = 16
_MAX_HEADERS = 4096
_MAX_TEXT = 4096
OVERHEAD = 1 << 16
"""Bytes that a form may have besides its file."""

_BOUNDARY = re.compile(
    r"multipart/form-data\s*;(?:.*;)?\s*boundary=(?:\"([^\"\r\n]{1,70})\"|([!-:<-~]{1,70}))\s*(?:;|$)",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r';\s*(name|filename)="((?:\\.|[^"\\])*)"', re.IGNORECASE)
_ENCODINGS = {"", "7bit", "8bit", "binary"}


@dataclass
class Form:
    """What a form holds besides the bytes of its file."""

    texts: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


@dataclass(frozen=True)
class _Head:
    """What the headers of one part say; `filename` is None for a text."""

    name: str
    filename: str | None


def boundary_of(content_type: str) -> bytes:
    """The boundary of a form's parts; UnsupportedMediaType if the body is no form."""
    found = _BOUNDARY.fullmatch(content_type[:512].strip())
    if found is None:
        raise UnsupportedMediaType(
            "send the file as multipart/form-data, as `curl -F file=@data.jsonl -F purpose=…` does"
        )
    return (found[1] or found[2]).encode("latin-1")


async def read_form(
    stream: AsyncIterator[bytes],
    boundary: bytes,
    write: Callable[[bytes], Awaitable[None]],
    *,
    file_field: str,
    max_bytes: int,
) -> Form:
    """Reads the form from `stream`; `write` gets the bytes of the part `file_field` in order.

    Raises InvalidRequest for what is no proper form or lacks the file, FileTooLarge for a file of
    more than `max_bytes`, RequestCancelled if the client goes away.
    """
    parser = _Parser(boundary, file_field)
    size, total = 0, 0
    try:
        async for received in stream:
            total += len(received)
            for piece in parser.feed(received):
                size += len(piece)
                if size > max_bytes:
                    raise FileTooLarge(f"a file has at most {max_bytes} bytes", param="file")
                await write(piece)
            if total - size > OVERHEAD + len(parser.rest):
                raise InvalidRequest("the form holds too much besides its file")
    except ClientDisconnect as gone:
        raise RequestCancelled("the client went away") from gone
    return parser.end()


class _Parser:
    """Tells the parts of a form from each other. `rest` is what is not understood yet."""

    def __init__(self, boundary: bytes, file_field: str) -> None:
        self.form = Form()
        self.rest = bytearray(b"\r\n")  # the first boundary begins a line, too
        self._delimiter = b"\r\n--" + boundary
        self._file_field = file_field
        self._state: Callable[[], tuple[bool, bytes]] = self._skip_to_first
        self._head: _Head | None = None
        self._text = bytearray()
        self._parts = 0
        self._ended = False

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Takes more of the body; the pieces of the file that are certain now."""
        self.rest += received
        going = True
        while going:
            going, piece = self._state()
            if piece:
                yield piece

    def end(self) -> Form:
        """The whole form; InvalidRequest if it was cut off or has no file."""
        if not self._ended:
            raise InvalidRequest("the form ends in the middle; send it whole")
        if self.form.filename is None:
            raise InvalidRequest(
                f"the form has no file in the field `{self._file_field}`", param=self._file_field
            )
        return self.form

    def _skip_to_first(self) -> tuple[bool, bytes]:
        wanted = self._delimiter
        if len(self.rest) < len(wanted):
            return False, b""
        if not self.rest.startswith(wanted):
            raise InvalidRequest("the form does not begin with its boundary")
        del self.rest[: len(wanted)]
        self._state = self._after_boundary
        return True, b""

    def _after_boundary(self) -> tuple[bool, bytes]:
        if len(self.rest) < 2:
            return False, b""
        mark = bytes(self.rest[:2])
        del self.rest[:2]
        if mark == b"--":
            self._ended = True
            self._state = self._drop
        elif mark == b"\r\n":
            self._parts += 1
            if self._parts > _MAX_PARTS:
                raise InvalidRequest(f"the form has more than {_MAX_PARTS} fields")
            self._state = self._headers
        else:
            raise InvalidRequest("a boundary of the form is followed by something else than CRLF")
        return True, b""

    def _headers(self) -> tuple[bool, bytes]:
        end = self.rest.find(b"\r\n\r\n", 0, _MAX_HEADERS)
        if end < 0:
            if len(self.rest) >= _MAX_HEADERS:
                raise InvalidRequest(f"a field of the form has {_MAX_HEADERS} bytes of headers")
            return False, b""
        self._head = self._checked(_read_head(bytes(self.rest[:end])))
        del self.rest[: end + 4]
        self._state = self._body
        return True, b""

    def _body(self) -> tuple[bool, bytes]:
        at = self.rest.find(self._delimiter)
        is_whole = at >= 0
        certain = at if is_whole else max(0, len(self.rest) - len(self._delimiter) + 1)
        piece = bytes(self.rest[:certain])
        del self.rest[: certain + (len(self._delimiter) if is_whole else 0)]
        if self._head is not None and self._head.filename is None:
            self._text += piece
            piece = b""
            if len(self._text) > _MAX_TEXT:
                raise InvalidRequest(f"a text field of the form has more than {_MAX_TEXT} bytes")
        if is_whole:
            self._end_part()
            self._state = self._after_boundary
        return is_whole, piece

    def _drop(self) -> tuple[bool, bytes]:
        self.rest.clear()
        return False, b""

    def _end_part(self) -> None:
        head = self._head
        if head is not None and head.filename is None:
            try:
                self.form.texts[head.name] = self._text.decode()
            except UnicodeDecodeError:
                raise InvalidRequest("a text field of the form is not UTF-8") from None
            self._text = bytearray()

    def _checked(self, head: _Head) -> _Head:
        is_file = head.name == self._file_field
        if head.name in self.form.texts or (is_file and self.form.filename is not None):
            raise InvalidRequest(f"the form has the field {ascii(head.name[:60])} twice")
        if is_file:
            self.form.filename = head.filename or "file"
            return _Head(head.name, self.form.filename)
        if head.filename is not None:
            raise InvalidRequest(
                f"a form has one file, in the field `{self._file_field}`; "
                f"{ascii(head.name[:60])} is another one"
            )
        return head


def _read_head(data: bytes) -> _Head:
    """The name of a field, and that of its file, from the headers of a part."""
    try:
        lines = data.decode().split("\r\n")
    except UnicodeDecodeError:
        raise InvalidRequest("the headers of a field of the form are not UTF-8") from None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.strip().lower() in headers:
            raise InvalidRequest("the headers of a field of the form are not well formed")
        headers[name.strip().lower()] = value.strip()
    if headers.get("content-transfer-encoding", "").lower() not in _ENCODINGS:
        raise InvalidRequest("an encoded field of the form is not taken; send it as it is")
    disposition = headers.get("content-disposition", "")
    parameters = {name.lower(): value for name, value in _PARAMETER.findall(disposition)}
    if not disposition.lower().startswith("form-data") or "name" not in parameters:
        raise InvalidRequest("a field of the form has no name")
    filename = parameters.get("filename")
    if filename is not None:
        filename = re.split(r"[/\\]", filename.replace('\\"', '"'))[-1]
    return _Head(parameters["name"], filename)
