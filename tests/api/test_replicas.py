"""Two servers on one catalog and one store: what one changes the other follows within a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from app.model.frozen import FrozenModel
from tests.api.guarded import PEPPER, Guarded, guarding
from tests.server import serving
from tests.tiny import random_prefix

LIMIT_S = 1.0


@dataclass
class Pair:
    """Two servers; keys are made at the first."""

    first: Guarded
    second: Guarded


@pytest.fixture(scope="module")
def pair(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("pair")
    with (
        guarding(tiny_gpt2, root) as first,
        serving(
            tiny_gpt2, root, key_pepper=PEPPER, auth_failures_per_minute=10**9, replica="second"
        ) as second,
    ):
        yield Pair(first, Guarded(second))


def seconds_until(condition: Callable[[], bool]) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 10
        time.sleep(0.01)
    return time.monotonic() - begun


def test_a_revoked_key_is_refused_by_the_other_within_a_second(pair: Pair) -> None:
    keyring = pair.first.server.services.keyring
    for _ in range(3):
        info, key = keyring.create("acme")
        with pair.second.client(key.text) as client:
            seconds_until(lambda c=client: c.get("/v1/models").status_code == 200)
            keyring.revoke("acme", info.kid)
            passed = seconds_until(lambda c=client: c.get("/v1/models").status_code == 401)
        assert passed < LIMIT_S


def test_a_new_key_is_known_to_the_other_at_once(pair: Pair) -> None:
    _, key = pair.first.server.services.keyring.create("acme")
    with pair.second.client(key.text) as client:
        assert client.get("/v1/models").status_code == 200


def test_a_disabled_tenant_is_refused_by_the_other_within_a_second(pair: Pair) -> None:
    accounts = pair.first.server.services.accounts
    with pair.second.client(pair.first.key("rival")) as client:
        assert client.get("/v1/models").status_code == 200
        accounts.change("rival", disabled=True)
        assert seconds_until(lambda: client.get("/v1/models").status_code == 401) < LIMIT_S
        accounts.change("rival", disabled=False)
        assert seconds_until(lambda: client.get("/v1/models").status_code == 200) < LIMIT_S


def test_a_warm_request_finds_the_catalog_looked_at_by_others(pair: Pair) -> None:
    feed = pair.second.server.services.registry.feed
    with pair.second.client(pair.first.key()) as client:
        client.get("/info")
        for _ in range(40):
            assert feed.fresh()
            client.get("/info")
            time.sleep(0.05)


def test_a_moved_alias_is_followed_within_a_second(pair: Pair, tiny_gpt2: FrozenModel) -> None:
    key = pair.first.key()
    digests = [
        pair.first.push("moving", random_prefix(tiny_gpt2, 3, seed=seed), key).json()["digest"]
        for seed in (50, 51)
    ]
    body = {"model": "moving@stable", "prompt": "x", "max_tokens": 1}
    with pair.first.client(key) as one, pair.second.client(key) as other:

        def served() -> str:
            return other.post("/v1/completions", json=body).headers.get("x-prefix-version", "")

        for digest in (*digests, digests[0]):
            moved = one.put("/v1/prefixes/moving/aliases/stable", json={"version": digest})
            assert moved.status_code == 200
            assert seconds_until(lambda wanted=digest: served() == wanted) < LIMIT_S
