"""Texts of a wrong form are told in words, on every route; no client reads a pattern."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.schemas.patterns import IN_WORDS
from app.main import create_app
from app.settings import Settings
from tests.api.guarded import Endpoint, endpoints
from tests.server import RunningServer

ENDPOINTS = endpoints(create_app(Settings()))
BAD = "A b!"
GOOD = {
    "name": "absent",
    "alias": "stable",
    "digest": "a" * 64,
    "model_id": "absent",
    "user": "ann",
    "file_id": f"file-{'0' * 24}",
    "job_id": f"ftjob-{'0' * 24}",
    "tenant_id": "demo",
    "kid": "abcdefabcdef",
}
WORDS = {
    "name": ("'A b!'", "1 to 64 of a-z"),
    "alias": ("'A b!'", "1 to 64 of a-z"),
    "tenant_id": ("'A b!'", "1 to 64 of a-z"),
    "digest": ("digest: 'A b!'", "GET /v1/prefixes/absent/versions"),
    "file_id": ("file_id: 'A b!'", "GET /v1/files"),
    "job_id": ("job_id: 'A b!'", "GET /v1/fine_tuning/jobs"),
    "kid": ("'A b!'", "tenant 'demo' has no key"),
    "model_id": ("'A b!'", "GET /v1/models"),
}
"""What a message must say of a parameter in the path; `user` is any text."""

IN_PATHS = [
    (endpoint, name)
    for endpoint in ENDPOINTS
    for name in WORDS
    if f"{{{name}" in endpoint.path and endpoint.method in ("GET", "DELETE")
]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.mark.parametrize(
    ("endpoint", "name"), IN_PATHS, ids=[f"{each.id} {name}" for each, name in IN_PATHS]
)
def test_a_path_with_a_wrong_text_is_refused_in_words(
    client: httpx.Client, endpoint: Endpoint, name: str
) -> None:
    reply = client.request(endpoint.method, endpoint.url({**GOOD, name: BAD}))
    message = reply.json()["error"]["message"]
    assert reply.status_code in (400, 404)
    assert all(words in message for words in WORDS[name]), message


def patterns_in(content: Any) -> Iterator[str]:
    """All patterns inside a part of the description."""
    if isinstance(content, dict):
        if isinstance(content.get("pattern"), str):
            yield content["pattern"]
        for value in content.values():
            yield from patterns_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from patterns_in(value)


def taken(description: dict[str, Any]) -> Iterator[str]:
    """The patterns of all that bodies and queries hold."""
    schemas = description["components"]["schemas"]
    used, found = set(), set()

    def follow(content: Any) -> None:
        if isinstance(content, dict):
            name = str(content.get("$ref", "")).rpartition("/")[2]
            if name and name not in used:
                used.add(name)
                follow(schemas[name])
            for value in content.values():
                follow(value)
        elif isinstance(content, list):
            for value in content:
                follow(value)
        found.update(patterns_in(content))

    for methods in description["paths"].values():
        for operation in methods.values():
            follow(operation.get("requestBody", {}))
            parameters = operation.get("parameters", [])
            follow([each for each in parameters if each["in"] != "path"])
    yield from found


def test_every_form_that_bodies_and_queries_must_have_has_words(client: httpx.Client) -> None:
    found = set(taken(client.get("/openapi.json").json()))
    assert len(found) >= 5
    assert found <= IN_WORDS.keys()
    assert not any("pattern" in words or "^" in words for words in IN_WORDS.values())


@pytest.mark.parametrize(
    ("method", "path", "body", "param", "words"),
    [
        (
            "PUT",
            "/v1/prefixes/absent/aliases/stable",
            {"version": "not-hex"},
            "version",
            "version: 'not-hex' is not a version's digest",
        ),
        (
            "PUT",
            "/v1/prefixes/absent/aliases/stable",
            {"split": {"not-hex": 1, "abcdef": 2}},
            "split",
            "split: 'not-hex' is not a version's digest",
        ),
        (
            "POST",
            "/v1/prefixes/absent/evaluate",
            {"version": "Not This", "examples": [{"input": "a", "output": "b"}]},
            "version",
            "version: 'Not This' is neither an alias nor",
        ),
        (
            "POST",
            "/v1/prefixes/absent/evaluate",
            {"examples": [{"input": "a", "output": "  "}]},
            "examples.0.output.0",
            "has nothing but spaces",
        ),
    ],
)
def test_a_body_with_a_text_of_a_wrong_form_is_refused_in_words(
    client: httpx.Client, method: str, path: str, body: Any, param: str, words: str
) -> None:
    error = client.request(method, path, json=body).json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/prefixes?user=%00", "user"),
        ("/v1/files?limit=2&purpose=a%00b", "purpose"),
        ("/v1/fine_tuning/jobs?metadata[a%00]=b", "metadata[a%00]"),
        ("/v1/usage?tenant=%00", "tenant"),
        ("/admin/audit?tenant=%00", "tenant"),
    ],
)
def test_a_query_with_a_nul_is_refused_by_the_name_of_its_field(
    client: httpx.Client, path: str, param: str
) -> None:
    reply = client.get(path)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert "NUL" in reply.json()["error"]["message"]


def test_a_percent_that_was_escaped_is_no_nul(client: httpx.Client) -> None:
    assert client.get("/v1/prefixes", params={"user": "100%00"}).status_code == 200
