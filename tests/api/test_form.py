"""Forms with one file: read in any pieces, strictly, in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.form import Form, boundary_of, read_form
from app.errors import FileTooLarge, InvalidRequest, PolyprefixError, UnsupportedMediaType

TYPE = "multipart/form-data; boundary=XX"


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX" + end


def text(name: bytes, value: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"\r\n\r\n' + value


def file(data: bytes, filename: bytes = b"train.jsonl", name: bytes = b"file") -> bytes:
    head = b'Content-Disposition: form-data; name="' + name + b'"; filename="' + filename + b'"\r\n'
    return head + b"Content-Type: application/octet-stream\r\n\r\n" + data


def read(pieces: list[bytes], content_type: str = TYPE, most: int = 10**6) -> tuple[Form, bytes]:
    written = bytearray()

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def write(piece: bytes) -> None:
        written.extend(piece)

    async def main() -> Form:
        boundary = boundary_of(content_type)
        return await read_form(stream(), boundary, write, file_field="file", max_bytes=most)

    return asyncio.run(main()), bytes(written)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    for start, end in zip(edges, edges[1:], strict=False):
        yield data[start:end]


@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from([b"\r\n", b"--XX", b"\r", b"-", b"\n--X", b"a"])).map(b"".join),
    ).filter(lambda data: b"\r\n--XX" not in b"\r\n" + data),
    places=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_a_form_reads_the_same_in_whatever_pieces_it_comes(
    content: bytes, places: list[int]
) -> None:
    body = form(text(b"purpose", b"fine-tune"), file(content), text(b"user", "Zoë".encode()))
    found, written = read(list(cut(body, places)))
    assert written == content
    assert found == Form({"purpose": "fine-tune", "user": "Zoë"}, "train.jsonl")


@pytest.mark.parametrize(
    "filename", ["train.jsonl", "naïve “data” — 日本.jsonl", 'quo"te.jsonl', "a b;c=d.jsonl"]
)
def test_what_a_usual_client_sends_is_understood(filename: str) -> None:
    request = httpx.Request(
        "POST",
        "http://x/",
        data={"purpose": "fine-tune", "expires_after[seconds]": "3600"},
        files={"file": (filename, b"a\r\nb\n" * 9)},
    )
    found, written = read([request.read()], request.headers["content-type"])
    assert written == b"a\r\nb\n" * 9
    assert found.texts == {"purpose": "fine-tune", "expires_after[seconds]": "3600"}
    assert found.filename == filename.replace('"', "%22")


def test_a_file_is_known_without_the_folders_that_it_lay_in() -> None:
    for path in (b"../../etc/train.jsonl", b"C:\\data\\train.jsonl"):
        assert read([form(file(b"a", path))])[0].filename == "train.jsonl"


def test_an_empty_file_is_a_file() -> None:
    found, written = read([form(file(b""))])
    assert (found.filename, written) == ("train.jsonl", b"")


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b"", "in the middle"),
        (form(file(b"a"), end=b""), "in the middle"),
        (form(file(b"a"))[:-9], "in the middle"),
        (form(text(b"purpose", b"x")), "no file"),
        (b"hello", "begin with its boundary"),
        (b"preamble\r\n" + form(file(b"a")), "begin with its boundary"),
        (form(file(b"a"), end=b"!!"), "something else than CRLF"),
        (form(file(b"a"), file(b"b")), "twice"),
        (form(text(b"user", b"a"), text(b"user", b"b"), file(b"a")), "twice"),
        (form(file(b"a"), file(b"b", name=b"other")), "another one"),
        (form(text(b"user", b"\xff"), file(b"a")), "not UTF-8"),
        (form(text(b"user", b"x" * 5000), file(b"a")), "more than 4096 bytes"),
        (form(*(text(b"f%d" % n, b"") for n in range(20))), "more than 16 fields"),
        (form(b"X: " + b"y" * 5000 + b"\r\n\r\n"), "bytes of headers"),
        (form(b"no colon\r\n\r\n"), "not well formed"),
        (form(b"Content-Disposition: form-data\r\n\r\n"), "no name"),
        (form(b'Content-Disposition: attachment; name="file"\r\n\r\n'), "no name"),
        (form(b"Content-Transfer-Encoding: base64\r\n" + file(b"YQ==")), "encoded field"),
        (form(file(b"a")) + b"x" * 100_000, "too much besides"),
    ],
)
def test_what_is_no_proper_form_is_refused(body: bytes, wrong: str) -> None:
    for pieces in ([body], [bytes([each]) for each in body]):
        with pytest.raises(InvalidRequest, match=wrong):
            read(pieces)


def test_a_file_that_is_too_large_is_refused_before_it_is_whole() -> None:
    given: list[int] = []

    def endless() -> Iterator[bytes]:
        yield b"--XX\r\n" + file(b"")
        for number in range(10**6):
            given.append(number)
            yield b"x" * 1000

    class Lazy(list[Any]):
        def __iter__(self) -> Iterator[bytes]:
            return endless()

    with pytest.raises(FileTooLarge, match="at most 50000 bytes"):
        read(Lazy(), most=50_000)
    assert len(given) < 60


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=XX",
        "multipart/form-data; boundary=" + "x" * 71,
    ],
)
def test_another_type_of_body_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        boundary_of(kind)


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data; boundary=XX", 'Multipart/Form-Data; charset=utf-8; boundary="XX"'],
)
def test_a_boundary_may_be_quoted(kind: str) -> None:
    assert boundary_of(kind) == b"XX"


def test_errors_are_the_clients() -> None:
    with pytest.raises(PolyprefixError) as caught:
        read([b"--XX\r\n\xff\xff\r\n\r\n"])
    assert caught.value.status == 400
