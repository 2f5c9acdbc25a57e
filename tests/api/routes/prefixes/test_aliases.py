"""`/v1/prefixes/{name}/aliases`: moved with ETag and If-Match, rolled back."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.model.frozen import FrozenModel
from tests.api.helpers import complete, error_of
from tests.server import RunningServer
from tests.tiny import random_prefix

NAME = "pointed"
URL = f"/v1/prefixes/{NAME}/aliases"


@pytest.fixture
def digests(
    client: httpx.Client, server: RunningServer, tiny_gpt2: FrozenModel
) -> Iterator[list[str]]:
    """Three versions of a prefix that has no alias but `latest`, the oldest first."""
    made = [random_prefix(tiny_gpt2, 2, seed=60 + seed) for seed in range(3)]
    yield [server.push(NAME, prefix).json()["digest"] for prefix in made]
    client.delete(f"/v1/prefixes/{NAME}")


def move(
    client: httpx.Client, digest: str, alias: str = "stable", **headers: str
) -> httpx.Response:
    return client.put(f"{URL}/{alias}", json={"version": digest}, headers=headers)


def served_by(client: httpx.Client, model: str) -> str:
    return complete(client, model=model).headers["x-prefix-version"]


def test_latest_points_at_the_newest_version(client: httpx.Client, digests: list[str]) -> None:
    body = client.get(f"{URL}/latest").json()
    assert (body["object"], body["name"], body["alias"]) == ("prefix.alias", NAME, "latest")
    assert body["version"] == digests[-1]
    assert body["updated_at"] > 1_700_000_000


def test_an_alias_that_was_moved_serves_its_version_at_once(
    client: httpx.Client, digests: list[str]
) -> None:
    for digest in (digests[0], digests[1]):
        reply = move(client, digest[:12])
        assert (reply.status_code, reply.json()["version"]) == (200, digest)
        assert served_by(client, f"{NAME}@stable") == digest
    assert served_by(client, NAME) == digests[-1]


def test_latest_can_be_moved_back(client: httpx.Client, digests: list[str]) -> None:
    move(client, digests[0], "latest")
    assert served_by(client, NAME) == digests[0]


def test_every_move_changes_the_etag(client: httpx.Client, digests: list[str]) -> None:
    etags = [move(client, digest).headers["etag"] for digest in digests]
    assert len(set(etags)) == 3
    assert client.get(f"{URL}/stable").headers["etag"] == etags[-1]
    assert all(etag.startswith('"') and etag.endswith('"') for etag in etags)


def test_if_match_moves_an_alias_that_nobody_moved_meanwhile(
    client: httpx.Client, digests: list[str]
) -> None:
    etag = move(client, digests[0]).headers["etag"]
    assert move(client, digests[1], **{"if-match": etag}).status_code == 200


def test_if_match_refuses_an_alias_that_was_moved_meanwhile(
    client: httpx.Client, digests: list[str]
) -> None:
    etag = move(client, digests[0]).headers["etag"]
    move(client, digests[1])
    reply = move(client, digests[2], **{"if-match": etag})
    assert (reply.status_code, error_of(reply)["code"]) == (412, "precondition_failed")
    assert client.get(f"{URL}/stable").json()["version"] == digests[1]
    rollback = client.post(f"{URL}/stable/rollback", headers={"if-match": etag})
    assert rollback.status_code == 412


def test_if_match_with_a_star_wants_an_alias_that_is_there(
    client: httpx.Client, digests: list[str]
) -> None:
    assert move(client, digests[0], **{"if-match": "*"}).status_code == 412
    move(client, digests[0])
    assert move(client, digests[1], **{"if-match": "*"}).status_code == 200


def test_rollback_goes_back_step_by_step_and_then_refuses(
    client: httpx.Client, digests: list[str]
) -> None:
    for digest in digests:
        move(client, digest)
    for digest in (digests[1], digests[0]):
        reply = client.post(f"{URL}/stable/rollback")
        assert (reply.status_code, reply.json()["version"]) == (200, digest)
        assert served_by(client, f"{NAME}@stable") == digest
    reply = client.post(f"{URL}/stable/rollback")
    assert (reply.status_code, error_of(reply)["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"version": 5},
        {"version": "short"},
        {"version": "F" * 64},
        {"version": "../../etc"},
        {"version": "f" * 65},
        {"version": "ffffff", "more": 1},
        {"split": {"ffffff": 100}},
        {"split": {"ffffff": 1, "eeeeee": 0}},
        {"split": {"ffffff": 1, "eeeeee": 10001}},
        {"split": {"ffffff": 1, "eeeeee": 1.5}},
        {"split": {"ffffff": 1, "stable": 1}},
        {"split": {f"{number:06x}": 1 for number in range(17)}},
        {"version": "ffffff", "split": {"ffffff": 1, "eeeeee": 1}},
        {"version": None},
        [],
    ],
    ids=lambda body: str(body)[:40],
)
def test_a_wrong_body_or_an_unknown_field_is_refused(
    body: object, client: httpx.Client, digests: list[str]
) -> None:
    reply = client.put(f"{URL}/stable", json=body)
    assert (reply.status_code, error_of(reply)["code"]) == (422, "invalid_request")
    assert list(client.get(f"/v1/prefixes/{NAME}").json()["aliases"].values()) == [digests[-1]]


def test_an_unknown_field_is_named(client: httpx.Client, digests: list[str]) -> None:
    reply = client.put(f"{URL}/stable", json={"version": digests[0], "verison": 1})
    assert (reply.status_code, error_of(reply)["param"]) == (422, "verison")


@pytest.mark.parametrize("alias", ["abcdef", "0123456789", "UP", "a+b", "x" * 65])
def test_a_name_that_is_no_alias_is_refused(
    alias: str, client: httpx.Client, digests: list[str]
) -> None:
    assert move(client, digests[0], alias).status_code == 400


def test_what_is_not_there_is_not_found(client: httpx.Client, digests: list[str]) -> None:
    assert move(client, "f" * 64).status_code == 404
    assert client.get(f"{URL}/nowhere").status_code == 404
    assert client.post(f"{URL}/nowhere/rollback").status_code == 404
    other = client.put("/v1/prefixes/nobody/aliases/stable", json={"version": digests[0]})
    assert (other.status_code, error_of(other)["code"]) == (404, "prefix_not_found")


def split(
    client: httpx.Client, weights: dict[str, int], alias: str = "stable", **headers: str
) -> httpx.Response:
    return client.put(f"{URL}/{alias}", json={"split": weights}, headers=headers)


class TestSplits:
    def test_a_split_is_shown_with_its_state_and_in_the_history(
        self, client: httpx.Client, digests: list[str]
    ) -> None:
        one, two, _ = digests
        move(client, one)
        made = split(client, {one[:10]: 95, two[:10]: 5})
        assert made.status_code == 200
        assert (made.json()["version"], made.json()["split"]) == (one, {one: 95, two: 5})
        shown = client.get(f"{URL}/stable")
        assert (shown.json(), shown.headers["etag"]) == (made.json(), made.headers["etag"])
        prefix = client.get(f"/v1/prefixes/{NAME}").json()
        assert prefix["splits"] == {"stable": {one: 95, two: 5}}
        assert prefix["aliases"]["stable"] == one
        changes = client.get(f"{URL}/stable/history").json()["data"]
        assert [(each["version"], each["split"], each["reason"]) for each in changes] == [
            (one, {one: 95, two: 5}, "set"),
            (one, None, "set"),
        ]
        back = client.post(f"{URL}/stable/rollback", headers={"if-match": made.headers["etag"]})
        assert (back.json()["version"], back.json()["split"]) == (one, None)

    def test_a_user_stays_with_one_version_and_users_are_shared_out(
        self, client: httpx.Client, digests: list[str]
    ) -> None:
        one, two, _ = digests
        split(client, {one: 1, two: 1})
        model = f"{NAME}@stable"
        served = {}
        for user in map(str, range(20)):
            reply = complete(client, model=model, user=user, max_tokens=1)
            served[user] = reply.headers["x-prefix-version"]
        assert set(served.values()) == {one, two}
        for user, digest in served.items():
            body = {"inputs": "the", "parameters": {"adapter_id": model, "user": user}}
            assert client.post("/generate", json=body).headers["x-prefix-version"] == digest
        # a change of weights takes users to what gained, and no other
        split(client, {one: 1, two: 3})
        for user, digest in served.items():
            now = complete(client, model=model, user=user, max_tokens=1)
            assert now.headers["x-prefix-version"] in (digest, two)

    def test_without_a_user_requests_are_shared_out(
        self, client: httpx.Client, digests: list[str]
    ) -> None:
        one, two, _ = digests
        split(client, {one: 1, two: 1})
        assert {served_by(client, f"{NAME}@stable") for _ in range(40)} == {one, two}

    def test_a_split_is_a_part_of_a_composition(
        self, client: httpx.Client, digests: list[str]
    ) -> None:
        one, two, three = digests
        split(client, {one: 1, two: 1})
        reply = complete(client, model=f"{NAME}+{NAME}@stable", user="a")
        first, second = reply.headers["x-prefix-version"].split(",")
        assert (first, second in (one, two)) == (three, True)

    def test_a_version_of_a_split_cannot_be_deleted(
        self, client: httpx.Client, digests: list[str]
    ) -> None:
        split(client, {digests[0]: 1, digests[1]: 1})
        for digest in digests[:2]:
            reply = client.delete(f"/v1/prefixes/{NAME}/versions/{digest}")
            assert (reply.status_code, error_of(reply)["code"]) == (409, "in_use")

    def test_a_split_that_was_moved_meanwhile_is_refused(
        self, client: httpx.Client, digests: list[str]
    ) -> None:
        etag = move(client, digests[0]).headers["etag"]
        weights = {digests[0]: 1, digests[1]: 1}
        assert split(client, weights, **{"if-match": etag}).status_code == 200
        assert split(client, weights, **{"if-match": etag}).status_code == 412

    def test_unknown_versions_and_doubles_are_refused(
        self, client: httpx.Client, digests: list[str]
    ) -> None:
        assert split(client, {digests[0]: 1, "0" * 64: 1}).status_code == 404
        assert split(client, {digests[0]: 1, digests[0][:9]: 1}).status_code == 400
        assert client.get(f"{URL}/stable").status_code == 404
