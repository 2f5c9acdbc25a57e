"""Uploads as requests: media types, encodings, lengths, names; retries; bodies that break off."""

from __future__ import annotations

import contextlib
import gzip
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.codec import encode, max_file_bytes
from tests.prefix.files import MAX_LENGTH, VALUES, header, pack, with_element
from tests.server import RunningServer, serving
from tests.tiny import CONTEXT, random_prefix

_ROUTE = "/v1/prefixes/sent/versions"


@pytest.fixture(scope="module")
def server(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with serving(tiny_gpt2, tmp_path_factory.mktemp("requests")) as running:
        yield running


@pytest.fixture(scope="module")
def open_client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.fixture
def client(open_client: httpx.Client) -> httpx.Client:
    """A client of a server that holds no prefix."""
    for prefix in open_client.get("/v1/prefixes").json()["data"]:
        open_client.delete(f"/v1/prefixes/{prefix['name']}")
    return open_client


def names(client: httpx.Client) -> list[str]:
    return [prefix["name"] for prefix in client.get("/v1/prefixes").json()["data"]]


def staged(server: RunningServer) -> list[Path]:
    return list((server.root / "store" / ".staging").glob("*"))


def refusal(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


class TestMediaTypes:
    @pytest.mark.parametrize(
        "media_type",
        [
            "application/json",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/zip",
            "application/octet-streams",
            "application/octet-stream, text/plain",
            "",
            "*/*",
        ],
    )
    def test_other_media_types_are_refused(
        self, server: RunningServer, client: httpx.Client, media_type: str
    ) -> None:
        reply = client.post(_ROUTE, content=pack(header()), headers={"content-type": media_type})
        assert refusal(reply) == (415, "unsupported_media_type")
        assert names(client) == []
        assert staged(server) == []

    @pytest.mark.parametrize(
        "media_type",
        ["application/octet-stream", "Application/Octet-Stream", "application/octet-stream; a=b"],
    )
    def test_the_media_type_may_be_written_in_its_own_way(
        self, client: httpx.Client, media_type: str
    ) -> None:
        reply = client.post(_ROUTE, content=pack(header()), headers={"content-type": media_type})
        assert reply.status_code == 201

    def test_the_media_type_may_be_left_out(self, client: httpx.Client) -> None:
        assert client.post(_ROUTE, content=pack(header())).status_code == 201

    @pytest.mark.parametrize(
        "encoding",
        ["gzip", "GZIP", "x-gzip", "br", "zstd", "deflate", "gzip, identity", "aes128gcm"],
    )
    def test_compressed_bodies_are_refused(
        self, server: RunningServer, client: httpx.Client, encoding: str
    ) -> None:
        body = gzip.compress(pack(header()))
        reply = client.post(_ROUTE, content=body, headers={"content-encoding": encoding})
        assert refusal(reply) == (415, "unsupported_media_type")
        assert names(client) == []
        assert staged(server) == []

    def test_identity_is_no_compression(self, client: httpx.Client) -> None:
        headers = {"content-encoding": "identity"}
        assert client.post(_ROUTE, content=pack(header()), headers=headers).status_code == 201


class TestLengths:
    def test_a_file_may_come_in_pieces_without_a_length(self, client: httpx.Client) -> None:
        file = pack(header())
        reply = client.post(
            _ROUTE, content=(file[at : at + 100] for at in range(0, len(file), 100))
        )
        assert reply.status_code == 201
        assert client.get(reply.headers["location"] + "/content").content == file

    def test_pieces_without_end_are_cut_off_at_the_limit(
        self, server: RunningServer, client: httpx.Client
    ) -> None:
        limit = max_file_bytes(server.services.model.spec, MAX_LENGTH)
        with _connection(server) as sock:
            sock.sendall(_head("transfer-encoding: chunked"))
            piece = b"10000\r\n" + bytes(65536) + b"\r\n"
            for _ in range(limit // 65536 + 2):
                sock.sendall(piece)
            assert b" 413 " in _reply(sock)
        _eventually(lambda: staged(server) == [])
        assert names(client) == []

    def test_a_declared_length_over_the_limit_is_refused_before_the_body(
        self, server: RunningServer
    ) -> None:
        with _connection(server) as sock:
            sock.sendall(_head("content-length: 10000000000"))
            reply = _reply(sock)
        assert b" 413 " in reply
        assert b'"code":"file_too_large"' in reply
        assert staged(server) == []

    @pytest.mark.parametrize(
        "headers",
        [
            "content-length: -1",
            "content-length: 1e3",
            "content-length: \xb2",
            "content-length: 99999999999999999999999999",
            "content-length: 3\r\ncontent-length: 4",
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked, gzip",
        ],
    )
    def test_lengths_that_make_no_sense_are_refused(
        self, server: RunningServer, client: httpx.Client, headers: str
    ) -> None:
        with _connection(server) as sock:
            sock.sendall(_head(headers) + b"5\r\nhello\r\n0\r\n\r\n")
            assert _reply(sock).startswith(b"HTTP/1.1 4")
        _eventually(lambda: staged(server) == [])
        assert names(client) == []

    @pytest.mark.parametrize("framing", ["content-length: 1804", "transfer-encoding: chunked"])
    def test_nothing_is_left_of_a_body_that_breaks_off(
        self, server: RunningServer, client: httpx.Client, framing: str
    ) -> None:
        with _connection(server) as sock:
            sock.sendall(_head(framing) + b"100\r\n" + bytes(100))
            _eventually(lambda: len(staged(server)) == 1)
        _eventually(lambda: staged(server) == [])
        assert names(client) == []


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "%2e%2e",
            ".hidden",
            "-dash",
            "UPPER",
            "with%20space",
            "nul%00",
            "newline%0a",
            "%C3%A9",
            "%ff",
            "a" * 65,
            "a+b",
            "a@b",
            "%EF%BC%92",
            "a%5c..%5cb",
        ],
    )
    def test_names_that_break_the_rules_are_refused(
        self, server: RunningServer, client: httpx.Client, name: str
    ) -> None:
        reply = client.post(f"/v1/prefixes/{name}/versions", content=pack(header()))
        assert refusal(reply) == (400, "invalid_value")
        assert reply.json()["error"]["param"] == "name"
        assert names(client) == []
        assert staged(server) == []

    @pytest.mark.parametrize("name", ["a%2fb", "..%2f..%2fetc", "%2fetc%2fpasswd", ""])
    def test_a_name_with_a_slash_is_no_route(self, client: httpx.Client, name: str) -> None:
        headers = {"content-type": "application/json"}  # this is no upload any more
        reply = client.post(f"/v1/prefixes/{name}/versions", content=b"{}", headers=headers)
        assert refusal(reply) == (404, "not_found")
        assert names(client) == []

    @pytest.mark.parametrize("alias", ["abcdef", "Stable", "a/b", "", "..", "0" * 64])
    def test_aliases_that_break_the_rules_are_refused(
        self, client: httpx.Client, alias: str
    ) -> None:
        reply = client.post(_ROUTE, content=pack(header()), headers={"x-alias": alias})
        assert refusal(reply) == (400, "invalid_value")
        assert names(client) == []

    @pytest.mark.parametrize("key", ["", "a b", "é", "k" * 256])
    def test_idempotency_keys_that_break_the_rules_are_refused(
        self, client: httpx.Client, key: str
    ) -> None:
        headers = {"idempotency-key": key.encode()}
        reply = client.post(_ROUTE, content=pack(header()), headers=headers)
        assert refusal(reply)[0] in (400, 422)
        assert names(client) == []


class TestRetries:
    def test_the_same_content_again_is_the_same_version(self, client: httpx.Client) -> None:
        first, second = (client.post(_ROUTE, content=pack(header())) for _ in range(2))
        assert (first.status_code, second.status_code) == (201, 200)
        assert first.json() == second.json()
        assert len(client.get(_ROUTE).json()["data"]) == 1

    def test_the_same_tensors_in_another_file_are_the_same_version(
        self, client: httpx.Client
    ) -> None:
        other = pack(dict(reversed(header().items())))
        replies = [client.post(_ROUTE, content=file) for file in (pack(header()), other)]
        assert [reply.status_code for reply in replies] == [201, 200]
        # the store cannot tell it from a damaged one, so the file that was just checked is kept
        assert client.get(f"{replies[1].headers['location']}/content").content == other

    def test_many_at_once_make_one_version(
        self, server: RunningServer, client: httpx.Client
    ) -> None:
        def send(_: int) -> int:
            return client.post(
                _ROUTE, content=pack(header()), headers={"x-alias": "new"}
            ).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = sorted(pool.map(send, range(24)))
        assert statuses == [200] * 23 + [201]
        assert len(client.get(_ROUTE).json()["data"]) == 1
        assert staged(server) == []

    def test_another_version_moves_the_aliases(self, client: httpx.Client) -> None:
        files = [pack(header()), with_element("F32", bytes(4), b"\0\0\x80?", 3)]
        for file in files:
            reply = client.post(_ROUTE, content=file, headers={"x-alias": "stable"})
        aliases = client.get("/v1/prefixes/sent").json()["aliases"]
        assert set(aliases.values()) == {reply.json()["digest"]}
        assert set(aliases) == {"latest", "stable"}


class TestProbe:
    def test_a_prefix_that_leaves_no_room_for_a_token_is_refused(
        self, client: httpx.Client, tiny_gpt2: FrozenModel
    ) -> None:
        full = random_prefix(tiny_gpt2, CONTEXT, position_offset=CONTEXT)
        reply = client.post(_ROUTE, content=encode(full))
        assert refusal(reply) == (400, "context_length_exceeded")
        assert names(client) == []

    def test_an_upload_while_another_fails_its_probe_is_served(self, client: httpx.Client) -> None:
        huge = with_element("F32", b"\0\0\x60\x7f", b"\0\0\x60\x7f", 0)
        files = [huge, pack(header())] * 4

        def send(file: bytes) -> int:
            return client.post(_ROUTE, content=file).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(send, files))
        assert statuses[::2] == [422] * 4
        assert sorted(statuses[1::2]) == [200, 200, 200, 201]


def test_a_file_that_overflows_in_the_serving_dtype_is_refused(
    tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="bfloat16")
    largest = with_element("F32", bytes(4), b"\xff\xff\x7f\x7f", VALUES)
    with serving(model, tmp_path) as server:
        reply = server.push("sent", largest)
        assert refusal(reply) == (422, "invalid_prefix")
        message = reply.json()["error"]["message"]
        assert "decoder.values holds a value that overflows in bfloat16" in message
        assert server.push("sent", pack(header())).status_code == 201
        assert staged(server) == []


def _head(headers: str) -> bytes:
    lines = f"POST {_ROUTE} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n\r\n"
    return lines.encode("latin-1")


@contextlib.contextmanager
def _connection(server: RunningServer) -> Iterator[socket.socket]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        yield sock


def _reply(sock: socket.socket) -> bytes:
    """The head of the reply and as much as comes with it."""
    reply = b""
    while b"\r\n\r\n" not in reply or b"}" not in reply:
        more = sock.recv(65536)
        reply += more
        if not more or b"content-length: 0\r\n" in reply or b"Invalid HTTP" in reply:
            break
    return reply


def _eventually(holds: Callable[[], bool]) -> None:
    """Wait for what the server does after its last answer, of which no event tells."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_file_that_was_damaged_in_the_store_is_our_fault_and_can_be_replaced(
    tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    def complete() -> httpx.Response:
        body = {"model": "tone", "prompt": "the quick", "max_tokens": 3, "temperature": 0}
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)

    prefix = random_prefix(tiny_gpt2, 4)
    with serving(tiny_gpt2, tmp_path) as server:
        assert server.push("tone", prefix).status_code == 201
        text = complete().json()["choices"][0]["text"]
    [file] = (tmp_path / "store").rglob("*.safetensors")
    whole = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with serving(tiny_gpt2, tmp_path) as server:
        reply = complete()
        assert reply.status_code == 500
        assert "is damaged" in reply.json()["error"]["message"]
        assert httpx.delete(f"{server.url}/v1/prefixes/tone").status_code == 200
        assert server.push("tone", prefix).status_code == 201
        assert complete().json()["choices"][0]["text"] == text
