"""Every route × twelve identities; and what is another tenant's is as if it were not there.

Driven from the app's own routes: a new one is tested without being named here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.model.frozen import FrozenModel
from app.settings import Settings
from app.tenancy.auth.principal import Scope
from tests.api.guarded import ADMITTED, EVERYTHING, REFUSED, Endpoint, Guarded, endpoints, guarding
from tests.tiny import random_prefix

ENDPOINTS = endpoints(create_app(Settings()))
GUARDED = [endpoint for endpoint in ENDPOINTS if endpoint.guarded]
OF_TENANTS = [endpoint for endpoint in GUARDED if not endpoint.is_admin and "{" in endpoint.path]
EACH = pytest.mark.parametrize("endpoint", GUARDED, ids=lambda endpoint: endpoint.id)
EACH_OF_TENANTS = pytest.mark.parametrize("endpoint", OF_TENANTS, ids=lambda endpoint: endpoint.id)

THEIRS, MISSING = "secret", "absent"
"""A prefix of acme's, and a name of the same length that nobody has."""
_VARYING = {"date", "x-request-id", "x-queue-time", "x-time-to-first-token", "x-total-time"}


class World(Guarded):
    """A guarded server on which acme has a prefix with an alias and a pin."""

    digest = ""
    kid = ""
    file_id = ""
    job_id = ""

    def train(self, model: str) -> None:
        """Upload a file and queue a job."""
        with self.client(self.key()) as client:
            file = {"file": ("a.jsonl", b'{"input": "a", "target": "b"}\n')}
            made = client.post("/v1/files", data={"purpose": "fine-tune"}, files=file)
            self.file_id = made.json()["id"]
            body = {"model": model, "training_file": self.file_id}
            self.job_id = client.post("/v1/fine_tuning/jobs", json=body).json()["id"]


@pytest.fixture(scope="module")
def world(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("world")) as guarded:
        world = World(guarded.server)
        prefix = random_prefix(tiny_gpt2, 5, seed=40)
        reply = world.push(THEIRS, prefix, world.key(), **{"x-alias": "stable"})
        world.digest = reply.json()["digest"]
        world.kid = world.key()[4:16]
        world.train(tiny_gpt2.spec.model_id)
        yield world


def body_of(world: World, endpoint: Endpoint, name: str) -> dict[str, Any]:
    """`json` or `content` of a request that names a prefix of acme's; `{}` for new routes."""
    tgi = {"inputs": "x", "parameters": {"adapter_id": name, "max_new_tokens": 1}}
    bodies: dict[str, Any] = {
        "POST /v1/completions": {"prompt": "x", "model": name, "max_tokens": 1},
        "POST /generate": tgi,
        "POST /generate_stream": tgi,
        "POST /": tgi,
        "POST /tokenize": {"inputs": "x", "model": name},
        "POST /detokenize": {"tokens": [5]},
        "PUT /v1/prefixes/{name}/aliases/{alias}": {"version": world.digest},
        "POST /admin/tenants": {"id": "made"},
        "PATCH /admin/tenants/{tenant_id}": {"disabled": False},
        "PUT /v1/prefixes/{name}/publication": {"tenants": ["rival"]},
        "POST /v1/prefixes/{name}/compare": {
            "a": world.digest,
            "b": world.digest,
            "examples": [{"input": "a", "output": "b"}],
        },
        "POST /v1/prefixes/{name}/evaluate": {"examples": [{"input": "a", "output": "b"}]},
        "PUT /v1/prefixes/{name}/aliases/{alias}/gate": {
            "metric": "bleu",
            "min_score": 0,
            "examples": [{"input": "a", "output": "b"}],
        },
    }
    if endpoint.id == "POST /v1/prefixes/{name}/versions":
        headers = {"content-type": "application/octet-stream"}
        return {"content": b"not a prefix", "headers": headers}
    if endpoint.method in ("GET", "DELETE", "HEAD"):
        return {}
    return {"json": bodies.get(endpoint.id, {})}


def ask(
    world: World, endpoint: Endpoint, identity: str, *, name: str = THEIRS, tenant: str = "rival"
) -> httpx.Response:
    """One identity at one route."""
    nobodys = "0" * 24
    values = {
        "file_id": world.file_id if name == THEIRS else f"file-{nobodys}",
        "job_id": world.job_id if name == THEIRS else f"ftjob-{nobodys}",
        "name": name,
        "model_id": name,
        "user": name,
        "alias": "stable",
        "digest": world.digest,
        "tenant_id": tenant,
        "kid": world.kid,
    }
    options = body_of(world, endpoint, name)
    headers = {**options.pop("headers", {}), **world.headers(identity, endpoint)}
    with httpx.Client(base_url=world.url, timeout=60) as client:
        return client.request(endpoint.method, endpoint.url(values), headers=headers, **options)


def heard(reply: httpx.Response, name: str) -> tuple[int, str, list[tuple[str, str]]]:
    """All of a reply that may not differ, with the name that was asked for taken out."""
    headers = [(key, value) for key, value in reply.headers.items() if key not in _VARYING]
    return (
        reply.status_code,
        reply.text.replace(name, "NAME"),
        sorted((key, value.replace(name, "NAME")) for key, value in headers),
    )


@EACH
@pytest.mark.parametrize("identity", REFUSED)
def test_no_valid_key_no_answer(world: World, endpoint: Endpoint, identity: str) -> None:
    reply = ask(world, endpoint, identity)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "acme" not in reply.text
    assert "API key" in reply.text


@EACH
def test_a_key_for_something_else_is_not_enough(world: World, endpoint: Endpoint) -> None:
    reply = ask(world, endpoint, "wrong scope", name=MISSING, tenant="nobody")
    if endpoint.admits(endpoint.scopes_that_lack()):
        assert reply.status_code not in (401, 403)
    else:
        assert reply.status_code == 403
        assert "lacks the scope" in reply.text


@EACH
@pytest.mark.parametrize("identity", ADMITTED[1:])
def test_a_key_lets_in_where_its_scopes_do(world: World, endpoint: Endpoint, identity: str) -> None:
    scopes = EVERYTHING
    if identity == "other tenant":
        scopes -= {Scope.ADMIN}
    reply = ask(world, endpoint, identity, name=MISSING, tenant="nobody")
    if endpoint.admits(scopes):
        assert reply.status_code not in (401, 403)
        assert reply.status_code < 500
    else:
        assert reply.status_code == 403


@EACH_OF_TENANTS
@pytest.mark.parametrize("identity", ["other tenant", "admin of other tenant"])
def test_what_is_foreign_is_as_if_it_were_not_there(
    world: World, endpoint: Endpoint, identity: str
) -> None:
    before = state_of(world)
    foreign = heard(ask(world, endpoint, identity, name=THEIRS), THEIRS)
    missing = heard(ask(world, endpoint, identity, name=MISSING), MISSING)
    assert foreign == missing
    assert foreign[0] not in (401, 403)
    assert state_of(world) == before, "what is foreign was changed"


GENERATING = [e for e in GUARDED if e.path in ("/v1/completions", "/generate", "/tokenize")]


@pytest.mark.parametrize("endpoint", GENERATING, ids=lambda endpoint: endpoint.id)
def test_a_request_that_names_what_is_foreign_hears_the_same_as_for_nothing(
    world: World, endpoint: Endpoint
) -> None:
    for form in ("{}", "{}@stable", "{}@" + world.digest, "acme/{}", "{}+{}", "acme/{}@stable"):
        names = [form.format(name, name) for name in (THEIRS, MISSING)]
        foreign, missing = (
            heard(ask(world, endpoint, "other tenant", name=full), name)
            for full, name in zip(names, (THEIRS, MISSING), strict=True)
        )
        assert foreign == missing
        assert foreign[0] == 404
    unknown = ask(world, endpoint, "other tenant", name="acme/" + THEIRS)
    nobody = ask(world, endpoint, "other tenant", name="none/" + THEIRS)
    assert heard(unknown, "acme") == heard(nobody, "none")


def test_lists_show_what_is_one_s_own(world: World) -> None:
    for identity, shown in (("valid", True), ("other tenant", False)):
        headers = world.headers(identity)
        with world.client() as client:
            for path in (
                "/v1/models",
                "/v1/prefixes",
                "/v1/published",
                "/v1/usage?group_by=prefix",
                "/v1/files",
                "/v1/fine_tuning/jobs",
            ):
                text = client.get(path, headers=headers).text
                assert shown or THEIRS not in text, path
                assert shown or "acme" not in text, path


def test_metrics_and_facts_name_no_tenant(world: World) -> None:
    with world.client(world.key()) as client:
        client.post("/v1/completions", json={"model": THEIRS, "prompt": "x", "max_tokens": 1})
        for path in ("/metrics", "/info", "/health"):
            text = client.get(path).text
            for word in ("acme", "rival", THEIRS, world.kid, world.digest[:12]):
                assert word not in text, (path, word)


def test_an_admin_of_another_tenant_manages_but_does_not_own(world: World) -> None:
    headers = world.headers("admin of other tenant")
    with world.client() as client:
        assert client.get("/admin/tenants/acme", headers=headers).status_code == 200
        assert client.get(f"/v1/prefixes/{THEIRS}", headers=headers).status_code == 404
        body = {"model": THEIRS, "prompt": "x"}
        assert client.post("/v1/completions", json=body, headers=headers).status_code == 404


def test_a_name_can_be_had_by_both(world: World, tiny_gpt2: FrozenModel) -> None:
    key = world.key("rival", EVERYTHING - {Scope.ADMIN})
    before = state_of(world)
    mine = random_prefix(tiny_gpt2, 3, seed=41)
    same = random_prefix(tiny_gpt2, 5, seed=40)
    assert world.push(THEIRS, mine, key).status_code == 201
    again = world.push(THEIRS, same, key)
    assert again.status_code == 201, "nobody learns that another tenant has the same content"
    with world.client(key) as client:
        assert client.delete(f"/v1/prefixes/{THEIRS}").status_code == 200
    assert state_of(world) == before
    with world.client(world.key()) as client:
        body = {"model": THEIRS, "prompt": "x", "max_tokens": 1}
        reply = client.post("/v1/completions", json=body)
    assert reply.headers["x-prefix-version"] == world.digest


def state_of(world: World) -> str:
    """All that acme sees of its prefix."""
    with world.client(world.key()) as client:
        parts = [
            client.get(f"/v1/prefixes/{THEIRS}{path}").json()
            for path in ("", "/versions", "/aliases/stable", "/publication")
        ]
        parts.append(client.get(f"/v1/files/{world.file_id}").json())
        parts.append(client.get(f"/v1/fine_tuning/jobs/{world.job_id}").json())
    return json.dumps(parts)
