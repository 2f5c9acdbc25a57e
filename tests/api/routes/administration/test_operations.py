"""Health from the engine's progress; what clients see while the server drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from app.engine.fairness.forecast import SchedulerFigures
from app.main import drain
from tests.api.helpers import (
    NO_END,
    Json,
    complete,
    error_of,
    events_of,
    held,
    slowed,
    text_of,
    until,
)
from tests.server import RunningServer

ROUTES = ("/health/live", "/health/ready", "/health")


@pytest.fixture
def client(own_server: RunningServer) -> Iterator[httpx.Client]:
    with own_server.client() as client:
        yield client


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def statuses(client: httpx.Client) -> dict[str, int]:
    return {route: client.get(route).status_code for route in ROUTES}


def start_draining(server: RunningServer, timeout: float) -> Future[None]:
    """Drain as the server does when it is told to end; returns once nothing new is taken."""
    draining = asyncio.run_coroutine_threadsafe(drain(server.app, timeout), server.loop)
    until(lambda: server.services.engine.progress().draining)
    return draining


def kill_engine(server: RunningServer) -> None:
    """Let the engine's thread die of an error that nobody foresaw."""

    def explode() -> None:
        raise RuntimeError("on purpose")

    engine = server.services.engine
    engine.step = explode
    with contextlib.suppress(httpx.HTTPError), server.client() as client:
        complete(client)
    until(lambda: not engine.progress().alive)


def test_a_server_that_idles_is_live_and_ready(client: httpx.Client) -> None:
    assert statuses(client) == dict.fromkeys(ROUTES, 200)
    body = client.get("/health/ready").json()
    assert body["status"] == "ok"
    assert (body["draining"], body["running"], body["waiting"]) == (False, 0, 0)


def test_health_counts_the_engines_steps(client: httpx.Client) -> None:
    before = client.get("/health/live").json()["steps"]
    complete(client, max_tokens=5, logit_bias=NO_END)
    assert client.get("/health/live").json()["steps"] >= before + 5


def test_a_step_that_hangs_makes_the_server_unhealthy_until_it_ends(
    client: httpx.Client, own_server: RunningServer, pool: ThreadPoolExecutor
) -> None:
    with held(own_server.services):
        stuck = pool.submit(complete, client)
        until(lambda: client.get("/health/live").status_code == 503)
        assert statuses(client) == dict.fromkeys(ROUTES, 503)
        assert client.get("/health/live").json()["status"] == "unavailable"
    assert stuck.result().status_code == 200
    assert statuses(client) == dict.fromkeys(ROUTES, 200)


def test_many_short_steps_are_no_stall(
    client: httpx.Client, own_server: RunningServer, pool: ThreadPoolExecutor
) -> None:
    with slowed(own_server.services, 0.04):
        busy = pool.submit(complete, client, max_tokens=40, logit_bias=NO_END)
        seen = set()
        while not busy.done():
            seen.add(client.get("/health/live").status_code)
    assert seen == {200}


def test_a_dead_engine_is_neither_live_nor_ready(
    client: httpx.Client, own_server: RunningServer
) -> None:
    kill_engine(own_server)
    assert statuses(client) == dict.fromkeys(ROUTES, 503)
    reply = complete(client)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "engine_stopped")
    assert int(reply.headers["retry-after"]) >= 1


def test_the_death_of_the_engine_answers_whatever_runs(
    client: httpx.Client, own_server: RunningServer, pool: ThreadPoolExecutor
) -> None:
    with held(own_server.services):
        running = [
            pool.submit(complete, client),
            pool.submit(complete, client, stream=True),
        ]
        until(lambda: own_server.services.engine.admission.num_open == 2)
        own_server.services.engine.step = None
    for future in running:
        reply = future.result()
        last = reply.json() if reply.status_code == 503 else events_of(reply.text)[-1]
        assert last["error"]["code"] == "engine_stopped"


def test_a_draining_server_is_live_and_not_ready(
    client: httpx.Client, own_server: RunningServer
) -> None:
    start_draining(own_server, 5).result(10)
    assert statuses(client) == {"/health/live": 200, "/health/ready": 503, "/health": 503}
    assert client.get("/health/ready").json()["draining"] is True


def test_new_requests_are_told_that_the_server_drains(
    client: httpx.Client, own_server: RunningServer
) -> None:
    start_draining(own_server, 5).result(10)
    for fields in ({}, {"stream": True}):
        reply = complete(client, **fields)
        assert (reply.status_code, error_of(reply)["code"]) == (503, "draining")
        assert int(reply.headers["retry-after"]) >= 1
    reply = client.post("/generate", json={"inputs": "the"})
    assert reply.status_code == 503
    assert reply.json()["error_type"] == "overloaded"
    assert client.get("/v1/models").status_code == 200


def test_running_requests_finish_while_the_server_drains(
    client: httpx.Client, own_server: RunningServer, pool: ThreadPoolExecutor
) -> None:
    expected = text_of(complete(client, max_tokens=20))
    with held(own_server.services):
        whole = pool.submit(complete, client, max_tokens=20)
        streamed = pool.submit(complete, client, max_tokens=20, stream=True)
        until(lambda: own_server.services.engine.admission.num_open == 2)
        draining = start_draining(own_server, 20)
        assert not draining.done()
    draining.result(20)
    assert text_of(whole.result()) == expected
    *chunks, done = events_of(streamed.result().text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected
    assert done == "[DONE]"


def test_what_the_drains_deadline_cuts_ends_with_an_error(
    client: httpx.Client, own_server: RunningServer, pool: ThreadPoolExecutor
) -> None:
    fields = {"max_tokens": 100, "logit_bias": NO_END}
    with slowed(own_server.services, 0.02):
        whole = pool.submit(complete, client, **fields)
        streams = [
            pool.submit(complete, client, stream=True, **fields),
            pool.submit(stream_tgi, client),
        ]
        engine = own_server.services.engine
        until(lambda: engine.progress().running == 3)
        made = engine.counters.generated_tokens
        until(lambda: engine.counters.generated_tokens > made + 6)
        start_draining(own_server, 0.1).result(10)
        engine.stop()
    assert error_of(whole.result())["code"] == "draining"
    openai, tgi = (events_of(future.result().text) for future in streams)
    assert len(openai) > 1
    assert openai[-1]["error"]["code"] == "draining"
    assert "[DONE]" not in openai
    assert tgi[-1].keys() == {"error", "error_type"}


def stream_tgi(client: httpx.Client) -> httpx.Response:
    parameters: Json = {"max_new_tokens": 100, "min_tokens": 100}
    return client.post("/generate_stream", json={"inputs": "the", "parameters": parameters})


def test_a_full_queue_is_not_ready(client: httpx.Client, own_server: RunningServer) -> None:
    engine = own_server.services.engine
    engine.admission.note_step(SchedulerFigures(num_waiting=engine.config.max_waiting))
    assert statuses(client) == {"/health/live": 200, "/health/ready": 503, "/health": 200}
    complete(client)
    until(lambda: client.get("/health/ready").status_code == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_health_is_only_read(method: str, client: httpx.Client) -> None:
    assert client.request(method, "/health/live").status_code == 405
