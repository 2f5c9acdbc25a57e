"""Two servers on one catalog and one store: what one changes the other follows within a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from app.model.frozen import FrozenModel
from app.runtime import pinning
from app.runtime.prefix_cache import PrefixKey
from tests.api.guarded import PEPPER, Guarded, guarding
from tests.server import serving
from tests.tiny import random_prefix

pytestmark = pytest.mark.alone

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
    accounts = pair.first.server.services.tenants
    with pair.second.client(pair.first.key("rival")) as client:
        assert client.get("/v1/models").status_code == 200
        accounts.change("rival", disabled=True)
        assert seconds_until(lambda: client.get("/v1/models").status_code == 401) < LIMIT_S
        accounts.change("rival", disabled=False)
        assert seconds_until(lambda: client.get("/v1/models").status_code == 200) < LIMIT_S


def test_a_warm_request_finds_the_catalog_looked_at_by_others(pair: Pair) -> None:
    feed = pair.second.server.services.registry.catalog.feed
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


def test_a_pin_is_followed_within_a_second(pair: Pair, tiny_gpt2: FrozenModel) -> None:
    key = pair.first.key()
    digest = pair.first.push("pinned", random_prefix(tiny_gpt2, 3, seed=60), key).json()["digest"]
    version = pair.first.server.services.registry.get_version("acme", "pinned", digest)
    wanted = PrefixKey(version.owner, version.digest)
    url = f"/v1/prefixes/pinned/versions/{digest}/pin"

    def is_pinned(at: Guarded) -> bool:
        return wanted in at.server.services.prefix_cache.debug_state()["pinned"]

    with pair.first.client(key) as client:
        for _ in range(2):
            assert client.post(url).status_code == 200
            assert seconds_until(lambda: is_pinned(pair.second)) < LIMIT_S
            assert seconds_until(lambda: is_pinned(pair.first)) < LIMIT_S
            assert client.delete(url).status_code == 200
            assert seconds_until(lambda: not is_pinned(pair.second)) < LIMIT_S
        client.post(url)
        seconds_until(lambda: is_pinned(pair.second))
        client.delete("/v1/prefixes/pinned")
        assert seconds_until(lambda: not is_pinned(pair.second)) < LIMIT_S


def test_a_content_that_one_prefix_still_pins_stays_pinned(
    pair: Pair, tiny_gpt2: FrozenModel
) -> None:
    key, prefix = pair.first.key(), random_prefix(tiny_gpt2, 3, seed=61)
    digest = prefix.digest
    with pair.first.client(key) as client:
        for name in ("both-a", "both-b"):
            pair.first.push(name, prefix, key)
            client.post(f"/v1/prefixes/{name}/versions/{digest}/pin")
        client.delete(f"/v1/prefixes/both-a/versions/{digest}/pin")
        version = pair.first.server.services.registry.get_version("acme", "both-b", digest)
        wanted = PrefixKey(version.owner, digest)
        for at in (pair.first, pair.second):
            seconds_until(
                lambda at=at: wanted in at.server.services.prefix_cache.debug_state()["pinned"]
            )
        for _ in range(20):
            pair.first.key("rival")  # a change that is not about pins
            assert all(
                wanted in at.server.services.prefix_cache.debug_state()["pinned"]
                for at in (pair.first, pair.second)
            )
            time.sleep(0.05)


def test_a_server_that_starts_keeps_the_pins_that_were_made_last(
    pair: Pair, tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "MAX_PINNED", 2)
    key = pair.first.key()
    prefixes = [random_prefix(tiny_gpt2, 2, seed=70 + number) for number in range(4)]
    with pair.first.client(key) as client:
        for number, prefix in enumerate(prefixes):
            pair.first.push(f"last-{number}", prefix, key)
        for number in (3, 1, 0, 2):
            url = f"/v1/prefixes/last-{number}/versions/{prefixes[number].digest}/pin"
            assert client.post(url).status_code == 200
    with serving(tiny_gpt2, pair.first.server.root, key_pepper=PEPPER, replica="third") as third:
        tiers, owner = (
            third.services.prefix_cache,
            third.services.registry.get_version("acme", "last-0", prefixes[0].digest).owner,
        )
        pinned = tiers.debug_state()["pinned"]
        kept = [PrefixKey(owner, prefix.digest) in pinned for prefix in prefixes]
    assert kept == [True, False, True, False]
