"""Bounded reading of text files: UTF-8 with or without a byte order mark.

Lines end with LF or CRLF, or with CR in a file that has no LF where one must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from app.errors import InvalidRequest

_PEEK_BYTES = 1 << 12
_COMPRESSED = "unpack it, and give the file in it"
_BINARY: tuple[tuple[bytes, str, str], ...] = (
    (
        b"PAR1",
        "a Parquet file",
        "convert it with pandas:"
        " `read_parquet(FILE).to_json('data.jsonl', orient='records', lines=True)`",
    ),
    (b"ARROW1", "an Arrow file", "give the folder that `save_to_disk` of `datasets` made"),
    (b"PK\x03\x04", "a zip archive or an Excel file", "unpack it, or save the table as CSV"),
    (b"\x1f\x8b", "a gzip archive", _COMPRESSED),
    (b"BZh", "a bzip2 archive", _COMPRESSED),
    (b"\xfd7zXZ\x00", "an xz archive", _COMPRESSED),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _COMPRESSED),
)
"""How files begin that are no text, what they are, and what to do with them."""
_BOM = b"\xef\xbb\xbf"

MAX_LINES = 1_000_000
MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 256 << 20
"""Of a file that is one JSON or XML document."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, without its end.

    InvalidRequest if the file cannot be read, is not UTF-8, or has more than `MAX_LINES` lines or
    one of more than `MAX_LINE_BYTES`.
    """
    try:
        with path.open("rb") as file, _line_reader(file) as read_line:
            for number, line in _bounded_lines(read_line, path):
                if number == 1:
                    line = line.removeprefix(_BOM)
                yield number, _decoded(line.rstrip(b"\r\n"), f"{path}:{number}", "of the line")
    except OSError as error:
        raise unreadable(path, error) from error


def read_document(path: Path) -> bytes:
    """A whole file of at most `MAX_DOCUMENT_BYTES`, without byte order mark."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest(
            f"{path}: the file is longer than {MAX_DOCUMENT_BYTES} bytes; split it, or convert it"
            " to JSON lines"
        )
    return data.removeprefix(_BOM)


def read_text(path: Path) -> str:
    """The text of a whole file; bounds and errors as for `read_document`."""
    return _decoded(read_document(path), str(path), "of the file")


def peek(path: Path) -> str:
    """How a file begins, without blanks before its first character."""
    try:
        with path.open("rb") as file:
            data = file.read(_PEEK_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    return data.removeprefix(_BOM).decode("utf-8", errors="replace").lstrip()


def unreadable(path: Path, error: OSError) -> InvalidRequest:
    """The error of a file that the system does not let us read."""
    return InvalidRequest(f"{path}: cannot be read: {error.strerror}")


def _decoded(data: bytes, where: str, of_what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{where}: not UTF-8 at byte {error.start + 1} {of_what}; save the file as UTF-8"
        ) from error


def check_is_text(path: Path) -> None:
    """InvalidRequest names a file that is no text by its first bytes, and says what to do."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise unreadable(path, error) from error
    for magic, what, advice in _BINARY:
        if start.startswith(magic):
            raise InvalidRequest(f"{path}: this is {what}, not a text; {advice}")


@contextmanager
def _line_reader(file: BinaryIO) -> Iterator[Callable[[int], bytes]]:
    """What reads the next line with its end, or as many of its bytes as it is asked for."""
    begin = b""
    if file.seekable():
        begin = file.read(MAX_LINE_BYTES)
        file.seek(0)
    if b"\r" not in begin or b"\n" in begin:
        yield file.readline
        return
    with TextIOWrapper(file, encoding="latin-1", newline="\r") as text:
        yield lambda size: text.readline(size).encode("latin-1")


def _bounded_lines(read_line: Callable[[int], bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    for number in range(1, MAX_LINES + 2):
        line = read_line(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise InvalidRequest(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes")
        if number > MAX_LINES:
            raise InvalidRequest(f"{path}: more than {MAX_LINES} lines")
        yield number, line
