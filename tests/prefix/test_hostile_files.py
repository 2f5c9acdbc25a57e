"""Hostile files over HTTP: each is refused with its reason and nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.prefix.codec import encode, max_file_bytes
from app.prefix.prefix import Prefix
from tests.prefix import hostile_headers, hostile_metadata, hostile_tensors
from tests.prefix.files import MAX_LENGTH, with_metadata
from tests.prefix.hostile import Hostile
from tests.server import RunningServer, serving
from tests.tiny import random_prefix

_GROUPS = [
    hostile_headers.FOREIGN,
    hostile_headers.LENGTHS,
    hostile_headers.JSON,
    hostile_tensors.NAMES,
    hostile_tensors.ENTRIES,
    hostile_tensors.OFFSETS,
    hostile_tensors.DTYPES,
    hostile_tensors.SHAPES,
    hostile_tensors.VALUES_OF_TENSORS,
    hostile_metadata.FORM,
    hostile_metadata.FINGERPRINTS,
    hostile_metadata.OFFSETS,
    hostile_metadata.TEMPLATES,
    hostile_metadata.DECODING,
    hostile_metadata.PROVENANCE,
]
HOSTILE = {name: file for group in _GROUPS for name, file in group.items()}


@pytest.fixture(scope="module")
def server(
    tiny_gpt2: FrozenModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with serving(tiny_gpt2, tmp_path_factory.mktemp("hostile")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer, tiny_gpt2: FrozenModel) -> Iterator[httpx.Client]:
    """A client of a server that holds one prefix, `kept`, which has been used."""
    with server.client() as opened:
        assert push(opened, "kept", random_prefix(tiny_gpt2, 4)).status_code == 201
        assert complete(opened, "kept")["usage"]["completion_tokens"] == 4
        yield opened


def push(client: httpx.Client, name: str, file: Prefix | bytes, **headers: str) -> httpx.Response:
    """Upload a prefix, or raw bytes, over a connection that is open already."""
    body = file if isinstance(file, bytes) else encode(file)
    return client.post(f"/v1/prefixes/{name}/versions", content=body, headers=headers)


def complete(client: httpx.Client, model: str) -> Any:
    """A short greedy completion."""
    body = {"model": model, "prompt": "the cat", "max_tokens": 4, "temperature": 0}
    reply = client.post("/v1/completions", json={**body, "min_tokens": 4})
    assert reply.status_code == 200, reply.text
    return reply.json()


@dataclass(frozen=True)
class Picture:
    """All that an upload could change, as it can be seen from outside and on the disk."""

    files: list[tuple[str, int]]
    prefixes: Any
    versions: Any
    metrics: list[str]

    @classmethod
    def of(cls, server: RunningServer, client: httpx.Client) -> Picture:
        store = server.root / "store"
        paths = [path for path in store.rglob("*") if path.is_file()]
        return cls(
            sorted((str(path.relative_to(store)), path.stat().st_size) for path in paths),
            client.get("/v1/prefixes").json(),
            client.get("/v1/prefixes/kept/versions").json(),
            [line for line in client.get("/metrics").text.splitlines() if _counts(line)],
        )


def _counts(line: str) -> bool:
    """Whether a line of the metrics says something about prefixes, tokens or good uploads."""
    uploads = 'method="POST",route="/v1/prefixes/{name}/versions",status="2' in line
    names = ("polyprefix_prefix_tier", "polyprefix_generated", "polyprefix_requests_finished")
    return line.startswith(names) or uploads


def test_the_picture_shows_uploads_and_use(
    server: RunningServer, client: httpx.Client, tiny_gpt2: FrozenModel
) -> None:
    before = Picture.of(server, client)
    assert len(before.files) == len(before.versions["data"]) == 1
    assert push(client, "seen", random_prefix(tiny_gpt2, 5)).status_code == 201
    after = Picture.of(server, client)
    for field in ("files", "prefixes", "metrics"):
        assert getattr(before, field) != getattr(after, field)
    assert client.delete("/v1/prefixes/seen").status_code == 200


def test_there_are_many_hostile_files_and_all_differ() -> None:
    assert len(HOSTILE) == sum(len(group) for group in _GROUPS) >= 200
    assert len({file.body for file in HOSTILE.values()}) == len(HOSTILE)


@pytest.mark.parametrize("file", [pytest.param(file, id=name) for name, file in HOSTILE.items()])
def test_refused_with_its_reason_and_nothing_left(
    server: RunningServer, client: httpx.Client, file: Hostile
) -> None:
    before = Picture.of(server, client)
    reply = push(client, "kept", file.body, **{"x-alias": "stable"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (file.status, file.code), error
    assert error["type"] == "invalid_request_error"
    for part in file.says:
        assert part in error["message"]
    assert len(error["message"]) < 500
    assert Picture.of(server, client) == before


def test_a_hostile_file_makes_no_new_name(client: httpx.Client) -> None:
    assert push(client, "fresh", with_metadata(format="pt")).status_code == 422
    assert client.get("/v1/prefixes/fresh").status_code == 404


def test_a_valid_file_is_served_after_all_hostile_ones(
    client: httpx.Client, tiny_gpt2: FrozenModel
) -> None:
    expected = complete(client, "kept")["choices"][0]["text"]
    for file in HOSTILE.values():
        assert push(client, "next", file.body).status_code == file.status
    assert push(client, "next", random_prefix(tiny_gpt2, 4)).status_code == 201
    assert complete(client, "next")["choices"][0]["text"] == expected
    assert complete(client, "kept")["choices"][0]["text"] == expected


def test_the_longest_prefix_is_taken_and_a_byte_over_the_limit_is_not(
    client: httpx.Client, tiny_gpt2: FrozenModel
) -> None:
    longest = random_prefix(tiny_gpt2, MAX_LENGTH, position_offset=0)
    assert push(client, "longest", longest).status_code == 201
    limit = max_file_bytes(tiny_gpt2.spec, MAX_LENGTH)
    at_limit = push(client, "longest", bytes(limit))
    assert (at_limit.status_code, at_limit.json()["error"]["code"]) == (422, "invalid_prefix")
    beyond = push(client, "longest", bytes(limit + 1))
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (413, "file_too_large")
    assert f"at most {limit} bytes" in beyond.json()["error"]["message"]
