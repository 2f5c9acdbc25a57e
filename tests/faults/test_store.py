"""A store that is frozen or slow harms those who need it, for a while, and nobody else."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.tenancy.auth.principal import Scope
from tests.api.guarded import Guarded, guarding
from tests.api.helpers import until
from tests.s3_server import Fault, Proxy, S3Server
from tests.tiny import random_prefix

pytestmark = pytest.mark.alone

LIMIT_S = 10.0
"""The store's own time limit."""
LONG = "the quick brown fox " * 150


@dataclass
class Scene:
    """A server on a bucket; `acme` is busy with the store, `rival` uses what it has."""

    guarded: Guarded
    model: FrozenModel
    s3: S3Server
    proxy: Proxy
    acme: httpx.Client
    rival: httpx.Client
    seed: int = 1000

    def push(self, name: str, tenant: str = "acme", seed: int | None = None) -> httpx.Response:
        """Upload a new version, or that of a seed."""
        if seed is None:
            self.seed += 1
            seed = self.seed
        key = self.guarded.key(tenant)
        return self.guarded.push(name, random_prefix(self.model, 3, seed=seed), key)

    def new_key(self) -> None:
        """A key that nobody has seen lately is let in."""
        _, key = self.guarded.server.services.keyring.create("rival", scopes=frozenset(Scope))
        with self.guarded.client(key.text) as client:
            assert client.get("/v1/prefixes").status_code == 200

    def uses(self) -> dict[str, Callable[[], object]]:
        """What the rival does without the store."""
        get = self.rival.get
        return {
            "lists prefixes": lambda: ok(get("/v1/prefixes")),
            "lists versions": lambda: ok(get("/v1/prefixes/known/versions")),
            "lists models": lambda: ok(get("/v1/models")),
            "reads usage": lambda: ok(get("/v1/usage")),
            "comes with a new key": self.new_key,
            "completes": lambda: self.complete("known", "the"),
            "completes a long text": lambda: self.complete("known", LONG),
            "moves an alias": lambda: ok(
                self.rival.put("/v1/prefixes/known/aliases/a", json={"version": self.known})
            ),
        }

    def complete(self, model: str, prompt: str) -> None:
        body = {"model": model, "prompt": prompt, "max_tokens": 1}
        reply = self.rival.post("/v1/completions", json=body)
        # a text that is too long is encoded before it is refused
        assert reply.status_code == 200 or reply.json()["error"]["code"].startswith("context")

    @property
    def known(self) -> str:
        digest: str = ok(self.rival.get("/v1/prefixes/known")).json()["aliases"]["latest"]
        return digest


def ok(reply: httpx.Response) -> httpx.Response:
    assert reply.is_success, reply.text
    return reply


def times(uses: dict[str, Callable[[], object]]) -> dict[str, float]:
    found = {}
    for name, use in uses.items():
        began = time.monotonic()
        use()
        found[name] = time.monotonic() - began
    return found


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def scene(
    s3: S3Server, tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        proxy = Proxy(s3)
        stack.callback(proxy.close)
        store = s3.url(s3.new_bucket(), "tensors", proxy.port)
        root: Path = tmp_path_factory.mktemp("store")
        guarded = stack.enter_context(guarding(tiny_gpt2, root, store=store))
        acme, rival = (
            stack.enter_context(guarded.client(guarded.key(tenant))) for tenant in ("acme", "rival")
        )
        scene = Scene(guarded, tiny_gpt2, s3, proxy, acme, rival)
        ok(scene.push("known", "rival"))
        ok(scene.push("mine"))
        times(scene.uses())
        yield scene


@pytest.fixture(autouse=True)
def healthy(scene: Scene) -> Iterator[None]:
    yield
    scene.proxy.fault = lambda _method, _path: None
    until(lambda: scene.push("mine").is_success)


def test_a_frozen_store_delays_only_calls_that_need_it(scene: Scene) -> None:
    idle = [times(scene.uses()) for _ in range(3)]
    usual = {name: statistics.median(one[name] for one in idle) for name in idle[0]}
    with ThreadPoolExecutor(14) as pool:
        scene.s3.freeze()
        try:
            began = time.monotonic()
            uploads = [pool.submit(scene.push, "mine", "acme", seed) for seed in range(14)]
            time.sleep(0.5)
            frozen = [times(scene.uses()) for _ in range(3)]
            assert not all(upload.done() for upload in uploads)
            replies = [upload.result() for upload in uploads]
            waited = time.monotonic() - began
            refusals = []
            for _ in range(3):
                at = time.monotonic()
                refusals += [
                    (scene.push(name, tenant), time.monotonic() - at)
                    for name, tenant in (("mine", "acme"), ("other", "rival"))
                ]
        finally:
            scene.s3.thaw()
        back = time.monotonic()
    slow = {
        name: (usual[name], [one[name] for one in frozen])
        for name in usual
        if min(one[name] for one in frozen) > 10 * usual[name] + 0.5
    }
    assert slow == {}
    assert {reply.status_code for reply in replies} == {503}
    assert waited < 2.5 * LIMIT_S  # not one after another
    for reply, took in refusals:
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert took < 5
    until(lambda: scene.push("mine").is_success, 10)
    assert time.monotonic() - back < 5


def test_a_slow_look_at_a_content_makes_no_other_write_wait(scene: Scene) -> None:
    """The same content again: the store is asked what it has, which takes long."""
    ok(scene.push("mine", seed=7))
    scene.proxy.fault = lambda method, _path: Fault(delay_s=3) if method == "HEAD" else None
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(scene.push, "mine", "acme", 7)
        until(lambda: any(method == "HEAD" for method, _ in scene.proxy.requests))
        scene.proxy.requests.clear()
        took = times(scene.uses())
        assert not upload.done()
        assert upload.result().status_code == 200
    assert max(took.values()) < 2


def test_a_slow_removal_makes_no_write_wait(scene: Scene) -> None:
    registry = scene.guarded.server.services.registry
    ok(scene.push("gone"))
    ok(scene.acme.delete("/v1/prefixes/gone"))
    scene.proxy.fault = lambda method, _path: Fault(delay_s=4) if method == "DELETE" else None
    scene.proxy.requests.clear()
    collecting = threading.Thread(target=lambda: registry.collect_garbage(0))
    collecting.start()
    until(lambda: any(method == "DELETE" for method, _ in scene.proxy.requests))
    took = times(scene.uses())
    assert collecting.is_alive()
    collecting.join()
    assert max(took.values()) < 3


def test_one_tenants_frozen_disk_is_not_anothers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its uploads stand still in the midst of the disk; the other one's are stored."""
    objects = scene.guarded.server.services.registry.objects
    mine = scene.guarded.server.services.registry.ensure_tenant("acme")
    commit, thawed = objects.commit, threading.Event()

    def frozen(owner: str, digest: str, staged: Path) -> None:
        if owner == mine:
            assert thawed.wait(30)
        commit(owner, digest, staged)

    monkeypatch.setattr(objects, "commit", frozen)
    with ThreadPoolExecutor(14) as pool:
        uploads = [pool.submit(scene.push, "mine", "acme", 100 + seed) for seed in range(14)]
        time.sleep(0.5)
        try:
            took = times(scene.uses())
            began = time.monotonic()
            ok(scene.push("other", "rival"))
            took["uploads"] = time.monotonic() - began
        finally:
            thawed.set()
        assert {upload.result().status_code for upload in uploads} == {201}
    assert max(took.values()) < 3


def test_one_tenants_slow_lists_are_not_anothers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = scene.guarded.server.services.registry
    real, thawed = registry.list_prefixes, threading.Event()

    def slow(tenant: str, *arguments: object) -> object:
        if tenant == "acme":
            assert thawed.wait(30)
        return real(tenant, *arguments)

    monkeypatch.setattr(registry, "list_prefixes", slow)
    with ThreadPoolExecutor(12) as pool:
        lists = [pool.submit(scene.acme.get, "/v1/prefixes") for _ in range(12)]
        time.sleep(0.3)
        try:
            took = times(scene.uses())
        finally:
            thawed.set()
        assert {one.result().status_code for one in lists} == {200}
    assert max(took.values()) < 3
