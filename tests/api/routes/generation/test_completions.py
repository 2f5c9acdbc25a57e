"""`POST /v1/completions` beyond OpenAI's client: prefixes, limits, headers, malformed bodies."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from tests.api.helpers import (
    BASE,
    END,
    NO_END,
    complete,
    error_of,
    events_of,
    held,
    plain_text,
    slowed,
    text_of,
    until,
    with_metadata,
)
from tests.server import RunningServer, serving
from tests.tiny import CONTEXT, random_prefix

PROMPT = "the quick brown fox"
TIMES = ("x-queue-time", "x-time-to-first-token", "x-total-time")


def post(
    client: httpx.Client, content: bytes, media_type: str | None = "application/json"
) -> httpx.Response:
    headers = {} if media_type is None else {"content-type": media_type}
    return client.post("/v1/completions", content=content, headers=headers)


# The text is what transformers alone would say


@pytest.mark.parametrize(
    "names", [(), ("tone",), ("voice",), ("tone", "voice"), ("voice", "tone")], ids="+".join
)
def test_greedy_text_equals_plain_transformers(
    names: tuple[str, ...],
    client: httpx.Client,
    prefixes: dict[str, Prefix],
    tiny_gpt2_folder: Path,
) -> None:
    expected = plain_text(tiny_gpt2_folder, [prefixes[name] for name in names], PROMPT, 10)
    model = "+".join(names) or BASE
    assert text_of(complete(client, PROMPT, model=model, max_tokens=10)) == expected
    assert expected


def test_every_prefix_and_composition_has_its_own_text(client: httpx.Client) -> None:
    models = (BASE, "tone", "voice", "tone+voice")
    texts = {text_of(complete(client, PROMPT, model=model, max_tokens=10)) for model in models}
    assert len(texts) == len(models)


# How a prefix is named


def test_a_list_of_prefixes_is_the_same_as_a_composition(
    client: httpx.Client, prefixes: dict[str, Prefix]
) -> None:
    joined = complete(client, model="tone+voice")
    listed = complete(client, prefixes=["tone", "voice"])
    assert text_of(listed) == text_of(joined)
    digests = f"{prefixes['tone'].digest},{prefixes['voice'].digest}"
    assert listed.headers["x-prefix-version"] == joined.headers["x-prefix-version"] == digests


def test_a_list_of_prefixes_beside_a_prefix_as_model_is_refused(client: httpx.Client) -> None:
    reply = complete(client, model="tone", prefixes=["voice"])
    assert (reply.status_code, error_of(reply)["param"]) == (400, "prefixes")


def test_every_form_of_a_name_means_the_same_version(
    client: httpx.Client, prefixes: dict[str, Prefix]
) -> None:
    digest = prefixes["tone"].digest
    plain = ("tone", "tone@latest", f"tone@{digest}", f"tone@{digest[:6]}", "demo/tone")
    forms = (*plain, f"{BASE}:tone", f"{BASE}:demo/tone@latest")
    replies = [complete(client, model=form) for form in forms]
    assert len({text_of(reply) for reply in replies}) == 1
    assert {reply.headers["x-prefix-version"] for reply in replies} == {digest}
    assert [reply.json()["model"] for reply in replies] == list(forms)


def test_an_alias_chooses_its_version(
    client: httpx.Client, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    old, new = (random_prefix(tiny_gpt2, 2, seed=seed) for seed in (20, 21))
    server.push("mood", old, **{"x-alias": "stable"})
    server.push("mood", new)
    for model, prefix in (("mood", new), ("mood@latest", new), ("mood@stable", old)):
        assert complete(client, model=model).headers["x-prefix-version"] == prefix.digest
    client.delete("/v1/prefixes/mood")


def test_the_base_model_wins_over_a_prefix_of_its_name(
    client: httpx.Client, server: RunningServer, prefixes: dict[str, Prefix]
) -> None:
    before = text_of(complete(client))
    assert server.push(BASE, prefixes["tone"]).status_code == 201
    reply = complete(client)
    assert text_of(reply) == before
    assert "x-prefix-version" not in reply.headers
    client.delete(f"/v1/prefixes/{BASE}")


@pytest.mark.parametrize(
    "model",
    ["nobody", "tone@nowhere", "tone@ffffffff", "acme/tone", "tone+nobody", f"{BASE}+tone"],
)
def test_a_name_that_does_not_resolve_is_an_error_and_never_the_base_model(
    model: str, client: httpx.Client
) -> None:
    for fields in ({}, {"stream": True}):
        reply = complete(client, model=model, **fields)
        assert reply.status_code == 404
        error = error_of(reply)
        assert (error["code"], error["param"]) == ("prefix_not_found", "model")
        assert error["type"] == "invalid_request_error"


def test_another_tenants_prefix_reads_like_one_that_does_not_exist(client: httpx.Client) -> None:
    known = error_of(complete(client, model="acme/tone"))["message"]
    unknown = error_of(complete(client, model="acme/none"))["message"]
    assert known.replace("tone", "none") == unknown


@pytest.mark.parametrize(
    "model", ["+", "tone+", "a b", "../x", "tone@", "TONE", "é", "@x", f"{BASE}:", "other:tone"]
)
def test_a_name_that_breaks_the_grammar_does_not_exist(model: str, client: httpx.Client) -> None:
    reply = complete(client, model=model)
    assert (reply.status_code, error_of(reply)["code"]) == (404, "prefix_not_found")


def test_a_composition_is_bounded(client: httpx.Client) -> None:
    reply = complete(client, model="+".join(["tone"] * 9))
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_value")


def test_a_prefix_of_another_base_model_is_a_conflict(
    client: httpx.Client, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    foreign = with_metadata(random_prefix(tiny_gpt2, 2), base_fingerprint="f" * 64)
    reply = server.push("foreign", foreign)
    assert (reply.status_code, error_of(reply)["code"]) == (409, "base_model_mismatch")
    assert complete(client, model="foreign").status_code == 404


# Headers


def test_a_reply_says_what_served_it_and_how_long_it_took(
    client: httpx.Client, prefixes: dict[str, Prefix]
) -> None:
    reply = complete(client, model="tone")
    assert reply.headers["x-prefix-version"] == prefixes["tone"].digest
    assert reply.headers["x-prefix-tier"] in ("device", "host", "store")
    assert reply.headers["x-request-id"].startswith("req-")
    queue, first, total = (float(reply.headers[name]) for name in TIMES)
    assert 0 <= queue < first < total < 60_000


def test_the_tier_is_the_slowest_of_the_prefixes(
    client: httpx.Client, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    server.push("cold", random_prefix(tiny_gpt2, 2, seed=30))
    complete(client, model="tone")
    tiers = [
        complete(client, model=model).headers["x-prefix-tier"]
        for model in ("tone+cold", "tone+cold", "tone")
    ]
    assert tiers == ["store", "device", "device"]
    client.delete("/v1/prefixes/cold")


def test_the_base_model_has_times_and_no_version(client: httpx.Client) -> None:
    headers = complete(client).headers
    assert all(name in headers for name in TIMES)
    assert "x-prefix-version" not in headers
    assert "x-prefix-tier" not in headers


def test_a_stream_says_at_once_what_serves_it(
    client: httpx.Client, prefixes: dict[str, Prefix]
) -> None:
    reply = complete(client, model="tone", stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-prefix-version"] == prefixes["tone"].digest
    assert reply.headers["x-prefix-tier"] == "device"
    assert reply.headers["x-request-id"]
    assert events_of(reply.text)[-1] == "[DONE]"


# Parameters


def test_max_tokens_zero_with_echo_scores_the_prompt_alone(client: httpx.Client) -> None:
    body = complete(client, PROMPT, max_tokens=0, echo=True, logprobs=1).json()
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert "".join(choice["logprobs"]["tokens"]) == PROMPT
    assert body["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == body["usage"]["prompt_tokens"]


def test_max_tokens_zero_without_echo_is_an_empty_text(client: httpx.Client) -> None:
    assert text_of(complete(client, max_tokens=0)) == ""


def test_sixteen_tokens_are_made_if_nobody_says_how_many(client: httpx.Client) -> None:
    body = client.post(
        "/v1/completions", json={"model": BASE, "prompt": "the", "logit_bias": NO_END}
    ).json()
    assert body["usage"]["completion_tokens"] == 16


def test_min_tokens_holds_the_end_back(client: httpx.Client) -> None:
    bias = {str(END): 100}
    counts = [
        complete(client, logit_bias=bias, min_tokens=least).json()["usage"]["completion_tokens"]
        for least in (0, 5)
    ]
    assert counts == [1, 6]


def test_what_does_not_fit_the_context_is_refused_with_the_count(client: httpx.Client) -> None:
    ids = [5] * 100
    fits = complete(client, ids, max_tokens=CONTEXT - 100, logit_bias=NO_END)
    assert fits.json()["usage"]["total_tokens"] == CONTEXT
    error = error_of(complete(client, ids, max_tokens=CONTEXT - 99))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert str(CONTEXT + 1) in error["message"]
    longer = error_of(complete(client, [5] * (CONTEXT + 1), max_tokens=1))
    assert longer["param"] == "prompt"


def test_a_prefix_takes_the_positions_by_which_it_shifts(client: httpx.Client) -> None:
    ids = [5] * 100
    for model, room in (("tone", CONTEXT - 107), ("voice", CONTEXT - 100)):
        assert complete(client, ids, model=model, max_tokens=room).status_code == 200
        reply = complete(client, ids, model=model, max_tokens=room + 1)
        assert error_of(reply)["code"] == "context_length_exceeded"


def test_the_default_of_new_tokens_is_cut_to_what_the_context_leaves(client: httpx.Client) -> None:
    body = {"model": BASE, "prompt": [5] * (CONTEXT - 3), "logit_bias": NO_END}
    assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 3
    full = client.post("/v1/completions", json={**body, "prompt": [5] * CONTEXT})
    assert error_of(full)["code"] == "context_length_exceeded"


def test_a_template_is_applied_to_text_and_not_to_raw_text_or_tokens(
    client: httpx.Client, server: RunningServer, prefixes: dict[str, Prefix], tiny_gpt2_folder: Path
) -> None:
    text = server.services.model.text
    plain, shaped = text.encode("cat"), [*text.encode(" cat "), END]
    assert plain != shaped[:-1]
    form = [prefixes["form"]]
    for fields, ids in (
        ({"prompt": "cat"}, shaped),
        ({"prompt": "cat", "raw": True}, plain),
        ({"prompt": plain}, plain),
    ):
        reply = complete(client, model="form", max_tokens=5, min_tokens=0, **fields)
        assert reply.json()["usage"]["prompt_tokens"] == len(ids)
        assert text_of(reply) == plain_text(tiny_gpt2_folder, form, ids, 5)


def test_a_special_token_in_a_prompt_stays_text(
    client: httpx.Client, server: RunningServer
) -> None:
    prompt = "a<|endoftext|>b"
    ids = server.services.model.text.encode(prompt)
    assert END not in ids
    reply = complete(client, prompt, echo=True, logprobs=0, max_tokens=0)
    assert text_of(reply) == prompt
    assert reply.json()["usage"]["prompt_tokens"] == len(ids)
    templated = complete(client, prompt, model="form", echo=True, logprobs=0, max_tokens=0)
    assert templated.json()["choices"][0]["logprobs"]["tokens"].count("<|endoftext|>") == 1


def test_the_request_overrides_a_prefixes_decoding(
    client: httpx.Client,
) -> None:
    body = {"model": "form", "prompt": "cat"}
    replies = [client.post("/v1/completions", json=body) for _ in range(2)]
    assert replies[0].json()["usage"]["completion_tokens"] == 5
    assert text_of(replies[0]) == text_of(replies[1])
    asked = {"max_tokens": 7, "min_tokens": 7, "temperature": 1.0}
    said = [client.post("/v1/completions", json={**body, **asked, "seed": seed}) for seed in (1, 2)]
    assert said[0].json()["usage"]["completion_tokens"] == 7
    assert text_of(said[0]) != text_of(said[1])


def test_the_first_of_several_prefixes_decides_the_defaults(client: httpx.Client) -> None:
    for model in ("form+tone", "tone+form"):
        body = client.post("/v1/completions", json={"model": model, "prompt": "cat"}).json()
        assert body["usage"]["completion_tokens"] == 5


def test_truncate_is_refused_without_an_encoder(client: httpx.Client) -> None:
    refused = complete(client, truncate=True)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "truncate")
    assert text_of(complete(client, truncate=False)) == text_of(complete(client))


def test_fields_that_mean_nothing_here_are_ignored(client: httpx.Client) -> None:
    extras = {"service_tier": "auto", "cache_salt": "x", "metadata": {"er": [1, None]}}
    extras["stream_options"] = {"include_usage": False, "include_obfuscation": False}
    assert text_of(complete(client, **extras)) == text_of(complete(client))


def test_null_means_not_given(client: httpx.Client) -> None:
    names = ("stop", "n", "best_of", "logprobs", "echo", "logit_bias", "stream", "suffix", "user")
    assert text_of(complete(client, **dict.fromkeys(names))) == text_of(complete(client))


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"n": 64}, 200),
        ({"n": 65}, 400),
        ({"n": 128}, 400),
        ({"n": 129}, 400),
        ({"n": 10**30}, 400),
        ({"n": 0}, 400),
        ({"best_of": 65}, 400),
        ({"prompt": ["a"] * 65}, 400),
        ({"prompt": ["a"] * 5000}, 400),
    ],
    ids=lambda value: str(value)[:24],
)
def test_rows_of_one_request_are_bounded(
    fields: dict[str, object], status: int, client: httpx.Client
) -> None:
    assert complete(client, **{"max_tokens": 1, **fields}).status_code == status


# Deadlines


def test_a_request_that_takes_longer_than_its_timeout_ends_with_504(
    client: httpx.Client, server: RunningServer
) -> None:
    with slowed(server.services, 0.02):
        reply = complete(client, max_tokens=100, logit_bias=NO_END, timeout=0.2)
    assert reply.status_code == 504
    error = error_of(reply)
    assert (error["code"], error["type"]) == ("deadline_exceeded", "server_error")


def test_a_stream_that_takes_longer_ends_with_an_error_event(
    client: httpx.Client, server: RunningServer
) -> None:
    with slowed(server.services, 0.02):
        reply = complete(client, max_tokens=100, logit_bias=NO_END, timeout=1, stream=True)
    assert reply.status_code == 200
    *chunks, last = events_of(reply.text)
    assert len(chunks) > 1
    assert last["error"]["code"] == "deadline_exceeded"


def test_a_stream_that_fails_before_its_first_token_is_a_plain_error(client: httpx.Client) -> None:
    reply = complete(client, timeout=0.000001, stream=True)
    assert (reply.status_code, error_of(reply)["code"]) == (504, "deadline_exceeded")


def test_the_deadline_of_one_request_does_not_affect_another(
    client: httpx.Client, server: RunningServer
) -> None:
    expected = text_of(complete(client, PROMPT, model="tone", max_tokens=30))
    with (
        slowed(server.services, 0.01),
        httpx.stream(
            "POST",
            f"{server.url}/v1/completions",
            json={
                "model": "voice",
                "prompt": "x",
                "max_tokens": 100,
                "timeout": 0.1,
                "stream": True,
            },
        ) as short,
    ):
        assert text_of(complete(client, PROMPT, model="tone", max_tokens=30)) == expected
        assert "deadline_exceeded" in short.read().decode()


# Bodies


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"model": "tiny-gpt2", "prompt": NaN}',
        b'{"model": "tiny-gpt2", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny-gpt2", "prompt": "a", "top_p": Infinity}',
        b'{"model": "tiny-gpt2", "prompt": "a", "min_p": -Infinity}',
        b'{"model": "tiny-gpt2", "prompt": "a", "timeout": 1e999}',
        b'{"model": "tiny-gpt2", "prompt": "a", "logit_bias": {"5": NaN}}',
        b'{"model": "tiny-gpt2", "prompt": "a", "logit_bias": {"\\ud800": "x"}}',
        b'{"model": "tiny-gpt2", "prompt": "a", "n": 1.5}',
        b'{"model": "tiny-gpt2", "prompt": "a", "echo": "yes"}',
        b'{"model": "tiny-gpt2", "prompt": "\\ud800"}',
        b'{"model": "tiny-gpt2", "prompt": [1, "a"]}',
        b'{"model": "tiny-gpt2", "prompt": [-1]}',
        b'{"model": "tiny-gpt2", "prompt": [true]}',
        b'{"model": "tiny-gpt2", "prompt": [[1], []]}',
        b'\xff\xfe{"model": "tiny-gpt2"}',
        b'{"model": "tiny-gpt2", "prompt": "\xff\xfe"}',
    ],
    ids=lambda content: content.decode("latin-1")[-28:] or "empty",
)
def test_a_body_that_is_no_request_is_refused_in_words(
    content: bytes, client: httpx.Client
) -> None:
    reply = post(client, content)
    assert reply.status_code in (400, 422)
    error = error_of(reply)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    "content",
    [b"[" * 60_000, b'{"a":' * 10_000, b'{"model": "tiny-gpt2", "prompt": ' + b"9" * 60_000 + b"}"],
    ids=["a deep list", "deep objects", "a number of 60,000 digits"],
)
def test_bodies_made_to_hurt_the_parser_are_refused(content: bytes, client: httpx.Client) -> None:
    reply = post(client, content)
    assert reply.status_code in (400, 422)
    assert "nested too deeply" in error_of(reply)["message"]
    assert complete(client).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"stop": 5}, "stop"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logit_bias": {"17": 1000}}, "logit_bias.17"),
        ({"prefixes": ["tone", 5]}, "prefixes.1"),
    ],
    ids=str,
)
def test_an_error_names_the_field(
    fields: dict[str, object], param: str, client: httpx.Client
) -> None:
    reply = complete(client, **fields)
    error = error_of(reply)
    assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert error["message"].startswith(f"{param}: ")


def test_a_body_that_is_not_json_is_refused_by_name(client: httpx.Client) -> None:
    error = error_of(post(client, b'{"model": tiny}'))
    assert error["message"].startswith("the body is not JSON: ")
    assert error["param"] is None


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", None],
)
def test_a_body_that_is_not_declared_as_json_is_refused(
    media_type: str | None, client: httpx.Client
) -> None:
    content = json.dumps({"model": BASE, "prompt": "a"}).encode()
    reply = post(client, content, media_type)
    assert (reply.status_code, error_of(reply)["code"]) == (415, "unsupported_media_type")
    assert post(client, content, "Application/JSON; charset=utf-8").status_code == 200


# Size


@pytest.fixture(scope="module")
def limit(server: RunningServer) -> int:
    return server.services.limits.max_body_bytes


def test_a_body_at_the_limit_is_taken(client: httpx.Client, limit: int) -> None:
    head, tail = b'{"model": "tiny-gpt2", "max_tokens": 1, "prompt": "a", "metadata": "', b'"}'
    content = head + b"x" * (limit - len(head) - len(tail)) + tail
    assert post(client, content).status_code == 200
    assert post(client, content + b" ").status_code == 413


def test_a_body_without_a_declared_length_is_counted_as_it_comes(
    client: httpx.Client, limit: int
) -> None:
    pieces = (b"x" * 8192 for _ in range(2 * limit // 8192))
    headers = {"content-type": "application/json"}
    reply = client.post("/v1/completions", content=pieces, headers=headers)
    assert (reply.status_code, error_of(reply)["code"]) == (413, "file_too_large")


def test_a_body_without_an_end_is_answered_and_cut(server: RunningServer, limit: int) -> None:
    url = httpx.URL(server.url)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    piece = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(head + piece * (limit // 0x2000 + 1))
        head = connection.recv(4096)
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in head
        with pytest.raises(ConnectionError):
            connection.sendall(piece * 10_000)


def test_a_chunked_body_below_the_limit_is_taken(client: httpx.Client) -> None:
    pieces = (b'{"model": "tiny-gpt2", ', b'"prompt": "the", "max_tokens": 1}')
    reply = client.post(
        "/v1/completions", content=iter(pieces), headers={"content-type": "application/json"}
    )
    assert reply.status_code == 200


# A full server


@pytest.fixture
def narrow_server(tiny_gpt2: FrozenModel, tmp_path: Path) -> Iterator[RunningServer]:
    """One row at a time, and nobody may wait."""
    with serving(tiny_gpt2, tmp_path, max_rows=1, max_waiting=0) as running:
        yield running


def test_a_full_server_says_when_to_come_again(narrow_server: RunningServer) -> None:
    with narrow_server.client() as client, ThreadPoolExecutor() as pool:
        with held(narrow_server.services):
            first = pool.submit(complete, client)
            until(lambda: narrow_server.services.engine.admission.num_open == 1)
            refused = complete(client)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert first.result().status_code == 200
