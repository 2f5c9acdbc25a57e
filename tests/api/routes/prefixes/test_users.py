"""`/v1/users`: whose a prefix is, and what remains of a user who is erased."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.prefix import Prefix
from app.registry.types import ContentKey
from app.runtime.prefix_cache import PrefixKey
from tests.api.guarded import Guarded, guarding
from tests.api.helpers import complete, error_of, slowed, until, until_idle
from tests.server import RunningServer
from tests.tiny import random_prefix


@pytest.fixture(scope="module")
def alices(tiny_gpt2: FrozenModel) -> Prefix:
    return random_prefix(tiny_gpt2, 5, seed=21)


@pytest.fixture
def client(own_server: RunningServer) -> Iterator[httpx.Client]:
    with own_server.client() as client:
        yield client


def push(client: httpx.Client, name: str, prefix: Prefix, **query: str) -> httpx.Response:
    headers = {"content-type": "application/octet-stream"}
    url = f"/v1/prefixes/{name}/versions"
    return client.post(url, content=encode(prefix), headers=headers, params=query)


def held(server: RunningServer) -> set[PrefixKey]:
    found: set[PrefixKey] = server.services.prefix_cache.held_keys()
    return found


def test_everything_of_the_user_is_gone_and_the_reply_lists_it(
    own_server: RunningServer, client: httpx.Client, alices: Prefix
) -> None:
    assert push(client, "alice", alices, user="user 7/é").status_code == 201
    made = client.post("/v1/prefixes/hello/from-text", json={"text": "the", "user": "user 7/é"})
    assert made.status_code == 201
    assert push(client, "support", random_prefix_like(alices)).status_code == 201
    listed = client.get("/v1/prefixes", params={"user": "user 7/é"}).json()["data"]
    assert [each["name"] for each in listed] == ["alice", "hello"]
    assert complete(client, model="alice", max_tokens=2).status_code == 200
    store = own_server.root / "store"
    files = set(store.rglob("*.safetensors"))
    assert len(files) == 3
    reply = client.delete("/v1/users/user%207%2F%C3%A9")
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert (body["user"], body["prefixes"]) == ("user 7/é", ["alice", "hello"])
    assert body["objects"] == {"removed": 2, "pending": 0, "shared": 0}
    assert body["counts"]["versions"] == 2
    assert any("backups" in each for each in body["remains"])
    assert len(set(store.rglob("*.safetensors"))) == 1
    assert not list((own_server.root / "data").rglob("*.safetensors"))
    for name in ("alice", f"alice@{alices.digest[:8]}", "support+alice"):
        assert complete(client, model=name).status_code == 404
    assert complete(client, model="support", max_tokens=2).status_code == 200
    until(lambda: all(key.digest != alices.digest for key in held(own_server)), 1)
    again = client.delete("/v1/users/user%207%2F%C3%A9").json()
    assert again["prefixes"] == []
    assert set(again["counts"].values()) == {0}
    assert set(again["objects"].values()) == {0}


def random_prefix_like(prefix: Prefix) -> Prefix:
    """Another content of the same shapes."""
    modules = {
        name: type(part)(part.keys + 1, part.values + 1) for name, part in prefix.modules.items()
    }
    return Prefix(modules, prefix.metadata)


class Stream:
    """A streamed completion that is read in a thread."""

    def __init__(self, server: RunningServer, model: str) -> None:
        self.lines: list[str] = []
        self.ended = 0.0
        self._body: dict[str, object] = {
            "model": model,
            "prompt": "the",
            "max_tokens": 60,
            "stream": True,
        }
        self._body |= {"min_tokens": 60}
        self._url = f"{server.url}/v1/completions"
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=60) as reply:
            for line in reply.iter_lines():
                self.lines.append(line)
        self.ended = time.monotonic()

    def wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def error(self) -> dict[str, object] | None:
        """The error that the stream ended with."""
        for line in self.lines:
            if line.startswith("data: {") and '"error"' in line:
                found: dict[str, object] = json.loads(line[6:])["error"]
                return found
        return None


def test_running_streams_with_the_prefix_are_cut_and_others_go_on(
    own_server: RunningServer, client: httpx.Client, alices: Prefix
) -> None:
    push(client, "alice", alices, user="alice")
    push(client, "support", random_prefix_like(alices))
    with slowed(own_server.services, 0.05):
        streams = [Stream(own_server, name) for name in ("support+alice", "alice", "support")]
        until(lambda: all(len(stream.lines) > 3 for stream in streams))
        began = time.monotonic()
        assert client.delete("/v1/users/alice").status_code == 200
        for stream in streams[:2]:
            stream.wait()
            assert stream.ended - began < 1
            assert stream.error is not None
            assert stream.error["code"] == "prefix_erased"
            assert "erased" in str(stream.error["message"])
    streams[2].wait()
    assert streams[2].error is None
    assert streams[2].lines[-2:] == ["data: [DONE]", ""]
    until_idle(own_server)
    assert complete(client, model="support", max_tokens=2).status_code == 200


def test_what_is_the_users_may_be_made_again(
    own_server: RunningServer, client: httpx.Client, alices: Prefix
) -> None:
    push(client, "alice", alices, user="alice")
    before = complete(client, model="alice", max_tokens=4, temperature=0).json()["choices"]
    client.delete("/v1/users/alice")
    until(lambda: not held(own_server), 1)
    assert push(client, "alice", alices, user="alice").status_code == 201
    after = complete(client, model="alice", max_tokens=4, temperature=0).json()["choices"]
    assert after == before


def test_a_prefix_of_another_user_is_not_overwritten(client: httpx.Client, alices: Prefix) -> None:
    push(client, "alice", alices, user="alice")
    reply = push(client, "alice", random_prefix_like(alices), user="bob")
    assert reply.status_code == 409
    assert "not this user's" in error_of(reply)["message"]


@pytest.mark.parametrize("user", ["x" * 513, "a%07b"])
def test_what_no_user_can_be_called_is_refused(
    client: httpx.Client, alices: Prefix, user: str
) -> None:
    reply = client.delete(f"/v1/users/{user}")
    assert "printable" in error_of(reply)["message"]
    headers = {"content-type": "application/octet-stream"}
    url = f"/v1/prefixes/alice/versions?user={user}"
    assert client.post(url, content=encode(alices), headers=headers).status_code in (400, 422)


@pytest.fixture(scope="module")
def acme(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("guarded")) as made:
        yield made


def test_another_tenants_user_of_that_name_is_left_alone_and_looks_like_none(
    acme: Guarded, alices: Prefix
) -> None:
    with acme.client(acme.key()) as mine, acme.client(acme.key("rival")) as theirs:
        assert push(mine, "alice", alices, user="alice").status_code == 201
        reply = theirs.delete("/v1/users/alice")
        nobody = theirs.delete("/v1/users/nobody")
        assert reply.json() | {"user": ""} == nobody.json() | {"user": ""}
        assert complete(mine, model="alice", max_tokens=2).status_code == 200
        assert push(theirs, "alice", alices, user="alice").status_code == 201
        assert theirs.delete("/v1/users/alice").json()["prefixes"] == ["alice"]
        assert complete(mine, model="alice", max_tokens=2).status_code == 200


def test_the_audit_log_says_so_without_content(acme: Guarded, alices: Prefix) -> None:
    with acme.client(acme.key()) as client:
        push(client, "zoe", alices, user="zoe")
        client.delete("/v1/users/zoe")
        [record] = [
            each
            for each in client.get("/admin/audit").json()["data"]
            if each["action"] == "erase_user" and each["target"] == {"user": "zoe"}
        ]
    assert record["outcome"] == {"status": "done"}
    assert alices.digest not in json.dumps(record)


def test_the_content_is_gone_for_caches_too(own_server: RunningServer, alices: Prefix) -> None:
    """A load that was under way does not bring the prefix back."""
    with own_server.client() as client:
        push(client, "alice", alices, user="alice")
        version = own_server.services.registry.get_version("demo", "alice", alices.digest)
        key = ContentKey(version.owner, version.digest)
        client.delete("/v1/users/alice")
        assert own_server.services.registry.gone_contents([key]) == [key]
