"""A tenant that comes while another has the engine starts at once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from app.model.frozen import FrozenModel
from tests.api.guarded import Guarded, guarding
from tests.api.helpers import BASE, NO_END, complete, error_of, slowed, until, until_idle

pytestmark = pytest.mark.alone

STEP_S = 0.03


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("guarded")) as running:
        yield running


@pytest.fixture
def rival(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.client(guarded.key("rival")) as client:
        yield client


def first_token_s(client: httpx.Client) -> float:
    """Seconds until the first event of a stream."""
    body = {"model": BASE, "prompt": [5, 6], "max_tokens": 4, "stream": True, "logit_bias": NO_END}
    began = time.monotonic()
    with client.stream("POST", "/v1/completions", json=body) as reply:
        assert reply.status_code == 200
        next(reply.iter_lines())
        return time.monotonic() - began


FLOODS: dict[str, tuple[int, dict[str, Any]]] = {
    "wide requests": (3, {"n": 64, "max_tokens": 110}),
    "narrow requests": (80, {"max_tokens": 110}),
    "searches by beams": (3, {"num_beams": 32, "max_tokens": 110}),
    "lists of prompts": (3, {"prompt": [[5]] * 64, "max_tokens": 110}),
    "long prompts": (40, {"prompt": [5] * 120, "max_tokens": 4}),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_the_first_token_comes_as_soon_as_alone(
    flood: str, guarded: Guarded, rival: httpx.Client
) -> None:
    number, fields = FLOODS[flood]
    engine = guarded.server.services.engine
    body = {"model": BASE, "prompt": [5, 6, 7], "stream": True, "logit_bias": NO_END, **fields}
    if "num_beams" in fields:
        del body["stream"]
    url = httpx.URL(guarded.url)
    with slowed(guarded.server.services, STEP_S), ExitStack() as stack:
        alone = sorted(first_token_s(rival) for _ in range(5))[2]
        for _ in range(number):
            stack.enter_context(_sent(url, guarded.key("acme"), body))
        until(lambda: engine.progress().running > 30 or flood == "long prompts")
        running = engine.progress().running
        beside = sorted(first_token_s(rival) for _ in range(5))[2]
    assert running <= 56
    # a step that is under way, and one of its own; a burst of requests is parsed meanwhile
    assert beside <= 5 * alone + 0.2
    until_idle(guarded.server)


def _sent(url: httpx.URL, key: str, body: dict[str, Any]) -> socket.socket:
    connection = socket.create_connection((url.host, url.port))
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def test_a_tenants_rows_are_told_and_bound_its_beams(guarded: Guarded) -> None:
    with guarded.client(guarded.key("acme")) as client:
        assert client.get("/info").json()["max_tenant_rows"] == 56
        fields = {"prompt": [5], "max_tokens": 2, "temperature": 0}
        assert complete(client, model=BASE, num_beams=56, **fields).status_code == 200
        refused = complete(client, model=BASE, num_beams=57, **fields)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "num_beams")
        assert "from 1 to 56" in error_of(refused)["message"]


def test_all_rows_of_a_wide_request_are_answered_as_one_by_one(guarded: Guarded) -> None:
    fields = {"prompt": [5, 6], "max_tokens": 5, "temperature": 1.0, "seed": 3}
    with guarded.client(guarded.key("acme")) as client:
        whole = complete(client, model=BASE, n=64, **fields).json()
        again = complete(client, model=BASE, n=30, **fields).json()
    texts = [choice["text"] for choice in whole["choices"]]
    assert texts[:30] == [choice["text"] for choice in again["choices"]]
    assert whole["usage"]["prompt_tokens"] == 2
    assert len(texts) == 64


def test_without_keys_the_one_tenant_has_every_row(client: httpx.Client) -> None:
    assert client.get("/info").json()["max_tenant_rows"] == 64
