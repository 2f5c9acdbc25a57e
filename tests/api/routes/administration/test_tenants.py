"""`/admin/tenants`: tenants and keys over HTTP, from the first key to the last."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.tenancy.auth.keys import read_kid
from app.tenancy.auth.principal import TENANT_SCOPES
from tests.api.guarded import Guarded, guarding
from tests.tiny import random_prefix

NOT_TO_COME = 4_000_000_000


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("admin")) as guarded:
        yield guarded


@pytest.fixture(scope="module")
def admin(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.client(guarded.key()) as client:
        yield client


def test_a_tenant_from_its_first_key_to_its_end(
    guarded: Guarded, admin: httpx.Client, tiny_gpt2: FrozenModel
) -> None:
    made = admin.post("/admin/tenants", json={"id": "corp", "limits": {"max_rows": 5}})
    assert made.status_code == 201
    assert made.headers["location"] == "/admin/tenants/corp"
    tenant = made.json()
    assert tenant == {
        "object": "tenant",
        "id": "corp",
        "created_at": tenant["created_at"],
        "disabled": False,
        "disabled_at": None,
        "limits": {"max_rows": 5, "weight": 1.0},
    }
    assert admin.get("/admin/tenants/corp").json() == tenant

    reply = admin.post("/admin/tenants/corp/keys", json={"label": "first"})
    assert reply.status_code == 201
    assert reply.headers["cache-control"] == "no-store"
    key = reply.json()
    assert key["scopes"] == sorted(TENANT_SCOPES)
    text = key.pop("key")
    assert read_kid(text) == key["kid"]
    listed = admin.get("/admin/tenants/corp/keys")
    assert listed.json() == {"object": "list", "data": [key], "next_cursor": None}
    assert text[17:49] not in listed.text
    assert admin.get(reply.headers["location"]).json() == key

    assert guarded.push("mine", random_prefix(tiny_gpt2, 3), text).status_code == 201
    with guarded.client(text) as client:
        assert client.get("/v1/prefixes/mine").status_code == 200
        disabled = admin.patch("/admin/tenants/corp", json={"disabled": True}).json()
        assert disabled["disabled"]
        assert client.get("/v1/prefixes/mine").status_code == 401
        admin.patch("/admin/tenants/corp", json={"disabled": False})
        assert client.get("/v1/prefixes/mine").status_code == 200
        ended = admin.delete(f"/admin/tenants/corp/keys/{key['kid']}").json()
        assert ended["revoked_at"] is not None
        assert client.get("/v1/prefixes/mine").status_code == 401

    assert admin.delete("/admin/tenants/corp").json() == {
        "object": "tenant",
        "id": "corp",
        "deleted": True,
    }
    assert admin.get("/admin/tenants/corp").status_code == 404
    assert admin.post("/admin/tenants", json={"id": "corp"}).status_code == 201
    again = admin.post("/admin/tenants/corp/keys", json={}).json()["key"]
    with guarded.client(again) as client:
        assert client.get("/v1/prefixes/mine").status_code == 404, "nothing is inherited"
    admin.delete("/admin/tenants/corp")


def test_limits_change_one_by_one(admin: httpx.Client) -> None:
    changes = [{"max_rows": 5, "max_queue": 2}, {"max_rows": None}, {"weight": 2}]
    for change in changes:
        reply = admin.patch("/admin/tenants/rival", json={"limits": change})
    assert reply.json()["limits"] == {"max_queue": 2, "weight": 2.0}


def test_a_key_is_what_was_asked_for(admin: httpx.Client) -> None:
    asked = {"scopes": ["train"], "label": "nightly", "expires_at": NOT_TO_COME}
    made = admin.post("/admin/tenants/rival/keys", json=asked).json()
    assert {name: made[name] for name in asked} == asked


def test_lists_come_in_pages(admin: httpx.Client) -> None:
    for number in range(3):
        admin.post("/admin/tenants", json={"id": f"paged{number}"})
    first = admin.get("/admin/tenants", params={"limit": 2}).json()
    seen = [tenant["id"] for tenant in first["data"]]
    cursor = first["next_cursor"]
    while cursor:
        page = admin.get("/admin/tenants", params={"limit": 2, "cursor": cursor}).json()
        seen += [tenant["id"] for tenant in page["data"]]
        cursor = page["next_cursor"]
    assert seen == sorted(seen)
    assert {"acme", "demo", "paged0", "paged1", "paged2", "rival"} <= set(seen)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"id": "acme"}, 409),
        ("", {"id": "Not A Name"}, 400),
        ("", {"id": "corp", "more": 1}, 422),
        ("", {"id": "corp", "limits": {"more": 1}}, 422),
        ("", {"id": "corp", "limits": {"max_rows": 0}}, 400),
        ("", {"id": "corp", "limits": {"max_rows": 1.5}}, 422),
        ("", {"id": 5}, 422),
        ("", {}, 422),
        ("/acme/keys", {"scopes": []}, 422),
        ("/acme/keys", {"scopes": ["everything"]}, 422),
        ("/acme/keys", {"scopes": ["train"] * 17}, 422),
        ("/acme/keys", {"expires_at": 5}, 400),
        ("/acme/keys", {"expires_at": -1}, 422),
        ("/acme/keys", {"not_before": 10**30}, 422),
        ("/acme/keys", {"label": "x" * 129}, 422),
        ("/acme/keys", {"label": "a\u0000b"}, 400),
        ("/acme/keys", {"key": "pfx_mine"}, 422),
        ("/nobody/keys", {}, 404),
        ("/Not A Name/keys", {}, 400),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(
    admin: httpx.Client, path: str, body: dict[str, object], status: int
) -> None:
    reply = admin.post(f"/admin/tenants{path}", json=body)
    assert reply.status_code == status, reply.text


@pytest.mark.parametrize("kid", ["nosuchkey000", "%00", "a" * 500, "..%2f..", "'"])
def test_a_key_that_is_not_there_is_not_found(admin: httpx.Client, kid: str) -> None:
    for method in ("GET", "DELETE"):
        assert admin.request(method, f"/admin/tenants/acme/keys/{kid}").status_code == 404


def test_a_key_is_found_at_its_own_tenant_alone(guarded: Guarded, admin: httpx.Client) -> None:
    kid = guarded.key()[4:16]
    assert admin.get(f"/admin/tenants/acme/keys/{kid}").status_code == 200
    assert admin.delete(f"/admin/tenants/rival/keys/{kid}").status_code == 404
    assert admin.get(f"/admin/tenants/acme/keys/{kid}").status_code == 200
