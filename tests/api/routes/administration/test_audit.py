"""The audit log over HTTP: one record of every call that changes something or is refused."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Connection, text

from app.api.routing import READING, Route
from app.main import create_app
from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.settings import Settings
from app.tenancy.audit.chain import list_records, verify
from app.tenancy.audit.log import AuditedCall
from tests.api.guarded import EVERYTHING, Guarded, guarding
from tests.api.helpers import BASE, complete, until
from tests.tiny import random_prefix

EXAMPLE = {"input": "the dog", "output": " sat"}
JOBS = "/v1/fine_tuning/jobs"
GATE = {"metric": "mean_logprob", "min_score": -1000, "examples": [EXAMPLE]}


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("audit"), replica="test") as guarded:
        yield guarded


@pytest.fixture(scope="module")
def client(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.client(guarded.key()) as client:
        yield client


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The application, not started."""
    return create_app(Settings())


def routes(app: FastAPI) -> dict[str, tuple[str, str]]:
    """Routes that could change something: name → method and path."""
    return {
        route.name: (route.method, route.path)
        for route in app.routes
        if isinstance(route, Route) and route.method not in READING
    }


class Scene:
    """A prefix of its own with two versions, an alias, a gate; a tenant with a key; two jobs."""

    def __init__(self, guarded: Guarded, model: FrozenModel, client: httpx.Client, name: str):
        self.name = name.replace("_", "-")
        self.client = client
        self.push = lambda seed: guarded.push(
            self.name, random_prefix(model, 3, seed=seed), guarded.key()
        )
        self.first, self.second = (self.push(seed).json()["digest"] for seed in (1, 2))
        self.url = f"/v1/prefixes/{self.name}"
        self.stable = f"{self.url}/aliases/stable"
        for digest in (self.first, self.second):
            assert client.put(self.stable, json={"version": digest}).status_code == 200
        assert client.put(f"{self.url}/aliases/guarded", json={"version": self.first}).is_success
        assert client.put(f"{self.url}/aliases/guarded/gate", json=GATE).status_code < 300
        assert client.put(f"{self.url}/publication", json={"everyone": True}).is_success
        words = {"text": "the", "user": self.name}
        assert client.post(f"/v1/prefixes/u-{self.name}/from-text", json=words).is_success
        self.tenant = f"/admin/tenants/t-{self.name}"
        assert client.post("/admin/tenants", json={"id": f"t-{self.name}"}).is_success
        made = client.post(f"{self.tenant}/keys", json={"scopes": ["generate"]})
        self.kid = made.json()["kid"]
        self.file, self.unused = (self.upload().json()["id"] for _ in range(2))
        self.waiting, self.paused = (self.train().json()["id"] for _ in range(2))
        assert client.post(f"{JOBS}/{self.paused}/pause").is_success

    def upload(self) -> httpx.Response:
        """A training file."""
        content = b'{"input": "a", "target": "b"}\n'
        return self.client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content)}
        )

    def train(self) -> httpx.Response:
        """A job that no worker takes."""
        asked = {"model": "tiny-gpt2", "training_file": self.file, "suffix": self.name}
        return self.client.post(JOBS, json=asked)


CALLS: dict[str, Callable[[Scene], httpx.Response]] = {
    "upload_version": lambda s: s.push(3),
    "delete_prefix": lambda s: s.client.delete(s.url),
    "delete_model": lambda s: s.client.delete(f"/v1/models/{s.name}"),
    "delete_version": lambda s: s.client.delete(f"{s.url}/versions/{s.first}"),
    "erase_user": lambda s: s.client.delete(f"/v1/users/{s.name}"),
    "pin_version": lambda s: s.client.post(f"{s.url}/versions/{s.first}/pin"),
    "unpin_version": lambda s: s.client.delete(f"{s.url}/versions/{s.first}/pin"),
    "set_alias": lambda s: s.client.put(s.stable, json={"version": s.first}),
    "rollback_alias": lambda s: s.client.post(f"{s.stable}/rollback"),
    "set_gate": lambda s: s.client.put(f"{s.stable}/gate", json=GATE),
    "remove_gate": lambda s: s.client.delete(f"{s.url}/aliases/guarded/gate"),
    "set_publication": lambda s: s.client.put(f"{s.url}/publication", json={"everyone": False}),
    "delete_publication": lambda s: s.client.delete(f"{s.url}/publication"),
    "make_from_text": lambda s: s.client.post(f"{s.url}/from-text", json={"text": "the cat"}),
    "create_tenant": lambda s: s.client.post("/admin/tenants", json={"id": f"new-{s.name}"}),
    "change_tenant": lambda s: s.client.patch(s.tenant, json={"disabled": True}),
    "delete_tenant": lambda s: s.client.delete(s.tenant),
    "create_key": lambda s: s.client.post(f"{s.tenant}/keys", json={"scopes": ["generate"]}),
    "upload_file": lambda s: s.upload(),
    "delete_file": lambda s: s.client.delete(f"/v1/files/{s.unused}"),
    "create_job": lambda s: s.train(),
    "cancel_job": lambda s: s.client.post(f"{JOBS}/{s.waiting}/cancel"),
    "pause_job": lambda s: s.client.post(f"{JOBS}/{s.waiting}/pause"),
    "resume_job": lambda s: s.client.post(f"{JOBS}/{s.paused}/resume"),
    "revoke_key": lambda s: s.client.delete(f"{s.tenant}/keys/{s.kid}"),
}
"""A good call of every route that changes something."""

UNRECORDED = {
    "create_completion",
    "generate",
    "generate_stream",
    "compat_generate",
    "tokenize",
    "detokenize",
    "evaluate_version",
    "compare_versions",
}
"""Routes whose method changes things, and that change nothing."""


def records(guarded: Guarded, reply: httpx.Response | None = None) -> list[dict[str, Any]]:
    """All records, or those of one call."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = list_records(guarded.server.services.registry.catalog, cursor=cursor)
        found += [dict(record) for record in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    if reply is None:
        return found
    return [one for one in found if one.get("request_id") == reply.headers["x-request-id"]]


def test_every_route_that_may_change_something_is_on_a_list(app: FastAPI) -> None:
    assert routes(app).keys() - UNRECORDED == CALLS.keys()
    assert routes(app).keys() > UNRECORDED
    assert {route.name for route in app.routes if route.audited} == CALLS.keys()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_change_leaves_one_record(
    guarded: Guarded, tiny_gpt2: FrozenModel, client: httpx.Client, name: str
) -> None:
    scene = Scene(guarded, tiny_gpt2, client, f"good-{name}")
    if name == "delete_version":  # nothing may point at it
        client.delete(f"{scene.url}/aliases/guarded/gate")
        client.put(f"{scene.url}/aliases/guarded", json={"version": scene.second})
    before = len(records(guarded))
    reply = CALLS[name](scene)
    assert reply.status_code < 300, reply.text
    assert len(records(guarded)) == before + 1
    [record] = records(guarded, reply)
    assert record["action"] == name
    assert (record["tenant"], record["peer"]) == ("acme", "127.0.0.1")
    assert record["kid"] == guarded.key().split("_")[1]
    assert record["outcome"]["status"] in ("done", "unchanged")


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_call_that_the_key_does_not_allow_leaves_one_record(
    guarded: Guarded, app: FastAPI, name: str
) -> None:
    method, path = routes(app)[name]
    url = path.replace(":path}", "}")
    for part in (
        "name",
        "alias",
        "digest",
        "tenant_id",
        "kid",
        "model_id",
        "user",
        "file_id",
        "job_id",
    ):
        url = url.replace(f"{{{part}}}", "abc")
    key = guarded.key(scopes=frozenset({min(EVERYTHING - {"prefixes:write", "admin"})}))
    before = len(records(guarded))
    with guarded.client(key) as client:
        reply = client.request(method, url)
    assert reply.status_code == 403
    assert len(records(guarded)) == before + 1
    [record] = records(guarded, reply)
    assert (record["action"], record["outcome"]) == (
        name,
        {"status": 403, "code": "insufficient_scope"},
    )


def test_what_was_moved_is_named_with_its_versions_before_and_after(
    guarded: Guarded, tiny_gpt2: FrozenModel, client: httpx.Client
) -> None:
    scene = Scene(guarded, tiny_gpt2, client, "moved")
    [record] = records(guarded, client.put(scene.stable, json={"version": scene.first}))
    assert record["target"] == {"name": "moved", "alias": "stable"}
    move = {"prefix": "moved", "alias": "stable", "before": scene.second, "after": scene.first}
    assert record["moved"] == [move]
    [record] = records(guarded, scene.push(9))
    assert [move["alias"] for move in record["moved"]] == ["latest"]
    assert record["moved"][0]["before"] == scene.second


def test_a_key_that_was_made_is_named_by_its_public_part(
    guarded: Guarded, tiny_gpt2: FrozenModel, client: httpx.Client
) -> None:
    scene = Scene(guarded, tiny_gpt2, client, "keys")
    reply = CALLS["create_key"](scene)
    [record] = records(guarded, reply)
    assert record["changed"] == [["key", "t-keys", reply.json()["kid"]]]
    assert reply.json()["key"].split("_")[2] not in str(record)


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        (lambda c: c.delete("/v1/prefixes/nobody"), 404, "prefix_not_found"),
        (lambda c: c.put("/v1/prefixes/x/aliases/y", json={"v": 1}), 422, "invalid_request"),
        (lambda c: c.post("/admin/tenants", json={"id": "acme"}), 409, "conflict"),
        (lambda c: c.post("/v1/prefixes/x/versions", content=b"junk"), 422, "invalid_prefix"),
    ],
)
def test_a_change_that_is_refused_leaves_one_record(
    guarded: Guarded,
    client: httpx.Client,
    send: Callable[[httpx.Client], httpx.Response],
    status: int,
    code: str,
) -> None:
    reply = send(client)
    assert reply.status_code == status
    [record] = records(guarded, reply)
    assert record["outcome"] == {"status": status, "code": code}


def test_reading_and_generating_leave_no_record(guarded: Guarded, client: httpx.Client) -> None:
    before = len(records(guarded))
    assert complete(client).status_code == 200
    assert client.get("/v1/prefixes").status_code == 200
    assert client.get("/v1/prefixes/nobody").status_code == 404
    assert client.post("/nothing", json={}).status_code == 404
    assert client.post("/tokenize", json={"inputs": "the"}).status_code == 200
    assert complete(client, max_tokens=-1).status_code == 400
    assert len(records(guarded)) == before


def test_generation_that_a_key_does_not_allow_is_on_record(guarded: Guarded) -> None:
    with guarded.client(guarded.key(scopes=frozenset({min(EVERYTHING - {"generate"})}))) as client:
        reply = complete(client)
    assert reply.status_code == 403
    assert len(records(guarded, reply)) == 1


def test_who_has_no_key_is_counted(guarded: Guarded) -> None:
    log = guarded.server.services.audit
    log.flush(everything=True)
    before = len(records(guarded))
    with guarded.client() as client:
        for _ in range(7):
            assert client.delete("/v1/prefixes/x").status_code == 401
            assert client.get("/v1/prefixes").status_code == 401
    assert len(records(guarded)) == before
    log.flush(everything=True)
    counted = records(guarded)[before:]
    assert sum(record["count"] for record in counted) == 14
    for record in counted:
        assert record["action"] == "refusals"
        assert record["outcome"]["code"] == "invalid_api_key"
        assert (record["tenant"], record["peer"]) == ("", "127.0.0.0/24")


@contextmanager
def without_a_table(guarded: Guarded) -> Iterator[None]:
    """Within the block nothing can be added to the audit log."""
    catalog = guarded.server.services.registry.catalog
    block = "CREATE TRIGGER full BEFORE INSERT ON audit_log BEGIN SELECT RAISE(FAIL, 'full'); END"

    def run(connection: Connection, statement: str) -> None:
        connection.execute(text(statement))

    with catalog.append() as connection:
        run(connection, block)
    try:
        yield
    finally:
        with catalog.append() as connection:
            run(connection, "DROP TRIGGER full")


def test_what_cannot_be_recorded_is_not_done_and_generation_goes_on(
    guarded: Guarded, tiny_gpt2: FrozenModel, client: httpx.Client
) -> None:
    scene = Scene(guarded, tiny_gpt2, client, "unrecordable")
    with without_a_table(guarded):
        for name in ("delete_prefix", "set_alias", "upload_version", "create_key"):
            reply = CALLS[name](scene)
            assert reply.status_code == 503, reply.text
        assert client.delete("/v1/prefixes/nobody").status_code == 404
        assert complete(client, model=scene.name).status_code == 200
    assert client.get(scene.stable).json()["version"] == scene.second
    assert len(client.get(f"{scene.url}/versions").json()["data"]) == 2
    assert CALLS["set_alias"](scene).status_code == 200


def test_the_log_may_be_read_by_admins_alone(guarded: Guarded, client: httpx.Client) -> None:
    page = client.get("/admin/audit", params={"tenant": "acme", "limit": 3}).json()
    assert [record["tenant"] for record in page["data"]] == ["acme"] * 3
    following = client.get("/admin/audit", params={"tenant": "acme", "cursor": page["next_cursor"]})
    assert following.json()["data"][0]["sequence"] > page["data"][-1]["sequence"]
    with guarded.client(guarded.key(scopes=EVERYTHING - {"admin"})) as other:
        assert other.get("/admin/audit").status_code == 403


def test_the_chain_of_all_this_is_sound(guarded: Guarded) -> None:
    [report] = verify(guarded.server.services.registry.catalog)
    assert (report.replica, report.fault) == ("test", None)
    assert report.records == len(records(guarded))


def test_no_key_and_no_text_is_in_logs_metrics_errors_usage_or_audit(
    guarded: Guarded,
    tiny_gpt2: FrozenModel,
    client: httpx.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mixed load whose prompts and keys are looked for wherever anything is kept or said."""
    caplog.set_level("DEBUG")
    prompt, admin = "zanzibar quartz umbrella", guarded.key()
    scene = Scene(guarded, tiny_gpt2, client, "secrets")
    replies = [complete(client, prompt, model=model) for model in (BASE, scene.name, "nobody")]
    replies += [complete(client, prompt, max_tokens=10_000), complete(client, [prompt], n=99)]
    replies += [call(scene) for name, call in CALLS.items() if name != "delete_tenant"]
    for secret in (admin, admin[:-1] + "~"):
        replies.append(client.delete(f"/v1/prefixes/{secret}"))
        replies.append(client.get("/v1/prefixes", params={"cursor": secret}))
        replies.append(complete(client, "the", model=secret))
    with guarded.client(admin[:-1] + "0") as wrong:
        replies += [complete(wrong, prompt), wrong.delete("/v1/prefixes/x")]
    guarded.server.services.audit.flush(everything=True)
    guarded.server.services.usage.flush()
    made = [reply.json()["key"] for reply in replies if reply.text.find('"key":') >= 0]
    said = [reply.text for reply in replies if reply.status_code >= 400]
    said += [client.get(path).text for path in ("/metrics", "/v1/usage", "/admin/audit")]
    ours = [line.getMessage() for line in caplog.records if line.name.startswith("app")]
    said += [str(records(guarded)), "\n".join(ours)]
    for path in guarded.server.root.rglob("catalog.sqlite*"):
        said.append(path.read_bytes().decode("latin-1"))
    secrets = [key.split("_")[2] for key in (admin, *made)]
    assert len(secrets) > 1
    for secret in (*secrets, "zanzibar", "umbrella"):
        leaks = [text[max(0, text.find(secret) - 80) :][:200] for text in said if secret in text]
        assert not leaks


class Leaving(httpx.BaseTransport):
    """Sends a request over a real socket, which it closes instead of reading the reply."""

    def __init__(self, url: str, moment: Callable[[], object]) -> None:
        self._url, self._moment = httpx.URL(url), moment

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
        headers = {**request.headers, "content-length": str(len(body))}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        with socket.create_connection((self._url.host, self._url.port)) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            self._moment()
        return httpx.Response(200, json={})


class Held:
    """A point of the server that a test waits for, and that goes on a while after it was left."""

    def __init__(self) -> None:
        self.reached, self.left = threading.Event(), threading.Event()
        self.armed = False

    def pass_through(self) -> None:
        if self.armed:
            self.armed = False
            self.reached.set()
            assert self.left.wait(20)
            time.sleep(0.1)  # the server hears that the client has gone

    def arm(self) -> None:
        self.reached.clear()
        self.left.clear()
        self.armed = True


@pytest.fixture(scope="module")
def commits() -> Iterator[Held]:
    """The end of a writing transaction, before it is committed."""
    held, record = Held(), AuditedCall.record

    def held_record(call: AuditedCall, connection: Connection) -> None:
        record(call, connection)
        held.pass_through()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AuditedCall, "record", held_record)
        yield held


def leave(
    guarded: Guarded, model: FrozenModel, client: httpx.Client, name: str, held: Held | None
) -> list[dict[str, Any]]:
    """The records of a call whose client leaves: at the point that is held, or at once."""
    kind = "at-once" if held is None else f"held-{id(held) % 997}"
    scene = Scene(guarded, model, client, f"left-{name}-{kind}")
    if name == "delete_version":  # nothing may point at it
        client.delete(f"{scene.url}/aliases/guarded/gate")
        client.put(f"{scene.url}/aliases/guarded", json={"version": scene.second})
    before = len(records(guarded))
    if held is not None:
        held.arm()
    leaving = httpx.Client(
        base_url=guarded.url,
        headers=client.headers,
        transport=Leaving(guarded.url, lambda: held is None or held.reached.wait(20)),
    )
    file = encode(random_prefix(model, 3, seed=3))
    scene.client = leaving
    scene.push = lambda _: leaving.post(
        f"{scene.url}/versions",
        content=file,
        headers={"content-type": "application/octet-stream"},
    )
    CALLS[name](scene)
    if held is not None:
        held.left.set()
        until(lambda: len(records(guarded)) > before)
    time.sleep(0.4)
    return records(guarded)[before:]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_client_that_leaves_while_its_change_is_written_leaves_one_record(
    guarded: Guarded, tiny_gpt2: FrozenModel, client: httpx.Client, commits: Held, name: str
) -> None:
    [record] = leave(guarded, tiny_gpt2, client, name, commits)
    assert (record["action"], record["outcome"]) == (name, {"status": "done"})


@pytest.mark.parametrize("name", ["set_alias", "upload_version", "delete_prefix", "create_key"])
def test_a_client_that_leaves_while_its_change_is_recorded_leaves_one_record(
    guarded: Guarded,
    tiny_gpt2: FrozenModel,
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    held, granted = Held(), guarded.server.services.audit.granted

    def held_granted(call: Any) -> None:
        held.pass_through()
        granted(call)

    monkeypatch.setattr(guarded.server.services.audit, "granted", held_granted)
    [record] = leave(guarded, tiny_gpt2, client, name, held)
    assert (record["action"], record["outcome"]) == (name, {"status": "done"})


@pytest.mark.parametrize("name", ["set_alias", "upload_version", "make_from_text", "delete_prefix"])
def test_what_a_client_leaves_at_once_is_done_and_recorded_or_neither(
    guarded: Guarded, tiny_gpt2: FrozenModel, client: httpx.Client, name: str
) -> None:
    catalog = guarded.server.services.registry.catalog
    epochs: list[int] = []
    real = CALLS[name]

    def call(scene: Scene) -> httpx.Response:
        epochs.append(catalog.epoch())
        return real(scene)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CALLS, name, call)
        found = leave(guarded, tiny_gpt2, client, name, None)
    assert len(found) <= 1
    is_done = [record["outcome"]["status"] for record in found] == ["done"]
    assert (catalog.epoch() > epochs[0]) == is_done
