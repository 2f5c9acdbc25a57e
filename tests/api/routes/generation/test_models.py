"""`/v1/models` beyond OpenAI's client: names with signs in them, cards, refusals."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import pytest

from app.api.routes.generation import models
from app.prefix.prefix import Prefix
from tests.api.helpers import BASE, complete, error_of
from tests.server import RunningServer
from tests.tiny import CONTEXT


def test_the_list_begins_with_the_base_model(client: httpx.Client) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    first, *others = body["data"]
    assert (first["id"], first["owned_by"], first["parent"]) == (BASE, "polyprefix", None)
    assert [card["id"] for card in others] == sorted(card["id"] for card in others)


def test_a_prefixes_card_names_its_parent(client: httpx.Client) -> None:
    card = client.get("/v1/models/tone").json()
    assert (card["id"], card["object"], card["parent"]) == ("tone", "model", BASE)
    assert card["max_model_len"] == CONTEXT
    assert card["created"] > 1_700_000_000


def test_the_list_has_its_bound(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = client.get("/v1/models").json()["data"]
    monkeypatch.setattr(models, "MAX_LISTED", 1)
    assert client.get("/v1/models").json()["data"] == whole[:2]


@pytest.mark.parametrize(
    "name", ["tone+voice", "tone@latest", "demo/tone", "demo/tone@latest+voice"]
)
def test_slashes_and_signs_may_be_escaped_or_not(name: str, client: httpx.Client) -> None:
    for path in (name, quote(name, safe="")):
        reply = client.get(f"/v1/models/{path}")
        assert (reply.status_code, reply.json()["id"]) == (200, name)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("nobody", 404, "prefix_not_found"),
        ("tone+nobody", 404, "prefix_not_found"),
        ("tone@nowhere", 404, "prefix_not_found"),
        ("acme/tone", 404, "prefix_not_found"),
        ("a/b/c", 404, "prefix_not_found"),
        ("..%2F..%2Fetc", 404, "prefix_not_found"),
        ("%00", 404, "prefix_not_found"),
        ("%FF", 404, "prefix_not_found"),
        ("+".join(["tone"] * 9), 400, "invalid_value"),
    ],
)
def test_what_is_no_model_is_refused_for_reading_and_deleting(
    path: str, status: int, code: str, client: httpx.Client
) -> None:
    reply = client.get(f"/v1/models/{path}")
    assert (reply.status_code, error_of(reply)["code"]) == (status, code)
    assert client.delete(f"/v1/models/{path}").status_code in (400, 404)


@pytest.mark.parametrize("name", ["tone+voice", "tone@latest"])
def test_only_a_prefix_as_a_whole_is_deleted_here(name: str, client: httpx.Client) -> None:
    reply = client.delete(f"/v1/models/{name}")
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_value")
    assert complete(client, model="tone").status_code == 200


def test_a_name_of_another_tenant_deletes_nothing_of_ones_own(client: httpx.Client) -> None:
    assert client.delete("/v1/models/acme/tone").status_code == 404
    assert complete(client, model="tone").status_code == 200


def test_deleting_names_what_was_deleted(
    client: httpx.Client, server: RunningServer, prefixes: dict[str, Prefix]
) -> None:
    server.push("passing", prefixes["voice"])
    reply = client.delete("/v1/models/passing")
    assert reply.json() == {"id": "passing", "object": "model", "deleted": True}
    assert client.delete("/v1/models/passing").status_code == 404


def test_the_base_model_stays(client: httpx.Client) -> None:
    reply = client.delete(f"/v1/models/{BASE}")
    assert (reply.status_code, error_of(reply)["code"]) == (409, "in_use")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS", "HEAD"])
def test_other_methods_are_told_which_there_are(method: str, client: httpx.Client) -> None:
    reply = client.request(method, "/v1/models")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
    if method != "HEAD":
        assert error_of(reply)["code"] == "method_not_allowed"
