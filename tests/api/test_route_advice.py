"""Paths and methods that are none: the status stays, and the message says what to ask instead."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from openai import NotFoundError, OpenAI

from app.api.route_advice import _ADVICE, RouteAdvice
from app.main import create_app
from app.model.frozen import FrozenModel
from app.settings import Settings
from tests.server import RunningServer, serving

ADVICE = RouteAdvice.of(create_app(Settings()))


@pytest.fixture(scope="module")
def server(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with serving(tiny_gpt2, tmp_path_factory.mktemp("advice")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("POST", "/v1/chat/completions", "POST /v1/completions"),
        ("POST", "/chat/completions", "base_url of OpenAI's clients ends in /v1"),
        ("POST", "/v1/responses", "POST /v1/completions"),
        ("POST", "/responses", "ends in /v1"),
        ("POST", "/v1/messages", "POST /v1/completions"),
        ("POST", "/completions", "ends in /v1; ask /v1/completions"),
        ("GET", "/models", "ends in /v1; ask /v1/models"),
        ("GET", "/models/e2e", "ends in /v1; ask /v1/models/e2e"),
        ("POST", "/prefixes/e2e/versions", "ends in /v1; ask /v1/prefixes/e2e/versions"),
        ("POST", "/v1/v1/completions", "/v1 is there twice, in the base_url and in the path"),
        ("POST", "/v1/completions/", "ask /v1/completions"),
        ("POST", "//v1//completions", "ask /v1/completions"),
        ("POST", "/V1/Completions", "small letters; ask /v1/completions"),
        ("POST", "/v1/completion", "did you mean /v1/completions?"),
        ("POST", "/v1/complétions", "did you mean /v1/completions?"),
        ("POST", "/v1/embeddings", "generates text alone"),
        ("POST", "/fine_tuning/jobs", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/fine-tunes", "POST /v1/fine_tuning/jobs"),
        ("POST", "/files", "/v1/files"),
        ("POST", "/v1/load_lora_adapter", "POST /v1/prefixes/{name}/versions"),
        ("POST", "/v1/unload_lora_adapter", "DELETE /v1/prefixes/{name}"),
        ("POST", "/v1/tokenize", "/tokenize"),
        ("POST", "/v1/generate", "it does not stand under /v1; ask /generate"),
        ("POST", "/api/generate", "ask /generate"),
        ("GET", "/api/tags", "GET /v1/models"),
        ("GET", "/healthz", "GET /health/live"),
        ("GET", "/v1", "base_url of OpenAI's clients"),
        ("GET", "/redoc", "GET /docs"),
        ("GET", "/favicon.ico", "GET /openapi.json describes all routes"),
        ("GET", "/" + "x" * 5000, "GET /openapi.json describes all routes"),
    ],
)
def test_a_path_that_is_no_route_is_answered_with_what_to_ask(
    client: httpx.Client, method: str, path: str, said: str
) -> None:
    reply = client.request(method, path)
    assert reply.status_code == 404
    error = reply.json()["error"]
    assert error["code"] == "not_found"
    assert error["message"].startswith(f"there is no such route as {method} ")
    assert said in error["message"]
    assert len(error["message"]) < 400


def test_the_openai_client_is_told_when_it_chats(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as openai:
        with pytest.raises(NotFoundError, match="POST /v1/completions"):
            openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(NotFoundError, match="generates text alone"):
            openai.embeddings.create(model="m", input="x")
    with (
        OpenAI(base_url=server.url, api_key="unused", max_retries=0) as openai,
        pytest.raises(NotFoundError, match="ends in /v1; ask /v1/completions"),
    ):
        openai.completions.create(model="m", prompt="x")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/v1/models/e2e", "DELETE, GET"),
        ("POST", "/v1/prefixes/e2e", "DELETE, GET"),
        ("PATCH", "/v1/prefixes/e2e/aliases/stable", "GET, PUT"),
        ("POST", "/version", "GET"),
        ("GET", "/generate", "POST"),
        ("DELETE", "/", "GET, POST"),
    ],
)
def test_a_wrong_method_is_answered_with_all_right_ones(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    reply = client.request(method, path)
    assert reply.status_code == 405
    assert reply.headers["allow"] == allowed
    assert f"{path} takes {allowed}, not {method}" in reply.text


def test_no_route_of_ours_is_advised_against() -> None:
    """What becomes a route leaves the table."""
    assert [path for path in _ADVICE if ADVICE.methods(path)] == []


def test_what_a_path_holds_does_not_reach_the_message_unescaped() -> None:
    said = ADVICE.missing("GET", "/\x1b[31m\r\nset-cookie: x")
    assert said.isprintable()


def test_a_server_says_what_it_is_and_where_its_parts_are(
    server: RunningServer, client: httpx.Client
) -> None:
    index, version = client.get("/").json(), client.get("/version").json()
    assert version == {
        "version": server.app.version,
        "model": server.services.model.spec.model_id,
    }
    assert index["name"] == "polyprefix"
    assert {**index, **version} == index
    for path in index["links"].values():
        assert client.get(path).status_code in (200, 405), path
    assert client.get("/ping").json() == {"status": "ok"}
