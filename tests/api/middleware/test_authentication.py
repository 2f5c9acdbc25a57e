"""Deny by default: every route asks for a key before it reads, and says what a key must allow."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI

from app.errors import InvalidRequest
from app.main import create_app
from app.model.frozen import FrozenModel
from app.settings import Settings
from app.tenancy.auth.principal import Scope
from tests.api.guarded import PEPPER, REFUSED, Guarded, endpoints, guarding
from tests.server import serving
from tests.tiny import random_prefix

OPEN = {
    "/health/live",
    "/health/ready",
    "/ping",
    "/docs",
    "/docs/page.css",
    "/docs/page.js",
    "/docs/swagger-ui.css",
    "/docs/swagger-ui-bundle.js",
}
"""All that may be read without a key."""


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("gate")) as guarded:
        yield guarded


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The application, not started."""
    return create_app(Settings())


def test_every_route_asks_for_a_scope_or_is_on_the_list(app: FastAPI) -> None:
    found = endpoints(app)
    assert len(found) > 30
    assert {endpoint.path for endpoint in found if not endpoint.guarded} == OPEN


def test_open_routes_only_read(app: FastAPI) -> None:
    open_ones = [endpoint for endpoint in endpoints(app) if endpoint.path in OPEN]
    assert {endpoint.method for endpoint in open_ones} <= {"GET", "HEAD"}


def test_what_is_open_says_nothing_about_tenants(guarded: Guarded) -> None:
    with guarded.client() as client:
        for path in OPEN:
            reply = client.get(path)
            assert reply.status_code == 200
            assert "acme" not in reply.text


@pytest.mark.parametrize(
    "path", ["/", "/redoc", "/openapi.json", "/metrics", "/health", "/nothing", "/admin"]
)
def test_what_does_not_exist_is_refused_like_what_does(guarded: Guarded, path: str) -> None:
    with guarded.client() as client:
        replies = [client.request(method, path) for method in ("GET", "POST", "DELETE", "OPTIONS")]
    assert {reply.status_code for reply in replies} == {401}
    assert {reply.headers["www-authenticate"] for reply in replies} == {"Bearer"}


@pytest.mark.parametrize(
    "path",
    [
        "/health/live/",
        "//health/live",
        "/health/live/../../metrics",
        "/health/ready/..%2f..%2fmetrics",
        "/health/live%2f",
        "/health/live;x",
        "/Health/Live",
        "/health/live%00",
    ],
)
def test_nothing_near_an_open_path_is_open(guarded: Guarded, path: str) -> None:
    host = urlsplit(guarded.url)
    with socket.create_connection((host.hostname, host.port)) as door:
        door.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert door.recv(4096).startswith(b"HTTP/1.1 401")


def test_a_key_counts_only_in_its_header(guarded: Guarded) -> None:
    key = guarded.key()
    attempts = [
        {"params": {"api_key": key, "key": key, "token": key}},
        {"headers": {"x-api-key": key}},
        {"headers": {"authorization": key}},
        {"headers": {"authorization": f"Basic {key}"}},
        {"headers": {"authorization": f"Token {key}"}},
        {"headers": {"authorization": f"Bearer{key}"}},
        {"headers": {"authorization": f"Bearer {key} {key}"}},
        {"headers": {"authorization": f"Bearer {key},"}},
        {"headers": {"proxy-authorization": f"Bearer {key}"}},
        {"headers": [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")]},
        {"cookies": {"authorization": f"Bearer {key}"}},
    ]
    for attempt in attempts:
        with httpx.Client(base_url=guarded.url, cookies=attempt.pop("cookies", None)) as client:
            assert client.get("/v1/models", **attempt).status_code == 401, attempt
    with guarded.client() as client:
        body = {"model": "tiny-gpt2", "prompt": "x", "max_tokens": 1, "api_key": key}
        assert client.post("/v1/completions", json=body).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_s_case_does_not_matter(guarded: Guarded, scheme: str) -> None:
    with guarded.client() as client:
        headers = {"authorization": f"{scheme} {guarded.key()}"}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{not json", {"content-type": "application/json"}),
        (b'{"unknown": 1}', {"content-type": "application/json"}),
        (b"x" * (3 << 20), {"content-type": "application/json"}),
        (b"x", {"content-type": "multipart/form-data"}),
        (b"x", {"content-encoding": "gzip"}),
    ],
    ids=["no json", "wrong json", "too large", "multipart", "compressed"],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/admin/tenants", "/generate", "/nowhere"])
def test_a_bad_key_with_a_bad_body_is_a_bad_key(
    guarded: Guarded, path: str, content: bytes, headers: dict[str, str]
) -> None:
    for identity in ("none", "wrong secret"):
        with guarded.client() as client:
            sent = {**headers, **guarded.headers(identity)}
            assert client.post(path, content=content, headers=sent).status_code == 401


def test_an_upload_without_a_key_is_refused_before_it_is_sent(guarded: Guarded) -> None:
    host = urlsplit(guarded.url)
    head = (
        "POST /v1/prefixes/mine/versions HTTP/1.1\r\nhost: x\r\n"
        "content-type: application/octet-stream\r\ncontent-length: 100000000\r\n\r\n"
    )
    with socket.create_connection((host.hostname, host.port), timeout=5) as door:
        begun = time.monotonic()
        door.sendall(head.encode())
        assert door.recv(4096).startswith(b"HTTP/1.1 401")
        assert time.monotonic() - begun < 2


def test_an_upload_without_the_scope_is_refused_before_it_is_sent(guarded: Guarded) -> None:
    host = urlsplit(guarded.url)
    key = guarded.key(scopes=frozenset({Scope.PREFIXES_READ}))
    head = (
        "POST /v1/prefixes/mine/versions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
        f"{key}\r\ncontent-type: application/octet-stream\r\ncontent-length: 100000000\r\n\r\n"
    )
    with socket.create_connection((host.hostname, host.port), timeout=5) as door:
        door.sendall(head.encode())
        assert door.recv(4096).startswith(b"HTTP/1.1 403")


def test_a_wrong_scope_is_named(guarded: Guarded) -> None:
    with guarded.client(guarded.key(scopes=frozenset({Scope.GENERATE}))) as client:
        reply = client.get("/admin/tenants")
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "insufficient_scope"
    assert "'admin'" in reply.json()["error"]["message"]


def test_all_who_are_refused_hear_the_same(guarded: Guarded) -> None:
    heard = set()
    with guarded.client() as client:
        for identity in REFUSED:
            for _ in range(2):
                reply = client.get("/v1/models", headers=guarded.headers(identity))
                shown = {
                    k: v for k, v in reply.headers.items() if k not in ("date", "x-request-id")
                }
                heard.add((reply.status_code, reply.content, str(sorted(shown.items()))))
    [(status, body, headers)] = heard
    assert status == 401
    assert b'"code":"invalid_api_key"' in body
    assert "www-authenticate" in headers


def test_a_revoked_key_is_refused_at_once(guarded: Guarded) -> None:
    keyring = guarded.server.services.keyring
    info, key = keyring.create("acme")
    with guarded.client(key.text) as client:
        assert client.get("/v1/models").status_code == 200
        keyring.revoke("acme", info.kid)
        assert client.get("/v1/models").status_code == 401


def test_the_description_is_there_for_whoever_has_a_key(guarded: Guarded) -> None:
    with guarded.client(guarded.key(scopes=frozenset({Scope.TRAIN}))) as client:
        content = client.get("/openapi.json").json()
    assert content["security"] == [{"bearer": []}]
    assert content["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    described = set(content["paths"])
    assert "/v1/completions" in described
    assert "/admin/tenants/{tenant_id}/keys/{kid}" in described


def test_failures_from_one_address_are_limited_and_known_keys_are_not(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("limited")
    with (
        guarding(tiny_gpt2, root, auth_failures_per_minute=10) as guarded,
        guarded.client(guarded.key()) as known,
        guarded.client() as client,
    ):
        assert known.get("/v1/models").status_code == 200
        headers = guarded.headers("wrong secret")
        statuses = [client.get("/v1/models", headers=headers).status_code for _ in range(15)]
        assert statuses[:10] == [401] * 10
        assert statuses[-1] == 429
        refused = client.post("/v1/completions", json={}, headers=headers)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert client.get("/health/live").status_code == 200
        assert known.get("/v1/models").status_code == 200


def test_without_a_pepper_everybody_is_one_tenant(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving(tiny_gpt2, tmp_path_factory.mktemp("anonymous")) as server:
        assert server.push("mine", random_prefix(tiny_gpt2, 3)).status_code == 201
        with server.client() as client:
            listed = client.get("/v1/prefixes", headers={"authorization": "Bearer whatever"})
            assert [one["name"] for one in listed.json()["data"]] == ["mine"]
            assert client.post("/admin/tenants", json={"id": "corp"}).status_code == 201
            refused = client.post("/admin/tenants/corp/keys", json={})
            assert refused.status_code == 409
            assert "POLYPREFIX_KEY_PEPPER is not set" in refused.json()["error"]["message"]


def test_off_loopback_no_start_without_keys() -> None:
    with pytest.raises(InvalidRequest, match="polyprefix key create"):
        create_app(Settings(host="0.0.0.0"))
    create_app(Settings(host="0.0.0.0", allow_anonymous=True))
    create_app(Settings(host="0.0.0.0", key_pepper=PEPPER))


async def _start(model: FrozenModel, settings: Settings) -> None:
    app = create_app(settings, model)
    async with app.router.lifespan_context(app):
        pass


def test_off_loopback_no_start_with_a_pepper_but_no_key(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("outside")
    chosen = {"store": root / "store", "data_dir": root / "data", "key_pepper": PEPPER}
    with pytest.raises(InvalidRequest, match="polyprefix key create"):
        asyncio.run(_start(tiny_gpt2, Settings(host="0.0.0.0", **chosen)))
    with guarding(tiny_gpt2, root) as guarded:
        guarded.key()
    asyncio.run(_start(tiny_gpt2, Settings(host="0.0.0.0", **chosen)))


def test_the_pepper_is_never_shown() -> None:
    settings = Settings(key_pepper=PEPPER)
    assert PEPPER not in f"{settings!r} {settings} {settings.model_dump()}"
    with pytest.raises(ValueError, match="32 characters") as error:
        Settings(key_pepper="hunter2hunter2")
    assert "hunter2" not in str(error.value)
