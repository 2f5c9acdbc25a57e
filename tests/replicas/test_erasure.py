"""A user who is erased at one replica is gone at the other within a second, streams included."""

from __future__ import annotations

import json
import threading
import time

import pytest

from app.prefix.codec import encode
from tests.api.helpers import slowed, until
from tests.replicas.cluster import FOLLOWS_S, Sample, within
from tests.replicas.conftest import Pair, Tenant

pytestmark = pytest.mark.alone


def test_streams_end_names_go_and_the_bucket_is_clean(
    pair: Pair, acme: Tenant, samples: list[Sample]
) -> None:
    for name, sample, query in (
        ("alice", samples[0], {"user": "alice"}),
        ("support", samples[1], {}),
    ):
        pushed = acme.one.client.post(
            f"/v1/prefixes/{name}/versions",
            content=encode(sample.prefix),
            headers={"content-type": "application/octet-stream"},
            params=query,
        )
        assert pushed.status_code == 201, pushed.text
    assert acme.two.version_of("alice") == samples[0].digest
    lines: list[str] = []
    ended: list[float] = []
    body = {"model": "support+alice", "prompt": "the", "max_tokens": 60, "min_tokens": 60}

    def read() -> None:
        with acme.two.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as it:
            lines.extend(it.iter_lines())
        ended.append(time.monotonic())

    with slowed(pair.two.services, 0.08):
        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: pair.two.services.engine.progress().running > 0)
        time.sleep(0.3)
        began = time.monotonic()
        reply = acme.one.client.delete("/v1/users/alice")
        assert reply.json()["objects"] == {"removed": 1, "pending": 0, "shared": 0}
        reader.join(30)
    assert ended[0] - began < FOLLOWS_S + 0.2  # and a step that was under way
    [error] = [json.loads(line[6:])["error"] for line in lines if '"error"' in line]
    assert error["code"] == "prefix_erased"
    within(FOLLOWS_S, lambda: acme.two.complete("alice").status_code == 404)
    assert acme.two.version_of("support") == samples[1].digest
    assert samples[0].digest not in pair.cluster.contents()
    assert samples[1].digest in pair.cluster.contents()
    for server in (pair.one, pair.two):
        held = {key.digest for key in server.services.prefix_cache.held_keys()}
        assert samples[0].digest not in held
        assert not list(server.root.rglob("*.safetensors"))
    assert acme.two.client.delete("/v1/users/alice").json()["prefixes"] == []
