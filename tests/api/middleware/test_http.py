"""Request ids, bodies that are refused unread, and errors that nobody foresaw."""

from __future__ import annotations

import gzip
import json
import logging
import socket

import httpx
import pytest

from tests.api.helpers import BASE, complete, error_of
from tests.server import RunningServer

BODY = json.dumps({"model": BASE, "prompt": "the", "max_tokens": 1}).encode()
JSON = {"content-type": "application/json"}
POST_ROUTES = (
    "/v1/completions",
    "/generate",
    "/generate_stream",
    "/",
    "/tokenize",
    "/detokenize",
    "/v1/prefixes/tone/versions",
    "/v1/prefixes/tone/aliases/stable/rollback",
    "/nowhere",
)


# Request ids


@pytest.mark.parametrize("given", ["abc", "x" * 128, "a-b_c.d:e/f", "~!@#$%"])
def test_a_clients_request_id_comes_back(given: str, client: httpx.Client) -> None:
    reply = client.get("/health/live", headers={"x-request-id": given})
    assert reply.headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given", [b"", b"x" * 129, b"with space", b"\xe9", b"tab\there", b"\xff\xfe"], ids=repr
)
def test_a_request_id_that_is_no_id_is_replaced(given: bytes, client: httpx.Client) -> None:
    reply = client.get("/health/live", headers={b"x-request-id": given})
    assert reply.headers["x-request-id"].startswith("req-")


def test_every_reply_has_an_id_of_its_own(client: httpx.Client) -> None:
    replies = [
        complete(client),
        complete(client, stream=True),
        complete(client, model="nobody"),
        client.get("/nowhere"),
        client.put("/v1/models"),
        client.post("/v1/completions", content=b"x" * 100_000, headers=JSON),
        client.get("/metrics"),
    ]
    ids = {reply.headers["x-request-id"] for reply in replies}
    assert len(ids) == len(replies)
    assert all(len(reply.headers.get_list("x-request-id")) == 1 for reply in replies)


# Bodies


@pytest.mark.parametrize("route", POST_ROUTES)
def test_multipart_is_refused_everywhere(route: str, client: httpx.Client) -> None:
    reply = client.post(route, files={"file": b"x"})
    assert reply.status_code == 415
    assert reply.json()["error"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "gzip, identity", "GZIP"])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/prefixes/tone/versions"])
def test_a_compressed_body_is_refused(route: str, encoding: str, client: httpx.Client) -> None:
    headers = {"content-encoding": encoding, "content-type": "application/octet-stream"}
    reply = client.post(route, content=gzip.compress(BODY), headers=headers)
    assert (reply.status_code, error_of(reply)["code"]) == (415, "unsupported_media_type")


def test_identity_is_no_compression(client: httpx.Client) -> None:
    headers = {**JSON, "content-encoding": "identity"}
    assert client.post("/v1/completions", content=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize("route", [route for route in POST_ROUTES if "versions" not in route])
def test_a_body_that_is_too_large_is_refused_everywhere(route: str, client: httpx.Client) -> None:
    reply = client.post(route, content=b" " * 100_000, headers=JSON)
    assert reply.status_code == 413
    assert reply.json()["error"]


def test_a_body_that_is_refused_for_its_declared_length_need_not_come(
    server: RunningServer,
) -> None:
    url = httpx.URL(server.url)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n"
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(head)
        answer = b""
        while not answer.endswith(b"}"):
            part = connection.recv(4096)
            assert part, "the connection ended before its answer"
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"file_too_large" in answer


def test_a_refused_body_leaves_the_client_usable(client: httpx.Client) -> None:
    for _ in range(3):
        assert client.post("/generate", content=b"x" * 100_000, headers=JSON).status_code == 413
        assert client.post("/v1/completions", content=BODY, headers=JSON).status_code == 200


# Unforeseen errors


def test_an_unforeseen_error_is_answered_without_what_it_says(
    client: httpx.Client,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(server.services.registry, "get_prefix", fail)
    with caplog.at_level(logging.ERROR):
        reply = client.get("/v1/prefixes/tone")
    assert reply.status_code == 500
    assert error_of(reply) == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert reply.headers["x-request-id"].startswith("req-")
    assert "a secret path" in caplog.text
    label = 'method="GET",route="/v1/prefixes/{name}",status="500"'
    assert label in client.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_an_unforeseen_error_in_a_completion_ends_that_request_alone(
    stream: bool, client: httpx.Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr("app.api.generation.openai_format.PromptReply.add", fail)
    reply = complete(client, stream=stream)
    assert (reply.status_code, error_of(reply)["code"]) == (500, "internal_error")
    monkeypatch.undo()
    assert complete(client, stream=stream).status_code == 200
    assert server.services.engine.admission.num_open == 0


def test_an_unforeseen_error_has_tgis_shape_on_tgis_routes(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr("app.api.generation.openai_format.PromptReply.add", fail)
    reply = client.post("/generate", json={"inputs": "the"})
    assert reply.json() == {"error": "internal error", "error_type": "generation"}


# Unknown routes


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/completions/x", "/v2/models", "/%00"])
def test_an_unknown_route_has_openais_shape(path: str, client: httpx.Client) -> None:
    reply = client.get(path)
    assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
def test_completions_are_only_posted(method: str, client: httpx.Client) -> None:
    reply = client.request(method, "/v1/completions")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert error_of(reply)["code"] == "method_not_allowed"
