"""A client that goes away frees its rows very soon, and nobody else notices."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.engine.engine import Engine
from tests.api.helpers import BASE, NO_END, Json, complete, slowed, text_of, until, until_idle
from tests.server import RunningServer

STEP_S = 0.02
MOST_STEPS = 20
"""Between the client's end and that of its rows; a request here has 100 steps before it."""

LONG: Json = {"model": "tone", "prompt": "the", "max_tokens": 100, "logit_bias": NO_END}
LONG_TGI: Json = {"inputs": "the", "parameters": {"max_new_tokens": 100, "min_tokens": 100}}

KINDS = {
    "whole": ("/v1/completions", LONG),
    "streamed": ("/v1/completions", {**LONG, "stream": True}),
    "many rows": ("/v1/completions", {**LONG, "n": 4, "stream": True}),
    "many prompts": ("/v1/completions", {**LONG, "prompt": ["the", "cat", "sat"]}),
    "many prompts streamed": ("/v1/completions", {**LONG, "prompt": ["a", "b"], "stream": True}),
    "TGI": ("/generate", LONG_TGI),
    "TGI streamed": ("/generate_stream", LONG_TGI),
}


@pytest.fixture
def engine(server: RunningServer) -> Iterator[Engine]:
    """The engine with slow steps; idle before and after."""
    until_idle(server)
    with slowed(server.services, STEP_S):
        yield server.services.engine
    until_idle(server)


def send(server: RunningServer, route: str, body: Json, method: str = "POST") -> socket.socket:
    """A request on a connection of its own, whose answer nobody has read yet."""
    url = httpx.URL(server.url)
    connection = socket.create_connection((url.host, url.port))
    content = json.dumps(body).encode()
    head = (
        f"{method} {route} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_goes_away_frees_its_rows(
    kind: str, server: RunningServer, engine: Engine
) -> None:
    finished, made = engine.counters.finished, engine.counters.generated_tokens
    with send(server, *KINDS[kind]):
        until(lambda: engine.counters.generated_tokens >= made + 5)
        assert engine.progress().running > 0
    left = engine.progress().steps
    until(lambda: engine.progress().running == 0)
    assert engine.progress().steps - left <= MOST_STEPS
    assert engine.counters.finished == finished
    assert engine.admission.num_open == 0
    assert engine.table.can_reserve(engine.table.max_columns)


def test_a_client_that_resets_the_connection_in_its_stream_frees_its_rows(
    server: RunningServer, engine: Engine
) -> None:
    with send(server, *KINDS["streamed"]) as connection:
        assert b"200 OK" in connection.recv(4096)
        linger_no_time = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_no_time)
    left = engine.progress().steps
    until(lambda: engine.progress().running == 0)
    assert engine.progress().steps - left <= MOST_STEPS


def test_a_client_that_closes_a_stream_early_frees_its_rows(
    server: RunningServer, engine: Engine
) -> None:
    with server.client() as client:
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as reply:
            next(reply.iter_lines())
        left = engine.progress().steps
        until(lambda: engine.progress().running == 0)
        assert engine.progress().steps - left <= MOST_STEPS


def test_a_request_that_still_waits_is_forgotten(server: RunningServer, engine: Engine) -> None:
    with send(server, *KINDS["many rows"]), send(server, *KINDS["whole"]):
        until(lambda: engine.progress().running == 5)
    until(lambda: engine.admission.num_open == 0)


def test_others_get_the_same_answer_as_alone(
    client: httpx.Client, server: RunningServer, engine: Engine
) -> None:
    fields = {"prompt": "the quick brown", "model": "voice", "max_tokens": 40}
    expected = text_of(complete(client, **fields))
    with ThreadPoolExecutor() as pool:
        with send(server, *KINDS["many rows"]), send(server, *KINDS["whole"]):
            until(lambda: engine.progress().running == 5)
            other = pool.submit(complete, client, **fields)
            until(lambda: engine.progress().running == 6)
        until(lambda: engine.progress().running == 1)
        assert not other.done()
        assert text_of(other.result()) == expected


def test_a_client_that_leaves_in_the_midst_of_its_body_starts_nothing(
    server: RunningServer, client: httpx.Client
) -> None:
    before = server.services.engine.progress().steps
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
    complete(client, model=BASE, max_tokens=1)
    assert server.services.engine.progress().steps == before + 1


LEFT = {
    **KINDS,
    "evaluation": (
        "/v1/prefixes/tone/evaluate",
        {"examples": [{"input": "the", "output": "a"}] * 20, "metrics": ["exact_match"]},
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_who_leaves_before_the_first_token_counts_as_gone_and_not_as_a_fault(
    kind: str, client: httpx.Client, server: RunningServer
) -> None:
    until_idle(server)
    before = statuses(client)
    with slowed(server.services, 0.3):
        with send(server, *LEFT[kind]):
            until(lambda: server.services.engine.admission.num_open > 0)
        until(lambda: sum(statuses(client).values()) > sum(before.values()))
    now = statuses(client)
    route = LEFT[kind][0].replace("/tone/", "/{name}/")
    assert {key: now[key] - before.get(key, 0) for key in now if now[key] != before.get(key)} == {
        (route, "499"): 1
    }
    until_idle(server)


def test_who_leaves_in_the_midst_of_its_body_counts_as_gone(
    server: RunningServer, client: httpx.Client
) -> None:
    before = statuses(client)
    url = httpx.URL(server.url)
    for route in ("/v1/completions", "/v1/prefixes/tone/versions"):
        with socket.create_connection((url.host, url.port)) as connection:
            head = f"POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            head = head.replace("json", "octet-stream") if "versions" in route else head
            connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
            time.sleep(0.2)
    until(lambda: sum(statuses(client).values()) >= sum(before.values()) + 2)
    now = statuses(client)
    changed = {key for key in now if now[key] != before.get(key)}
    assert {status for _, status in changed} == {"499"}


def statuses(client: httpx.Client) -> dict[tuple[str, str], float]:
    """How many requests of each route got which status, `/metrics` itself left out."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "polyprefix_http_requests_total" and sample.labels["route"] != "/metrics"
    }
