"""Work beside the engine counts against its tenant's limits and in its usage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.model.frozen import FrozenModel
from tests.api.guarded import Guarded, guarding
from tests.tiny import random_prefix

_EXAMPLE = {"input": "the tone", "output": "of the voice"}
_EVALUATE = "/v1/prefixes/tone/evaluate"
_LOSS = {"metrics": ["loss"], "examples": [_EXAMPLE]}


@pytest.fixture(scope="module")
def guarded(tiny_bart: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A BART, whose losses are all computed beside the engine."""
    with guarding(tiny_bart, tmp_path_factory.mktemp("beside")) as guarded:
        for tenant in ("acme", "rival", "poor"):
            if tenant == "poor":
                guarded.server.services.tenants.create(tenant)
            prefix = random_prefix(tiny_bart, 4, seed=5)
            assert guarded.push("tone", prefix, guarded.key(tenant)).status_code == 201
        yield guarded


def limit(guarded: Guarded, tenant: str, **limits: int | None) -> None:
    guarded.server.services.tenants.change(tenant, limits=limits)


def used(client: httpx.Client) -> tuple[int, int]:
    [row] = client.get("/v1/usage?group_by=prefix&prefix=tone").json()["data"] or [None]
    return (0, 0) if row is None else (row["requests"], row["tokens_in"])


def test_usage_counts_a_loss_computed_beside_the_engine(guarded: Guarded) -> None:
    with guarded.client(guarded.key("acme")) as client:
        before = used(client)
        reply = client.post(_EVALUATE, json={**_LOSS, "examples": [_EXAMPLE] * 3}).json()
        requests, tokens = used(client)
    assert requests == before[0] + 1
    assert tokens - before[1] > reply["num_target_tokens"]


def test_usage_counts_the_answers_and_the_targets_of_a_comparison(guarded: Guarded) -> None:
    body = {"a": "latest", "b": "latest", "max_tokens": 1, "examples": [_EXAMPLE]}
    with guarded.client(guarded.key("acme")) as client:
        client.post(_EVALUATE, json=_LOSS)
        before = used(client)
        client.post(_EVALUATE, json=_LOSS)
        once = used(client)[1] - before[1]
        before = used(client)
        assert client.post("/v1/prefixes/tone/compare", json=body).status_code == 200
        requests, tokens = used(client)
    assert requests == before[0] + 2  # what it says is asked for, and how probable the target is
    assert tokens - before[1] > 2 * once


def test_a_tenants_limits_hold_for_work_beside_the_engine(guarded: Guarded) -> None:
    with guarded.client(guarded.key("poor")) as client:
        limit(guarded, "poor", requests_per_minute=1)
        assert client.post(_EVALUATE, json=_LOSS).status_code == 200
        refused = client.post(_EVALUATE, json=_LOSS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            429,
            "rate_limit_exceeded",
        )
        assert int(refused.headers["retry-after"]) >= 1
        limit(guarded, "poor", requests_per_minute=None, tokens_per_minute=3)
        impossible = client.post(_EVALUATE, json=_LOSS)
        assert impossible.status_code == 400


def test_many_evaluations_of_one_tenant_do_not_block_others(guarded: Guarded) -> None:
    over, codes = threading.Event(), list[int]()
    many = {**_LOSS, "examples": [_EXAMPLE] * 64}

    def flood() -> None:
        with guarded.client(guarded.key("acme")) as client:
            while not over.is_set():
                codes.append(client.post(_EVALUATE, json=many).status_code)

    guarded.key("acme")
    with ThreadPoolExecutor(24) as pool, guarded.client(guarded.key("rival")) as rival:
        floods = [pool.submit(flood) for _ in range(24)]
        time.sleep(0.5)
        try:
            mine = [rival.post(_EVALUATE, json=_LOSS).status_code for _ in range(3)]
        finally:
            over.set()
        for ended in floods:
            ended.result()
    assert mine == [200, 200, 200]
    assert 429 in codes
    assert 503 not in codes
