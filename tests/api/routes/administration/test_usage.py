"""`GET /v1/usage`: the sums of what replies have said, seen at once and by the tenant alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from openai import OpenAI, OpenAIError
from sqlalchemy import update

from app.db.schema import tenants
from app.model.frozen import FrozenModel
from tests.api.guarded import EVERYTHING, Guarded, guarding
from tests.api.helpers import BASE, NO_END, complete, slowed, until, until_idle
from tests.tiny import random_prefix

ADMIN = EVERYTHING
PLAIN = EVERYTHING - {"admin"}


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("usage")) as guarded:
        yield guarded


def usage(client: httpx.Client, **query: object) -> list[dict[str, Any]]:
    reply = client.get("/v1/usage", params=query)
    assert reply.status_code == 200, reply.text
    assert reply.json()["object"] == "list"
    return list(reply.json()["data"])


def new_tenant(guarded: Guarded, name: str) -> httpx.Client:
    guarded.server.services.tenants.create(name)
    return guarded.client(guarded.key(name, PLAIN))


def counts(client: httpx.Client, **query: object) -> tuple[int, ...]:
    names = ("requests", "failed", "tokens_in", "tokens_out")
    [row] = usage(client, **query) or [dict.fromkeys(names, 0)]
    return tuple(row[name] for name in names)


def test_sums_are_those_of_the_replies(guarded: Guarded, tiny_gpt2: FrozenModel) -> None:
    client = new_tenant(guarded, "sums")
    key = guarded.key("sums", PLAIN)
    assert guarded.push("tone", random_prefix(tiny_gpt2, 5), key).status_code == 201
    openai = OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
    used = [0, 0]

    def note(totals: Any) -> None:
        used[0] += totals.prompt_tokens
        used[1] += totals.completion_tokens

    variants: list[dict[str, Any]] = [
        {},
        {"n": 3, "temperature": 1.0},
        {"n": 1, "best_of": 4, "temperature": 1.0},
        {"prompt": ["the cat", "a dog on the mat"]},
        {"echo": True, "logprobs": 2},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
        {"stop": ["e"], "temperature": 1.0},
    ]
    good = 0
    for model in (BASE, "tone"):
        for variant in variants:
            fields = {"prompt": "the quick fox", "max_tokens": 6, "model": model, **variant}
            note(openai.completions.create(**fields).usage)
            good += 1
            if "best_of" in variant:
                continue
            stream = openai.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}
            )
            note(list(stream)[-1].usage)
            good += 1
    for bad in ({"max_tokens": 10_000}, {"model": "nobody"}, {"n": 0}):
        with suppress(OpenAIError):
            openai.completions.create(**{"model": BASE, "prompt": "x", **bad})
    assert counts(client) == (good, 0, *used)
    guarded.server.services.usage.flush()
    assert counts(client) == (good, 0, *used)
    by_version = usage(client, group_by="prefix,version")
    assert [row["prefix"] for row in by_version] == ["", "tone"]
    assert sum(row["requests"] for row in by_version) == good
    [tone] = usage(client, group_by="version", prefix="tone")
    assert (tone["requests"], len(tone["version"])) == (good // 2, 64)
    assert 0 <= tone["mean_first_token_ms"] <= tone["mean_total_ms"]
    client.close()


def test_beams_count_every_beam(guarded: Guarded) -> None:
    client = new_tenant(guarded, "beams")
    reply = complete(client, num_beams=3, max_tokens=5, logit_bias=NO_END)
    assert reply.status_code == 200
    assert counts(client)[3] == 15
    client.close()


def test_a_request_past_its_time_counts_what_was_computed(guarded: Guarded) -> None:
    client = new_tenant(guarded, "late")
    with slowed(guarded.server.services, 0.02):
        reply = complete(client, timeout=0.3, max_tokens=100, logit_bias=NO_END)
    assert reply.status_code == 504
    requests, failed, tokens_in, tokens_out = counts(client)
    assert (requests, failed) == (1, 1)
    assert tokens_in > 0
    assert 0 < tokens_out < 100
    [row] = usage(client)
    assert row["mean_total_ms"] is None
    client.close()


def test_a_request_whose_client_goes_away_counts_what_was_computed(guarded: Guarded) -> None:
    client = new_tenant(guarded, "gone")
    body = {"model": BASE, "prompt": "the", "max_tokens": 100, "stream": True}
    with slowed(guarded.server.services, 0.02):
        with client.stream("POST", "/v1/completions", json={**body, "logit_bias": NO_END}) as reply:
            next(reply.iter_bytes())
        until(lambda: counts(client)[0] == 1)
    until_idle(guarded.server)
    assert counts(client)[:2] == (1, 1)
    assert 0 < counts(client)[3] < 100
    client.close()


def test_what_never_reached_the_engine_is_no_usage(guarded: Guarded) -> None:
    client = new_tenant(guarded, "idle")
    assert complete(client, model="nobody").status_code == 404
    assert complete(client, max_tokens=10_000).status_code == 400
    assert client.post("/tokenize", json={"inputs": "the"}).status_code == 200
    assert usage(client) == []
    client.close()


def test_the_caller_of_anothers_prefix_pays(guarded: Guarded, tiny_gpt2: FrozenModel) -> None:
    owner, caller = new_tenant(guarded, "owner"), new_tenant(guarded, "caller")
    key = guarded.key("owner", PLAIN)
    assert guarded.push("shared", random_prefix(tiny_gpt2, 4), key).status_code == 201
    assert owner.put("/v1/prefixes/shared/publication", json={"everyone": True}).is_success
    assert usage(owner) == []
    assert complete(caller, model="owner/shared").status_code == 200
    assert usage(owner) == []
    [row] = usage(caller, group_by="prefix")
    assert (row["prefix"], row["requests"]) == ("owner/shared", 1)
    owner.close()
    caller.close()


def test_others_usage_needs_an_admin(guarded: Guarded) -> None:
    client = new_tenant(guarded, "mine")
    assert complete(client).status_code == 200
    assert client.get("/v1/usage", params={"tenant": "acme"}).status_code == 403
    assert client.get("/v1/usage", params={"tenant": "mine"}).status_code == 200
    with guarded.client(guarded.key("rival", ADMIN)) as admin:
        assert counts(admin, tenant="mine")[0] == 1
        assert usage(admin, tenant="nobody") == []
    client.close()


def test_times_are_seconds_or_dates(guarded: Guarded) -> None:
    client = new_tenant(guarded, "times")
    assert complete(client).status_code == 200
    now = time.time()
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    for start in (str(int(now)), date, date.replace("Z", "+00:00")):
        assert counts(client, start=start)[0] == 1
    assert usage(client, start="2020-01-01T00:00:00Z", end="2020-02-01T00:00:00Z") == []
    [row] = usage(client, group_by="hour")
    assert row["start"] <= now < row["end"] == row["start"] + 3600
    client.close()


@pytest.mark.parametrize(
    "query",
    [
        {"start": "yesterday"},
        {"start": "2026-01-01T00:00:00"},
        {"end": "9" * 13},
        {"start": "-1"},
        {"group_by": "tenant"},
        {"group_by": "hour", "cursor": "abc"},
    ],
)
def test_a_wrong_question_is_refused(guarded: Guarded, query: dict[str, str]) -> None:
    with guarded.client(guarded.key()) as client:
        reply = client.get("/v1/usage", params=query)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] in query


def test_usage_is_in_the_catalog_within_seconds(guarded: Guarded) -> None:
    client = new_tenant(guarded, "soon")
    assert complete(client).status_code == 200
    ledger = guarded.server.services.usage
    until(lambda: not len(ledger), 15)
    assert counts(client)[0] == 1
    client.close()


def test_the_last_usage_is_written_when_the_server_stops(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("stopping")
    with guarding(tiny_gpt2, root) as guarded, guarded.client(guarded.key()) as client:
        assert complete(client).status_code == 200
        ledger = guarded.server.services.usage
    assert len(ledger) == 0


def test_a_new_tenant_does_not_see_what_one_of_its_name_used_before(guarded: Guarded) -> None:
    with new_tenant(guarded, "phoenix") as client:
        complete(client)
        assert counts(client)[0] == 1
    catalog = guarded.server.services.registry.catalog
    born = int(time.time()) // 3600 * 3600 + 3600
    with catalog.append() as connection:
        later = update(tenants).where(tenants.c.id == "phoenix").values(created_at=born)
        connection.execute(later)
    with guarded.client(guarded.key("phoenix", PLAIN)) as client:
        assert usage(client, start=0, end=born + 7200) == []
    with guarded.client(guarded.key("acme", ADMIN)) as admin:
        assert counts(admin, start=0, tenant="phoenix")[0] == 1
