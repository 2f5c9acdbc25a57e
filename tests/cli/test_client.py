"""What the client makes of replies that are not what it hoped for."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.cli.client import Client, ServerError


def client(handler: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client("http://server.test", "secret", transport=httpx.MockTransport(handler))


def answering(status: int, **content: object) -> Client:
    return client(lambda _: httpx.Response(status, **content))  # type: ignore[arg-type]


def test_the_servers_own_words_are_the_error() -> None:
    body = {"error": {"message": "no prefix 'x'", "type": "t", "code": "prefix_not_found"}}
    with answering(404, json=body) as remote, pytest.raises(ServerError) as caught:
        remote.get_prefix("x")
    assert (caught.value.message, caught.value.status) == ("no prefix 'x'", 404)
    assert caught.value.code == "prefix_not_found"


@pytest.mark.parametrize(
    "content",
    [
        {"text": "<html>bad gateway</html>"},
        {"json": {"error": "a string"}},
        {"json": {"detail": "other"}},
        {"json": []},
        {"content": b"\xff\xfe"},
    ],
    ids=["html", "another shape", "no error", "a list", "no text"],
)
def test_a_failure_in_no_known_shape_is_told_by_its_status(content: dict[str, object]) -> None:
    with answering(502, **content) as remote, pytest.raises(ServerError, match="answered 502"):
        remote.list_prefixes()


@pytest.mark.parametrize("content", [{"text": "hello"}, {"json": []}], ids=["text", "a list"])
def test_a_success_that_is_no_object_is_an_error(content: dict[str, object]) -> None:
    with answering(200, **content) as remote, pytest.raises(ServerError, match="not a JSON object"):
        remote.list_prefixes()


def test_no_server_is_said_with_what_to_do() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with (
            Client(f"http://127.0.0.1:{port}") as remote,
            pytest.raises(ServerError, match="polyprefix serve"),
        ):
            remote.list_prefixes()


def test_a_server_that_is_no_url_is_an_error() -> None:
    with Client("localhost:8000") as remote, pytest.raises(ServerError, match="no server answers"):
        remote.list_prefixes()


def test_names_are_one_segment_of_the_path_and_the_key_is_sent() -> None:
    seen: list[httpx.Request] = []

    def record(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    with client(record) as remote:
        remote.get_alias("../a/b?c#d", "%2e")
    assert seen[0].url.raw_path == b"/v1/prefixes/..%2Fa%2Fb%3Fc%23d/aliases/%252e"
    assert seen[0].headers["authorization"] == "Bearer secret"


def test_every_page_of_a_list_is_asked_for() -> None:
    pages = {"": ("a", "1"), "1": ("b", "2"), "2": ("c", None)}

    def page(request: httpx.Request) -> httpx.Response:
        name, following = pages[request.url.params.get("cursor", "")]
        return httpx.Response(200, json={"data": [{"name": name}], "next_cursor": following})

    with client(page) as remote:
        assert [prefix["name"] for prefix in remote.list_prefixes()] == ["a", "b", "c"]


def test_an_upload_streams_the_file_and_names_its_length(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(bytes(700_000))
    chunks: list[int] = []

    def created(request: httpx.Request) -> httpx.Response:
        assert request.headers["content-length"] == "700000"
        assert "transfer-encoding" not in request.headers
        assert request.headers["x-alias"] == "stable"
        assert len(request.read()) == 700_000
        return httpx.Response(201, json={"digest": "d"})

    with client(created) as remote:
        version = remote.push(file, "x", alias="stable", advance=chunks.append)
    assert version == {"digest": "d", "created": True}
    assert sum(chunks) == 700_000


def test_a_download_that_breaks_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"old")

    def half() -> object:
        yield b"new"
        raise httpx.ReadError("cut")

    with answering(200, content=half()) as remote, pytest.raises(ServerError, match="broke: cut"):
        remote.pull("x", "d", target, advance=lambda _: None)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
