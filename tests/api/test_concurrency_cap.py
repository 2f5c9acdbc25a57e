"""A tenant has a bounded number of uploads and evaluations open; each ends with its request."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from app.api.side_work import MAX_OPEN, ConcurrencyCap
from app.engine.request import GenerationRequest
from app.engine.router import RequestStream
from app.errors import TenantQueueFull
from app.model.frozen import FrozenModel
from tests.api.guarded import Guarded, guarding
from tests.api.helpers import until
from tests.tiny import random_prefix


@pytest.fixture(scope="module")
def guarded(tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(tiny_gpt2, tmp_path_factory.mktemp("uploads")) as guarded:
        yield guarded


def begin_upload(guarded: Guarded, tenant: str) -> socket.socket:
    """A request whose body never ends."""
    host, port = guarded.url.removeprefix("http://").split(":")
    door = socket.create_connection((host, int(port)), timeout=30)
    door.sendall(
        b"POST /v1/prefixes/slow/versions HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n"
        b"Authorization: Bearer " + guarded.key(tenant).encode() + b"\r\n\r\nx"
    )
    return door


def test_the_cap_counts_each_tenant_alone() -> None:
    uploads = ConcurrencyCap("uploads")
    with ExitStack() as stack:
        for _ in range(MAX_OPEN):
            stack.enter_context(uploads.slot("acme"))
        with pytest.raises(TenantQueueFull), uploads.slot("acme"):
            pass
        with uploads.slot("rival"):
            pass
    with uploads.slot("acme"):
        pass
    assert not uploads.open


def test_unfinished_uploads_block_only_their_own_tenant(
    guarded: Guarded, tiny_gpt2: FrozenModel
) -> None:
    uploads = guarded.server.services.uploads
    prefix = random_prefix(tiny_gpt2, 3)
    doors = [begin_upload(guarded, "acme") for _ in range(MAX_OPEN)]
    try:
        until(lambda: uploads.open["acme"] == MAX_OPEN)
        refused = guarded.push("mine", prefix, guarded.key("acme"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tenant_queue_full")
        assert guarded.push("mine", prefix, guarded.key("rival")).status_code == 201
    finally:
        for door in doors:
            door.close()
    until(lambda: not uploads.open)
    assert guarded.push("mine", prefix, guarded.key("acme")).status_code == 201


def test_an_evaluation_beyond_the_cap_is_refused_before_any_work(
    guarded: Guarded, tiny_gpt2: FrozenModel
) -> None:
    guarded.push("judged", random_prefix(tiny_gpt2, 3), guarded.key("acme"))
    body = {"metrics": ["loss"], "examples": [{"input": "a", "output": "b"}]}
    compared = {"a": "latest", "b": "latest", "examples": [{"input": "a"}]}
    evaluations = guarded.server.services.evaluations.cap
    with guarded.client(guarded.key("acme")) as client, ExitStack() as stack:
        for _ in range(MAX_OPEN):
            stack.enter_context(evaluations.slot("acme"))
        refused = client.post("/v1/prefixes/judged/evaluate", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tenant_queue_full")
        assert client.post("/v1/prefixes/judged/compare", json=compared).status_code == 429
        stack.close()
        assert client.post("/v1/prefixes/judged/evaluate", json=body).status_code == 200
        assert client.post("/v1/prefixes/judged/compare", json=compared).status_code == 200
    assert not evaluations.open


def test_the_probe_of_an_upload_runs_with_its_tenants_weight(
    guarded: Guarded, tiny_gpt2: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, weights = guarded.server.services, list[float]()
    submit = services.engine.submit

    def noting(request: GenerationRequest) -> RequestStream:
        weights.append(request.weight)
        return submit(request)

    monkeypatch.setattr(services.engine, "submit", noting)
    services.tenants.change("acme", limits={"weight": 0.25})
    try:
        prefix = random_prefix(tiny_gpt2, 2, seed=9)
        assert guarded.push("light", prefix, guarded.key("acme")).status_code == 201
    finally:
        services.tenants.change("acme", limits={"weight": None})
    assert weights == [0.25]
