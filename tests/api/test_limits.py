"""A tenant's limits over HTTP: what replies say, what is refused, what is given back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.errors import Overloaded
from app.model.frozen import FrozenModel
from app.registry.shipped.import_ import DEMO_TENANT
from tests.api.helpers import (
    BASE,
    END,
    NO_END,
    complete,
    error_of,
    events_of,
    slowed,
    until,
    until_idle,
)
from tests.api.test_disconnect import send
from tests.redis_server import RedisServer, redis_server
from tests.server import RunningServer, serving

RATES = ("limit", "remaining", "reset")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def replicas(
    tiny_gpt2: FrozenModel, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, RunningServer]]:
    """Two servers with a catalog each and one Redis."""
    folders = (tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two"))
    # patience: what is tested here is not how fast a busy machine is
    shared = {"redis_url": redis.url, "redis_timeout": 1}
    with (
        serving(tiny_gpt2, folders[0], **shared) as one,
        serving(tiny_gpt2, folders[1], **shared) as two,
    ):
        yield one, two


@pytest.fixture
def server(replicas: tuple[RunningServer, RunningServer]) -> RunningServer:
    return replicas[0]


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(autouse=True)
def _as_at_first(replicas: tuple[RunningServer, RunningServer], redis: RedisServer) -> None:
    redis.command("FLUSHALL")
    for replica in replicas:
        until(lambda replica=replica: not replica.services.limiter.is_degraded)
        replica.services.limiter.forget_local()


def limit(*servers: RunningServer, **limits: float) -> None:
    """Give the tenant these limits and no others."""
    none = dict.fromkeys(
        ("requests_per_minute", "tokens_per_minute", "max_rows", "max_queue", "weight")
    )
    for each in servers:
        each.services.tenants.change(DEMO_TENANT, limits={**none, **limits})
        each.services.registry.catalog.feed.poll()


def remaining(reply: httpx.Response, name: str) -> int:
    return int(reply.headers[f"x-ratelimit-remaining-{name}"])


def rate_headers(reply: httpx.Response) -> set[str]:
    return {name for name in reply.headers if name.startswith("x-ratelimit-")}


def tokens_left(client: httpx.Client) -> int:
    """What is left of the tokens, by a request that takes two."""
    return remaining(complete(client, [5], max_tokens=1, logit_bias=NO_END), "tokens") + 2


def test_without_limits_replies_have_no_headers(
    server: RunningServer, client: httpx.Client
) -> None:
    limit(server)
    assert not rate_headers(complete(client))


def test_replies_and_streams_tell_the_limits(server: RunningServer, client: httpx.Client) -> None:
    limit(server, requests_per_minute=60, tokens_per_minute=60_000)
    body = {"inputs": "the", "parameters": {"max_new_tokens": 3}}
    replies = [
        complete(client, [5, 6], max_tokens=8),
        complete(client, [5, 6], max_tokens=8, stream=True),
        client.post("/generate", json=body),
        client.post("/generate_stream", json=body),
        client.post("/", json=body),
    ]
    every = {f"x-ratelimit-{what}-{of}" for what in RATES for of in ("requests", "tokens")}
    for number, reply in enumerate(replies, 1):
        assert reply.status_code == 200
        assert rate_headers(reply) == every
        assert reply.headers["x-ratelimit-limit-requests"] == "60"
        assert 60 - number <= remaining(reply, "requests") < 60
    first = replies[0]
    assert 59_990 <= remaining(first, "tokens") <= 60_000
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")


def test_too_many_requests_are_told_when_to_come_back(
    server: RunningServer, client: httpx.Client
) -> None:
    limit(server, requests_per_minute=1)
    assert complete(client).status_code == 200
    body = {"inputs": "the"}
    refused = [
        complete(client),
        complete(client, stream=True),
        client.post("/generate", json=body),
        client.post("/generate_stream", json=body),
    ]
    for reply in refused:
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert remaining(reply, "requests") == 0
        assert reply.headers["x-ratelimit-limit-requests"] == "1"
    assert error_of(refused[0])["code"] == "rate_limit_exceeded"
    assert "1 requests per minute" in error_of(refused[0])["message"]
    assert refused[2].json()["error_type"] == "overloaded"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/tokenize", {"inputs": "the"}),
        ("POST", "/detokenize", {"tokens": [5]}),
        ("PUT", "/v1/prefixes/e2e/publication", {"everyone": True}),
        ("PUT", "/v1/prefixes/e2e/aliases/stable", {"version": "abcdef"}),
        ("POST", "/v1/prefixes/e2e/versions", None),
        ("DELETE", "/v1/prefixes/e2e", None),
    ],
)
def test_what_changes_or_encodes_counts_as_a_request_and_reading_does_not(
    method: str, path: str, body: object, server: RunningServer, client: httpx.Client
) -> None:
    limit(server, requests_per_minute=2)
    codes = [client.request(method, path, json=body).status_code for _ in range(3)]
    assert 429 not in codes[:2]
    assert codes[2] == 429
    assert client.get("/v1/prefixes").status_code == 200
    assert complete(client).status_code == 429


def test_openais_client_sees_its_own_error(server: RunningServer) -> None:
    limit(server, requests_per_minute=1)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        client.completions.create(model=BASE, prompt="the")
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=BASE, prompt="the")
    assert caught.value.code == "rate_limit_exceeded"


def test_a_request_beyond_the_whole_limit_is_wrong_and_not_early(
    server: RunningServer, client: httpx.Client
) -> None:
    limit(server, tokens_per_minute=10, max_rows=2)
    reply = complete(client, [5, 6, 7], max_tokens=8)
    assert reply.status_code == 400
    assert "11 tokens" in error_of(reply)["message"]
    reply = complete(client, [5], max_tokens=1, n=3)
    assert reply.status_code == 400
    assert "2 rows at a time" in error_of(reply)["message"]
    assert complete(client, [5, 6], max_tokens=8).status_code == 200


def test_what_a_request_did_not_use_is_given_back(
    server: RunningServer, client: httpx.Client
) -> None:
    limit(server, tokens_per_minute=100)
    reply = complete(client, [5, 6], max_tokens=50, logit_bias={str(END): 100})
    assert 48 <= remaining(reply, "tokens") <= 60
    assert reply.json()["usage"]["total_tokens"] == 3
    until_idle(server)
    assert tokens_left(client) >= 97
    began = time.monotonic()
    complete(client, [5, 6], max_tokens=50, logit_bias=NO_END)
    until_idle(server)
    refilled = (time.monotonic() - began) * 100 / 60
    assert tokens_left(client) <= 50 + refilled + 4


def test_a_refusal_of_the_engine_counts_nowhere(
    server: RunningServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(server, requests_per_minute=3, tokens_per_minute=100)

    refuse = Mock(side_effect=Overloaded("full"))
    with monkeypatch.context() as patch:
        patch.setattr(server.services.engine, "submit", refuse)
        for _ in range(9):
            assert complete(client, [5], max_tokens=90).status_code == 503
    reply = complete(client, [5], max_tokens=1)
    assert remaining(reply, "requests") == 2
    assert remaining(reply, "tokens") >= 98


def test_a_request_that_runs_out_of_time_is_settled(
    server: RunningServer, client: httpx.Client
) -> None:
    limit(server, tokens_per_minute=100, max_rows=4)
    with slowed(server.services, 0.05):
        reply = complete(client, [5], max_tokens=90, n=1, timeout=0.2, logit_bias=NO_END)
    assert reply.status_code == 504
    until_idle(server)
    assert tokens_left(client) > 80
    assert complete(client, [5], max_tokens=1, n=4).status_code == 200


def test_a_client_that_vanishes_gives_its_rows_and_tokens_back(
    server: RunningServer, client: httpx.Client, redis: RedisServer
) -> None:
    limit(server, tokens_per_minute=1000, max_rows=4)
    fields = {"model": BASE, "prompt": [5], "max_tokens": 100, "n": 4, "stream": True}
    leases = "polyprefix:limits:{demo}:leases"
    with slowed(server.services, 0.02):
        for _ in range(2):
            with send(server, "/v1/completions", {**fields, "logit_bias": NO_END}) as raw:
                assert raw.recv(100).startswith(b"HTTP/1.1 200")
                assert complete(client, [5], max_tokens=1).status_code == 429
                assert redis.command("ZCARD", leases) == 4
            until(lambda: redis.command("ZCARD", leases) == 0)
    assert tokens_left(client) > 800


def test_rows_at_a_time_are_bounded_over_both_replicas(
    replicas: tuple[RunningServer, RunningServer],
) -> None:
    one, two = replicas
    limit(one, two, max_rows=6)
    body = {"model": BASE, "prompt": [5], "n": 3, "max_tokens": 60, "logit_bias": NO_END}

    def call(server: RunningServer) -> int:
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code

    with (
        slowed(one.services, 0.02),
        slowed(two.services, 0.02),
        ThreadPoolExecutor(8) as pool,
    ):
        statuses = list(pool.map(call, [one, two] * 4))
    assert sorted(statuses) == [200, 200] + [429] * 6


def test_requests_of_both_replicas_count_together(
    replicas: tuple[RunningServer, RunningServer],
) -> None:
    limit(*replicas, requests_per_minute=10)
    began, statuses = time.monotonic(), []
    for number in range(24):
        with replicas[number % 2].client() as client:
            statuses.append(complete(client, [5], max_tokens=1).status_code)
    refilled = (time.monotonic() - began) * 10 / 60
    assert 10 <= statuses.count(200) <= 10 + refilled + 1
    assert set(statuses) == {200, 429}


def _metric(client: httpx.Client, name: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return next(s.value for family in families for s in family.samples if s.name == name)


def test_without_redis_requests_are_served_and_limited(
    tiny_gpt2: FrozenModel, tmp_path: Path
) -> None:
    with (
        redis_server(tmp_path / "redis") as redis,
        serving(tiny_gpt2, tmp_path / "server", redis_url=redis.url) as server,
        server.client() as client,
    ):
        limit(server, requests_per_minute=30, tokens_per_minute=10**6)
        assert complete(client, [5], max_tokens=1).status_code == 200
        until(lambda: _metric(client, "polyprefix_limiter_degraded") == 0, 5)
        for disturb, mend in ((redis.freeze, redis.thaw), (redis.stop, redis.start)):
            disturb()
            statuses = [complete(client, [5], max_tokens=1).status_code for _ in range(50)]
            assert set(statuses) <= {200, 429}
            assert statuses.count(429) > 15
            until(lambda: _metric(client, "polyprefix_limiter_degraded") == 1, 5)
            assert _metric(client, "polyprefix_limiter_faults_total") > 0
            mend()
            until(lambda: _metric(client, "polyprefix_limiter_degraded") == 0, 5)


def test_a_stream_refused_by_its_limit_is_an_error_reply_and_no_stream(
    server: RunningServer, client: httpx.Client
) -> None:
    limit(server, requests_per_minute=1)
    assert events_of(complete(client, stream=True).text)[-1] == "[DONE]"
    reply = complete(client, stream=True)
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.status_code == 429


def test_weight_and_caps_reach_the_engine(
    server: RunningServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(server, max_rows=7, max_queue=3, weight=2.5)
    submit = Mock(wraps=server.services.engine.submit)
    with monkeypatch.context() as patch:
        patch.setattr(server.services.engine, "submit", submit)
        assert complete(client).status_code == 200
    [call] = submit.call_args_list
    request = call.args[0]
    assert (request.weight, request.row_cap, request.queue_cap) == (2.5, 7, 3)
    limit(server)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": BASE, "prompt": [5], "priority": -7}),
        ("/generate", {"inputs": "the", "parameters": {"priority": -7}}),
    ],
)
def test_a_priority_reaches_the_engine(
    path: str,
    body: dict[str, object],
    server: RunningServer,
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit = Mock(wraps=server.services.engine.submit)
    with monkeypatch.context() as patch:
        patch.setattr(server.services.engine, "submit", submit)
        assert client.post(path, json=body).status_code == 200
    assert submit.call_args.args[0].priority == -7
    assert complete(client, priority=101).status_code == 400
