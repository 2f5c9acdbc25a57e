"""Prefixes of one tenant used by another over HTTP; to all others they do not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from pydantic import SecretStr

from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.tenancy.auth.principal import Scope
from app.tenancy.limits.limits import TenantLimits
from tests.api.helpers import BASE, Json, complete, error_of
from tests.server import RunningServer, serving
from tests.tiny import random_prefix

URL = "/v1/prefixes/e2e/publication"
TENANTS = ("acme", "beta", "gamma")

Clients = dict[str, httpx.Client]


@pytest.fixture(scope="module")
def house(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with keys for three tenants; `acme` has `e2e`, `stable` at the first version."""
    pepper = SecretStr("a pepper for tests of 32 characters or more")
    with serving(tiny_gpt2, tmp_path_factory.mktemp("house"), key_pepper=pepper) as running:
        for tenant in TENANTS:
            running.services.tenants.create(tenant)
        yield running


def client_of(house: RunningServer, tenant: str, *scopes: Scope) -> httpx.Client:
    """A client with a new key of the tenant: with these scopes, or with all that tenants have."""
    given = {"scopes": scopes} if scopes else {}
    _, key = house.services.keyring.create(tenant, **given)
    client = house.client()
    client.headers["authorization"] = f"Bearer {key.text}"
    return client


@pytest.fixture(scope="module")
def clients(house: RunningServer) -> Iterator[Clients]:
    """A client of each tenant."""
    made = {tenant: client_of(house, tenant) for tenant in TENANTS}
    yield made
    for client in made.values():
        client.close()


def push(client: httpx.Client, model: FrozenModel, name: str, seed: int, **headers: str) -> str:
    """Uploads a random prefix; its digest."""
    reply = upload(client, model, name, seed, **headers)
    assert reply.status_code in (200, 201), reply.text
    digest: str = reply.json()["digest"]
    return digest


def upload(
    client: httpx.Client, model: FrozenModel, name: str, seed: int, **headers: str
) -> httpx.Response:
    content = encode(random_prefix(model, 3, seed=seed, position_offset=0))
    headers["content-type"] = "application/octet-stream"
    return client.post(f"/v1/prefixes/{name}/versions", content=content, headers=headers)


@pytest.fixture
def digests(clients: Clients, tiny_gpt2: FrozenModel) -> Iterator[list[str]]:
    """Two versions of `e2e` of `acme`; `stable` is the first."""
    acme = clients["acme"]
    yield [
        push(acme, tiny_gpt2, "e2e", 80, **{"x-alias": "stable"}),
        push(acme, tiny_gpt2, "e2e", 81),
    ]
    acme.delete("/v1/prefixes/e2e")


def publish(clients: Clients, *tenants: str, everyone: bool = False) -> Json:
    reply = clients["acme"].put(URL, json={"tenants": tenants, "everyone": everyone})
    assert reply.status_code == 200, reply.text
    body: Json = reply.json()
    return body


def status(client: httpx.Client, model: str) -> int:
    return complete(client, model=model, max_tokens=1).status_code


class TestUsing:
    def test_consumers_generate_tokenize_and_compose_with_it(
        self, clients: Clients, digests: list[str], tiny_gpt2: FrozenModel
    ) -> None:
        publish(clients, "beta")
        beta = clients["beta"]
        mine = push(beta, tiny_gpt2, "mine", 82)
        for model, served in (
            ("acme/e2e", [digests[1]]),
            ("acme/e2e@stable", [digests[0]]),
            (f"acme/e2e@{digests[0][:9]}", [digests[0]]),
            ("acme/e2e+mine", [digests[1], mine]),
            ("mine+acme/e2e@stable", [mine, digests[0]]),
        ):
            reply = complete(beta, model=model)
            assert reply.status_code == 200, reply.text
            assert reply.headers["x-prefix-version"] == ",".join(served)
            own = complete(clients["acme"], model=model.replace("acme/", ""))
            if "mine" not in model:
                assert own.json()["choices"][0]["text"] == reply.json()["choices"][0]["text"]
        body = {"inputs": "the", "model": "acme/e2e"}
        assert beta.post("/tokenize", json=body).status_code == 200
        body = {"inputs": "the", "parameters": {"adapter_id": "acme/e2e", "max_new_tokens": 2}}
        assert beta.post("/generate", json=body).status_code == 200

    @pytest.mark.usefixtures("digests")
    def test_consumers_see_it_in_lists_without_how_it_was_made(self, clients: Clients) -> None:
        publish(clients, "beta")
        cards = clients["beta"].get("/v1/models").json()["data"]
        [card] = [card for card in cards if card["id"].startswith("acme/")]
        assert (card["id"], card["owned_by"], card["parent"]) == ("acme/e2e", "acme", BASE)
        one = clients["beta"].get("/v1/models/acme/e2e@stable").json()
        assert (one["id"], one["owned_by"]) == ("acme/e2e@stable", "acme")
        page = clients["beta"].get("/v1/published").json()
        [offered] = page["data"]
        assert offered.keys() == {"object", "id", "tenant", "name", "created_at"}
        assert (offered["id"], page["next_cursor"]) == ("acme/e2e", None)
        for tenant in ("acme", "gamma"):
            assert clients[tenant].get("/v1/published").json()["data"] == []
            names = [card["id"] for card in clients[tenant].get("/v1/models").json()["data"]]
            assert "acme/e2e" not in names

    def test_consumers_cannot_download_list_or_alter(
        self, clients: Clients, digests: list[str]
    ) -> None:
        publish(clients, "beta")
        beta, digest = clients["beta"], digests[0]
        for method, path, body in (
            ("GET", "/v1/prefixes/e2e", None),
            ("GET", "/v1/prefixes/e2e/versions", None),
            ("GET", f"/v1/prefixes/e2e/versions/{digest}", None),
            ("GET", f"/v1/prefixes/e2e/versions/{digest}/content", None),
            ("GET", "/v1/prefixes/acme%2Fe2e/versions", None),
            ("DELETE", f"/v1/prefixes/e2e/versions/{digest}", None),
            ("DELETE", "/v1/prefixes/e2e", None),
            ("POST", f"/v1/prefixes/e2e/versions/{digest}/pin", None),
            ("PUT", "/v1/prefixes/e2e/aliases/stable", {"version": digest}),
            ("GET", "/v1/prefixes/e2e/aliases/stable/history", None),
            ("GET", URL, None),
            ("PUT", URL, {"everyone": True}),
            ("DELETE", URL, None),
            ("DELETE", "/v1/models/acme/e2e", None),
        ):
            reply = beta.request(method, path, json=body)
            assert reply.status_code == 404, (method, path)
        assert status(beta, "acme/e2e") == 200

    @pytest.mark.usefixtures("digests")
    def test_not_published_looks_as_if_it_were_not_there(self, clients: Clients) -> None:
        publish(clients, "gamma")
        beta = clients["beta"]
        replies = [
            complete(beta, model=model, user="u")
            for model in ("acme/e2e", "acme/xyz", "nobody/e2e")
        ]
        bodies = [
            {**error_of(reply), "message": error_of(reply)["message"].split("'")[2]}
            for reply in replies
        ]
        assert bodies[0] == bodies[1] == bodies[2]
        heads = [
            sorted(set(reply.headers) - {"x-request-id", "content-length"}) for reply in replies
        ]
        assert heads[0] == heads[1] == heads[2]
        assert {reply.status_code for reply in replies} == {404}


class TestWithdrawing:
    @pytest.mark.usefixtures("digests")
    def test_the_owner_publishes_changes_and_withdraws(self, clients: Clients) -> None:
        acme = clients["acme"]
        empty = {"object": "prefix.publication", "name": "e2e", "tenants": [], "everyone": False}
        assert acme.get(URL).json() == empty
        assert publish(clients, "gamma", "beta") == {**empty, "tenants": ["beta", "gamma"]}
        assert publish(clients, "gamma") == {**empty, "tenants": ["gamma"]}
        assert status(clients["beta"], "acme/e2e") == 404
        assert publish(clients, everyone=True) == acme.get(URL).json()
        assert status(clients["beta"], "acme/e2e") == 200
        for _ in range(2):
            assert acme.delete(URL).json()["deleted"]
        assert acme.get(URL).json() == empty
        assert status(clients["gamma"], "acme/e2e") == 404

    @pytest.mark.usefixtures("digests")
    def test_a_disabled_tenants_prefixes_do_not_resolve(
        self, clients: Clients, house: RunningServer
    ) -> None:
        publish(clients, "beta")
        assert status(clients["beta"], "acme/e2e") == 200
        house.services.tenants.change("acme", disabled=True)
        assert status(clients["beta"], "acme/e2e") == 404
        assert clients["beta"].get("/v1/published").json()["data"] == []
        house.services.tenants.change("acme", disabled=False)
        assert status(clients["beta"], "acme/e2e") == 200

    @pytest.mark.usefixtures("digests")
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"tenants": ["acme"]}, 400),
            ({"tenants": ["*"]}, 400),
            ({"tenants": ["../x"]}, 400),
            ({"tenants": "beta"}, 422),
            ({"tenants": ["t"] * 101}, 422),
            ({"everyone": "yes"}, 422),
            ({"to": ["beta"]}, 422),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_a_wrong_body_changes_nothing(
        self, body: Json, expected: int, clients: Clients
    ) -> None:
        publish(clients, "beta")
        assert clients["acme"].put(URL, json=body).status_code == expected
        assert clients["acme"].get(URL).json()["tenants"] == ["beta"]

    @pytest.mark.usefixtures("digests")
    def test_a_key_without_the_scope_publishes_nothing(
        self, clients: Clients, house: RunningServer
    ) -> None:
        with client_of(house, "acme", Scope.GENERATE, Scope.PREFIXES_READ) as reader:
            assert reader.get(URL).status_code == 200
            assert reader.put(URL, json={"everyone": True}).status_code == 403
            assert reader.delete(URL).status_code == 403
        assert status(clients["beta"], "acme/e2e") == 404


class TestQuotas:
    @pytest.fixture
    def limited(self, house: RunningServer) -> Iterator[Callable[..., None]]:
        """Sets limits of `gamma` for the test."""

        def limiting(**limits: int) -> None:
            house.services.tenants.change("gamma", limits=limits)

        yield limiting
        none = dict.fromkeys(TenantLimits(max_prefixes=0, max_bytes=0).to_json())
        house.services.tenants.change("gamma", limits={**none, "weight": 1.0})

    def test_an_upload_beyond_the_quota_is_refused_and_leaves_nothing(
        self, clients: Clients, tiny_gpt2: FrozenModel, limited: Callable[..., None]
    ) -> None:
        gamma = clients["gamma"]
        limited(max_prefixes=1)
        assert upload(gamma, tiny_gpt2, "one", 90).status_code == 201
        reply = upload(gamma, tiny_gpt2, "two", 90)
        assert (reply.status_code, error_of(reply)["code"]) == (409, "quota_exceeded")
        assert "quota is 1 prefixes; 1 are used" in error_of(reply)["message"]
        assert upload(gamma, tiny_gpt2, "one", 91).status_code == 201
        limited(max_prefixes=2, max_bytes=1)
        reply = upload(gamma, tiny_gpt2, "two", 92)
        assert (reply.status_code, error_of(reply)["code"]) == (409, "quota_exceeded")
        assert upload(gamma, tiny_gpt2, "two", 90).status_code == 201  # a content it has already
        names = [prefix["name"] for prefix in gamma.get("/v1/prefixes").json()["data"]]
        assert names == ["one", "two"]
        assert upload(clients["beta"], tiny_gpt2, "two", 92).status_code == 201
