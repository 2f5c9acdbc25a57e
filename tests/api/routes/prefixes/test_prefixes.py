"""`/v1/prefixes`: a version's life from upload to deletion."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.prefix import Prefix
from app.runtime.prefix_cache import PrefixKey
from tests.api.helpers import complete, error_of, events_of, slowed, text_of, with_metadata
from tests.server import RunningServer
from tests.tiny import random_prefix

NAME = "work"
URL = f"/v1/prefixes/{NAME}"


@pytest.fixture(scope="module")
def files(tiny_gpt2: FrozenModel) -> list[Prefix]:
    """Three versions to upload."""
    return [random_prefix(tiny_gpt2, 2, seed=40 + seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def clean(client: httpx.Client) -> Iterator[None]:
    """Each test begins and ends without the prefix that it works with."""
    yield
    client.delete(URL)


# Uploads


def test_an_upload_answers_with_the_version(
    client: httpx.Client, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    prefix = with_metadata(
        random_prefix(tiny_gpt2, 5, seed=50),
        input_template="{input}!",
        decoding={"temperature": 0.5},
        provenance={"data": "none"},
    )
    reply = server.push(NAME, prefix)
    assert reply.status_code == 201
    body = reply.json()
    assert (body["object"], body["name"], body["digest"]) == ("prefix.version", NAME, prefix.digest)
    assert (body["length"], body["position_offset"], body["dtype"]) == (5, 5, "float32")
    assert (body["nbytes"], body["verified"], body["pinned"]) == (prefix.nbytes, True, False)
    assert (body["input_template"], body["decoding"]) == ("{input}!", {"temperature": 0.5})
    assert body["provenance"] == {"data": "none"}
    assert reply.headers["location"] == f"{URL}/versions/{prefix.digest}"
    assert client.get(reply.headers["location"]).json() == body


def test_the_same_content_again_is_the_same_version(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    first, again = server.push(NAME, files[0]), server.push(NAME, files[0])
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert client.get(URL).json()["versions"] == 1


def test_a_repeated_upload_with_a_key_is_the_same_version(
    server: RunningServer, files: list[Prefix]
) -> None:
    key = {"idempotency-key": "c1f7-0001"}
    first, again = server.push(NAME, files[0], **key), server.push(NAME, files[0], **key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("idempotency-key", "has space", 400),
        ("idempotency-key", "x" * 256, 422),
        ("x-alias", "ABC", 400),
        ("x-alias", "abcdef", 400),
        ("x-alias", "x" * 65, 422),
        ("content-type", "application/json", 415),
        ("content-type", "multipart/form-data; boundary=x", 415),
        ("content-encoding", "gzip", 415),
    ],
)
def test_a_wrong_header_is_refused_and_nothing_is_kept(
    header: str,
    value: str,
    status: int,
    client: httpx.Client,
    server: RunningServer,
    files: list[Prefix],
) -> None:
    reply = server.push(NAME, files[0], **{header: value})
    assert reply.status_code == status
    error_of(reply)
    assert client.get(URL).status_code == 404


def test_an_upload_may_move_an_alias(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    server.push(NAME, files[0], **{"x-alias": "stable"})
    server.push(NAME, files[1])
    old, new = files[0].digest, files[1].digest
    assert client.get(URL).json()["aliases"] == {"latest": new, "stable": old}


def test_a_file_without_a_declared_length_is_taken(
    client: httpx.Client, files: list[Prefix]
) -> None:
    content = io.BytesIO(encode(files[0]))
    pieces = iter(lambda: content.read(1000), b"")
    assert client.post(f"{URL}/versions", content=pieces).status_code == 201


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "invalid_prefix"),
        (b"not a prefix, but long enough for a header", 422, "invalid_prefix"),
        (b"\x00" * (1 << 21), 413, "file_too_large"),
    ],
    ids=["empty", "garbage", "large"],
)
def test_what_is_no_prefix_leaves_nothing(
    content: bytes, status: int, code: str, client: httpx.Client, server: RunningServer
) -> None:
    reply = server.push(NAME, content)
    assert (reply.status_code, error_of(reply)["code"]) == (status, code)
    assert client.get(URL).status_code == 404


@pytest.mark.parametrize("name", ["UP", "a b", "-a", "x" * 65, "%00", "a+b", "a@b"])
def test_a_name_that_breaks_the_rules_is_refused(
    name: str, client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    assert server.push(name, files[0]).status_code == 400
    assert client.get(f"/v1/prefixes/{name}").status_code == 400
    assert client.delete(f"/v1/prefixes/{name}").status_code == 400


# Lists


def test_prefixes_are_listed_page_by_page(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    names = [f"page-{letter}" for letter in "abcde"]
    for name in names:
        server.push(name, files[0])
    pages = list(pages_of(client, "/v1/prefixes", 2))
    assert all(len(page) == 2 for page in pages[:-1])
    listed = [record["name"] for page in pages for record in page]
    assert listed == sorted(set(listed))
    assert set(names) <= set(listed)
    whole = client.get("/v1/prefixes", params={"limit": 100}).json()
    assert (whole["object"], whole["next_cursor"]) == ("list", None)
    assert [record["name"] for record in whole["data"]] == listed
    for name in names:
        client.delete(f"/v1/prefixes/{name}")


def test_versions_are_listed_from_the_newest(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    for prefix in files:
        server.push(NAME, prefix)
    pages = list(pages_of(client, f"{URL}/versions", 2))
    assert [len(page) for page in pages] == [2, 1]
    digests = [version["digest"] for page in pages for version in page]
    assert digests == [prefix.digest for prefix in reversed(files)]


def pages_of(client: httpx.Client, url: str, limit: int) -> Iterator[list[dict[str, object]]]:
    """The pages of a list, asked for one after the other."""
    parameters: dict[str, object] = {"limit": limit}
    while True:
        body = client.get(url, params=parameters).json()
        yield body["data"]
        if body["next_cursor"] is None:
            return
        parameters["cursor"] = body["next_cursor"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=0", 422),
        ("limit=101", 422),
        ("limit=many", 422),
        ("limit=NaN", 422),
        ("cursor=nonsense", 400),
        ("cursor=%00", 400),
        (f"cursor={'x' * 513}", 422),
    ],
)
def test_a_wrong_page_is_refused(query: str, status: int, client: httpx.Client) -> None:
    reply = client.get(f"/v1/prefixes?{query}")
    assert reply.status_code == status
    error_of(reply)


# Reading


def test_a_version_is_found_by_the_start_of_its_digest(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    body = server.push(NAME, files[0]).json()
    for length in (6, 12, 64):
        start = files[0].digest[:length]
        assert client.get(f"{URL}/versions/{start}").json() == body


@pytest.mark.parametrize("digest", ["ffffff", "f" * 64, "latest", "f", "F" * 64, "x" * 100])
def test_a_version_that_is_not_there_is_not_found(
    digest: str, client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    server.push(NAME, files[0])
    for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/pin")):
        reply = client.request(method, f"{URL}/versions/{digest}{tail}")
        assert reply.status_code in (400, 404)
        error_of(reply)


@pytest.mark.parametrize("tail", ["", "/versions", "/versions/abcdef", "/aliases/latest"])
def test_a_prefix_that_is_not_there_is_not_found(tail: str, client: httpx.Client) -> None:
    reply = client.get(f"/v1/prefixes/nobody{tail}")
    assert (reply.status_code, error_of(reply)["code"]) == (404, "prefix_not_found")


def test_the_content_is_the_file_that_was_uploaded(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    content = encode(files[0])
    digest = server.push(NAME, content).json()["digest"]
    reply = client.get(f"{URL}/versions/{digest[:8]}/content")
    assert reply.content == content
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["etag"] == f'"{digest}"'
    assert f"{NAME}-{digest[:12]}.safetensors" in reply.headers["content-disposition"]


def test_ranges_are_ignored(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    content = encode(files[0])
    digest = server.push(NAME, content).json()["digest"]
    ranges = "bytes=" + ",".join(f"{start}-" for start in range(5000))
    reply = client.get(f"{URL}/versions/{digest}/content", headers={"range": ranges})
    assert (reply.status_code, reply.headers["accept-ranges"]) == (200, "none")
    assert reply.content == content


# Deleting


def test_a_deleted_prefix_is_gone_at_once(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    server.push(NAME, files[0])
    assert complete(client, model=NAME).status_code == 200
    reply = client.delete(URL)
    assert reply.json() == {"object": "prefix", "name": NAME, "deleted": True}
    assert complete(client, model=NAME).status_code == 404
    assert client.get(URL).status_code == 404
    assert client.delete(URL).status_code == 404


def test_latest_falls_back_to_the_version_that_is_left(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    old, new = files[0].digest, files[1].digest
    server.push(NAME, files[0])
    server.push(NAME, files[1])
    reply = client.delete(f"{URL}/versions/{new[:8]}")
    assert reply.json() == {
        "object": "prefix.version",
        "name": NAME,
        "digest": new,
        "deleted": True,
    }
    assert client.get(URL).json()["aliases"] == {"latest": old}
    assert complete(client, model=NAME).headers["x-prefix-version"] == old
    assert complete(client, model=f"{NAME}@{new}").status_code == 404
    assert client.get(f"{URL}/versions/{new}").status_code == 404


def test_a_version_that_an_alias_needs_cannot_be_deleted(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    server.push(NAME, files[0], **{"x-alias": "stable"})
    reply = client.delete(f"{URL}/versions/{files[0].digest}")
    assert (reply.status_code, error_of(reply)["code"]) == (409, "in_use")
    assert "stable" in error_of(reply)["message"]
    assert complete(client, model=f"{NAME}@stable").status_code == 200


def test_a_row_that_runs_finishes_with_the_prefix_that_is_deleted_under_it(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    server.push(NAME, files[0])
    expected = text_of(complete(client, model=NAME, max_tokens=20))
    fields = {"model": NAME, "prompt": "the", "temperature": 0, "max_tokens": 20, "stream": True}
    with (
        slowed(server.services, 0.02),
        client.stream("POST", "/v1/completions", json=fields) as reply,
        server.client() as other,
    ):
        assert other.delete(URL).status_code == 200
        assert server.services.engine.progress().running == 1
        reply.read()
    chunks = events_of(reply.text)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected


# Pins


def test_a_pinned_version_says_so_until_it_is_unpinned(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    digest = server.push(NAME, files[0]).json()["digest"]
    url = f"{URL}/versions/{digest[:8]}"
    for _ in range(2):
        assert client.post(f"{url}/pin").json()["pinned"] is True
        assert client.get(url).json()["pinned"] is True
    for _ in range(2):
        assert client.delete(f"{url}/pin").json()["pinned"] is False
        assert client.get(url).json()["pinned"] is False


def test_a_pin_leaves_the_answers_as_they_were(
    client: httpx.Client, server: RunningServer, files: list[Prefix]
) -> None:
    digest = server.push(NAME, files[0]).json()["digest"]
    before = text_of(complete(client, model=NAME))
    client.post(f"{URL}/versions/{digest}/pin")
    assert text_of(complete(client, model=NAME)) == before


@pytest.mark.parametrize("path", ["/v1/prefixes/work", "/v1/models/work"])
def test_a_deleted_prefix_leaves_memory_with_its_pins(
    own_server: RunningServer, files: list[Prefix], path: str
) -> None:
    digest = own_server.push(NAME, files[0]).json()["digest"]
    services = own_server.services
    with own_server.client() as client:
        client.post(f"{URL}/versions/{digest}/pin")
        version = services.registry.get_version("demo", NAME, digest)
        assert complete(client, model=NAME).status_code == 200
        assert services.prefix_cache.stats()["device"].entries == 1
        assert client.delete(path).status_code == 200
    assert (
        services.prefix_cache.stats()["device"].entries
        == services.prefix_cache.stats()["host"].entries
        == 0
    )
    key = PrefixKey(version.owner, digest)
    deadline = time.monotonic() + 10
    while key in services.prefix_cache.debug_state()["pinned"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
