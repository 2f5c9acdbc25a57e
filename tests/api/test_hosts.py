"""Whatever stands in the request line or in `Host`, nobody gets in without a key."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from app.main import create_app
from app.model.frozen import FrozenModel
from app.settings import Settings
from tests.api.guarded import Guarded, endpoints, guarding

OPEN_PATH = "/health/live"
HOSTS = [
    "x/health/live?",
    "x/health/live#",
    "a/?x=",
    "host/#",
    "x/health/live/..",
    "x?/health/live",
    "x\\health\\live",
    "x@y/health/live?",
    "[::1]/health/live?",
    "[::1",
    "localhost:80/health/live?",
    "localhost:99999999",
    "localhost:/health/live?",
    "x%2fhealth%2flive%3f",
    "x/docs?",
    "x/openapi.json?",
    "//health/live",
    "../health/live?",
    "x;/health/live?",
    "x&/health/live?",
    "x health/live",
    "\u00e9.example/health/live?",
    "x/health/ready?a=",
    "127.0.0.1",
    "",
]
HEADERS = [
    "x-forwarded-host: x/health/live?",
    "x-forwarded-prefix: /health/live",
    "x-forwarded-path: /health/live",
    "x-original-url: /health/live",
    "x-rewrite-url: /health/live",
    "x-http-method-override: GET",
    "forwarded: host=x/health/live?;for=127.0.0.1",
    "x-forwarded-for: 127.0.0.1",
    "x-real-ip: 127.0.0.1",
    "host: second/health/live?",
    "x-script-name: /health/live",
]
TARGETS = [
    "http://x/health/live?{}",
    "http://x{}?/health/live",
    "http://x{}#/health/live",
    "http://user:pass@x{}",
    "{}?/health/live",
    "{};/health/live",
    "/health/live/..{}",
    "/health/live/%2e%2e{}",
    "/./{}",
    "/{}",
    "//x{}",
    "{}/",
    "{}%00",
    "{}%20",
    "{}#x",
    "{}?api_key=x",
]


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("hosts")) as guarded:
        yield guarded


def variants(method: str, path: str) -> list[bytes]:
    """Requests for a path, each with something else wrong about where it says that it goes."""
    end = "connection: close\r\n\r\n"
    heads = [f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{end}" for host in HOSTS]
    heads += [f"{method} {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n{end}" for more in HEADERS]
    heads += [f"{method} {target.format(path)} HTTP/1.1\r\nhost: x\r\n{end}" for target in TARGETS]
    heads += [
        f"{method} {path} HTTP/1.1\r\n{end}",
        f"{method} {path} HTTP/1.0\r\n\r\n",
        f"{method} http://x/health/live HTTP/1.1\r\nhost: x{path}\r\n{end}",
    ]
    return [head.encode() for head in heads]


def status_of(guarded: Guarded, request: bytes) -> int:
    """The first status that comes back; 0 if the connection is closed without one."""
    where = urlsplit(guarded.url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as door:
        door.sendall(request)
        reply = door.recv(4096)
    return int(reply.split(b" ")[1]) if reply else 0


ROUTES = [
    (endpoint.method, endpoint.path.replace(":path}", "}").replace("{", "").replace("}", ""))
    for endpoint in endpoints(create_app(Settings()))
    if endpoint.guarded
]


def test_there_are_enough_of_them() -> None:
    assert sum(len(variants(method, path)) for method, path in ROUTES) > 1000


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: value)
def test_no_variant_gets_in_without_a_key(guarded: Guarded, method: str, path: str) -> None:
    for request in variants(method, path):
        status = status_of(guarded, request)
        # a target that says /health/live asks for just that
        is_open = b" http://x/health/live" in request and method == "GET"
        assert status in (0, 400, 401) or is_open, request


def test_the_open_path_stays_open_whatever_the_host(guarded: Guarded) -> None:
    for host in ("x/metrics?", "x", "[::1"):
        request = f"GET {OPEN_PATH} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        assert status_of(guarded, request.encode()) == 200
