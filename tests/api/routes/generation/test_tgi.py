"""`/generate`, `/generate_stream` and `/`: what clients of TGI and LoRAX send and expect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient, constants

from app.api.generation.generation import Timings
from app.api.generation.tgi_format import GenerateReply
from app.api.schemas.generation import GenerateBody
from app.engine.request import (
    Event,
    FinishReason,
    GenerationRequest,
    RowFinished,
    SamplingParams,
    TextDelta,
)
from app.prefix.prefix import Prefix
from tests.api.helpers import (
    BASE,
    END,
    Json,
    complete,
    events_of,
    plain_text,
    slowed,
    text_of,
)
from tests.server import RunningServer
from tests.tiny import CONTEXT

PROMPT = "the quick brown fox"


def generate(client: httpx.Client, inputs: str = PROMPT, **parameters: object) -> httpx.Response:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 8, **parameters}}
    return client.post("/generate", json=body)


def stream(client: httpx.Client, inputs: str = PROMPT, **parameters: object) -> list[Any]:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 8, **parameters}}
    reply = client.post("/generate_stream", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events_of(reply.text)


def tgi_error(reply: httpx.Response) -> Json:
    body = reply.json()
    assert body.keys() == {"error", "error_type"}
    return body


# Whole replies


def test_a_reply_is_the_text_alone_unless_details_are_asked_for(client: httpx.Client) -> None:
    assert generate(client).json().keys() == {"generated_text"}


@pytest.mark.parametrize("names", [(), ("tone",), ("tone", "voice")], ids="+".join)
def test_greedy_text_equals_plain_transformers(
    names: tuple[str, ...],
    client: httpx.Client,
    prefixes: dict[str, Prefix],
    tiny_gpt2_folder: Path,
) -> None:
    expected = plain_text(tiny_gpt2_folder, [prefixes[name] for name in names], PROMPT, 8)
    adapter = {"adapter_id": "+".join(names)} if names else {}
    assert generate(client, **adapter).json() == {"generated_text": expected}


def test_the_adapter_may_be_a_list_of_prefixes_or_the_base_model(client: httpx.Client) -> None:
    composed = generate(client, adapter_id="tone+voice")
    assert generate(client, prefixes=["tone", "voice"]).json() == composed.json()
    assert generate(client, adapter_id=BASE).json() == generate(client).json()


def test_a_reply_says_what_served_it(client: httpx.Client, prefixes: dict[str, Prefix]) -> None:
    headers = generate(client, adapter_id="tone").headers
    assert headers["x-prefix-version"] == prefixes["tone"].digest
    assert headers["x-prefix-tier"] in ("device", "host", "store")
    for name in ("x-queue-time", "x-time-to-first-token", "x-total-time", "x-request-id"):
        assert headers[name]


def test_details_have_tgis_fields(client: httpx.Client) -> None:
    details = generate(client, details=True, min_tokens=8, seed=5).json()["details"]
    assert details["finish_reason"] == "length"
    assert (details["generated_tokens"], details["seed"]) == (8, 5)
    assert details["prompt_tokens"] == details["input_length"] > 0
    assert details["prefill"] == []
    assert len(details["tokens"]) == 8
    for token in details["tokens"]:
        assert token.keys() == {"id", "text", "logprob", "special"}
        assert token["logprob"] <= 0


def test_the_prompts_tokens_are_detailed_on_request(client: httpx.Client) -> None:
    details = generate(client, decoder_input_details=True).json()["details"]
    first, *rest = details["prefill"]
    assert first["logprob"] is None
    assert all(token["logprob"] <= 0 for token in rest)
    assert "".join(token["text"] for token in details["prefill"]) == PROMPT


def test_top_n_tokens_lists_the_alternatives_best_first(client: httpx.Client) -> None:
    details = generate(client, details=True, top_n_tokens=3).json()["details"]
    assert len(details["top_tokens"]) == details["generated_tokens"]
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert top[0] == token
        assert len(top) == 3
        assert top == sorted(top, key=lambda other: -other["logprob"])


def test_the_full_text_begins_with_the_inputs(client: httpx.Client) -> None:
    text = generate(client).json()["generated_text"]
    assert generate(client, return_full_text=True).json()["generated_text"] == PROMPT + text


def test_best_of_returns_the_most_probable_and_details_the_others(client: httpx.Client) -> None:
    body = generate(client, best_of=4, do_sample=True, seed=3, details=True, min_tokens=8).json()
    best, others = body["details"], body["details"]["best_of_sequences"]
    assert len(others) == 3
    means = [sum(token["logprob"] for token in it["tokens"]) / 8 for it in (best, *others)]
    assert means == sorted(means, reverse=True)
    assert len({body["generated_text"], *(other["generated_text"] for other in others)}) > 1


def test_a_seed_makes_a_sample_reproducible(client: httpx.Client) -> None:
    texts = [generate(client, do_sample=True, seed=seed).json() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_without_sampling_the_text_is_greedy(client: httpx.Client) -> None:
    assert generate(client, do_sample=False).json()["generated_text"] == text_of(
        complete(client, PROMPT)
    )


def test_a_stop_string_ends_the_text_before_it(client: httpx.Client) -> None:
    free = generate(client, max_new_tokens=20).json()["generated_text"]
    stop = free[4:6]
    body = generate(client, max_new_tokens=20, stop=[stop], details=True).json()
    assert body["generated_text"] == free[: free.index(stop)]
    assert body["details"]["finish_reason"] == "stop_sequence"


@pytest.fixture(scope="module")
def ending(client: httpx.Client) -> dict[str, object]:
    """Parameters under which the text ends by itself before its limit."""
    for seed in range(50):
        asked = {"do_sample": True, "temperature": 1.9, "seed": seed, "max_new_tokens": 100}
        details = generate(client, details=True, **asked).json()["details"]
        if details["finish_reason"] != "length":
            return asked
    raise AssertionError("the tiny model never ends")


def test_the_end_of_text_token_is_special_and_no_text(
    client: httpx.Client, ending: dict[str, object]
) -> None:
    body = generate(client, details=True, **ending).json()
    assert body["details"]["finish_reason"] == "eos_token"
    *_, last = body["details"]["tokens"]
    assert (last["id"], last["text"], last["special"]) == (END, "<|endoftext|>", True)
    assert "<|endoftext|>" not in body["generated_text"]


def test_a_template_and_defaults_of_a_prefix_count_here_too(
    client: httpx.Client, server: RunningServer
) -> None:
    body = {"inputs": "cat", "parameters": {"adapter_id": "form", "details": True}}
    details = client.post("/generate", json=body).json()["details"]
    assert details["generated_tokens"] == 5
    assert details["prompt_tokens"] == len(server.services.model.text.encode(" cat ")) + 1


def test_a_body_as_loraxs_client_sends_it_is_understood(client: httpx.Client) -> None:
    parameters = {
        "adapter_id": "tone",
        "adapter_source": None,
        "merged_adapters": None,
        "api_token": None,
        "best_of": None,
        "decoder_input_details": False,
        "details": True,
        "do_sample": False,
        "ignore_eos_token": False,
        "max_new_tokens": 8,
        "repetition_penalty": None,
        "response_format": None,
        "return_full_text": False,
        "return_k_alternatives": None,
        "seed": None,
        "stop": [],
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "truncate": None,
        "typical_p": None,
        "watermark": False,
    }
    reply = client.post("/generate", json={"inputs": PROMPT, "parameters": parameters})
    expected = generate(client, adapter_id="tone").json()["generated_text"]
    assert reply.json()["generated_text"] == expected


def test_truncate_leaves_the_end_of_the_prompt(client: httpx.Client, server: RunningServer) -> None:
    ids = server.services.model.text.encode(PROMPT)
    cut = generate(client, truncate=3, details=True).json()
    assert cut["details"]["prompt_tokens"] == 3
    assert cut["generated_text"] == text_of(complete(client, ids[-3:]))
    assert generate(client, truncate=len(ids)).json() == generate(client).json()


def test_truncate_makes_any_text_fit(client: httpx.Client) -> None:
    text = "the cat sat " * 2000
    assert generate(client, text).status_code == 400
    details = generate(client, text, truncate=20, details=True).json()["details"]
    assert details["prompt_tokens"] == 20


# Streams


def test_a_stream_has_an_event_per_token_and_no_done(client: httpx.Client) -> None:
    events = stream(client, min_tokens=8)
    *others, last = events
    assert [event["index"] for event in events] == list(range(1, 9))
    for event in others:
        assert (event["generated_text"], event["details"]) == (None, None)
        assert event["token"].keys() == {"id", "text", "logprob", "special"}
    assert last["details"]["finish_reason"] == "length"
    assert last["details"]["generated_tokens"] == 8
    times = last["details"]["timings"]
    assert times["queue_time"] < times["time_to_first_token"] < times["total_time"]


@pytest.mark.parametrize("prompt", [PROMPT, "cat", "x", "über", "…"])
def test_the_tokens_texts_join_to_the_whole_text(prompt: str, client: httpx.Client) -> None:
    fields = {"max_new_tokens": 40, "adapter_id": "tone"}
    whole = generate(client, prompt, **fields).json()["generated_text"]
    events = stream(client, prompt, **fields)
    texts = [event["token"]["text"] for event in events if not event["token"]["special"]]
    assert "".join(texts) == whole == events[-1]["generated_text"]


def test_a_streamed_stop_string_is_never_shown(client: httpx.Client) -> None:
    free = generate(client, max_new_tokens=20).json()["generated_text"]
    stop = free[4:6]
    events = stream(client, max_new_tokens=20, stop=[stop])
    cut = free[: free.index(stop)]
    assert "".join(event["token"]["text"] for event in events) == cut
    assert events[-1]["generated_text"] == cut
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"


def test_a_stream_that_ends_by_itself_loses_no_text(
    client: httpx.Client, ending: dict[str, object]
) -> None:
    whole = generate(client, **ending).json()["generated_text"]
    events = stream(client, **ending)
    texts = [event["token"]["text"] for event in events if not event["token"]["special"]]
    assert "".join(texts) == whole == events[-1]["generated_text"]
    assert events[-1]["token"]["id"] == END
    assert events[-1]["details"]["finish_reason"] == "eos_token"


def test_a_result_without_tokens_ends_a_stream_too(server: RunningServer) -> None:
    """Bans may leave a search nothing."""

    async def events() -> AsyncIterator[list[tuple[int, Event]]]:
        end = RowFinished(0, FinishReason.LENGTH, 0, None, score=-1e9)
        yield [(0, TextDelta(0, "", ())), (0, end)]

    async def parts() -> bytes:
        request = GenerationRequest("1", "demo", (5,), SamplingParams(max_tokens=1))
        made = SimpleNamespace(requests=[request], timings=Timings(), events=events)
        reply = GenerateReply(GenerateBody(inputs=PROMPT), made, server.services.model.text)
        return b"".join([part async for part in reply.parts()])

    [event] = events_of(asyncio.run(parts()).decode())
    assert (event["token"]["text"], event["generated_text"]) == ("", "")
    assert (event["details"]["generated_tokens"], event["details"]["beam_score"]) == (0, -1e9)


def test_streamed_top_tokens_are_those_of_the_whole_reply(client: httpx.Client) -> None:
    whole = generate(client, details=True, top_n_tokens=2).json()["details"]
    events = stream(client, top_n_tokens=2)
    assert [event["top_tokens"] for event in events] == whole["top_tokens"]


def test_a_stream_says_what_serves_it(client: httpx.Client, prefixes: dict[str, Prefix]) -> None:
    body = {"inputs": PROMPT, "parameters": {"adapter_id": "tone", "max_new_tokens": 1}}
    reply = client.post("/generate_stream", json=body)
    assert reply.headers["x-prefix-version"] == prefixes["tone"].digest
    assert reply.headers["x-prefix-tier"] == "device"


def test_an_error_in_a_stream_is_an_event(client: httpx.Client, server: RunningServer) -> None:
    with slowed(server.services, 0.02):
        *tokens, last = stream(client, max_new_tokens=100, min_tokens=100, timeout=1)
    assert len(tokens) > 1
    assert last == {"error": "the request's deadline has passed", "error_type": "generation"}


# POST /


def test_the_root_answers_with_a_list(client: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    assert client.post("/", json=body).json() == [generate(client).json()]


def test_the_root_streams_on_request(client: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}, "stream": True}
    events = events_of(client.post("/", json=body).text)
    assert events[-1]["generated_text"] == generate(client).json()["generated_text"]


def test_hugging_faces_own_client_is_served(
    client: httpx.Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it talks to our server alone
    expected = generate(client, max_new_tokens=8).json()["generated_text"]
    hub = InferenceClient(base_url=server.url)
    assert hub.text_generation(PROMPT, max_new_tokens=8) == expected
    assert "".join(hub.text_generation(PROMPT, max_new_tokens=8, stream=True)) == expected
    *_, last = hub.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True)
    assert last.generated_text == expected
    detailed = hub.text_generation(PROMPT, max_new_tokens=8, details=True, adapter_id="tone")
    assert detailed.details.generated_tokens == len(detailed.details.tokens)


# Errors


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"adapter_id": "nobody"}, 404),
        ({"adapter_id": "No Such!"}, 404),
        ({"max_new_tokens": 1000}, 400),
        ({"max_new_tokens": 0}, 422),
        ({"temperature": "hot"}, 422),
        ({"num_beams": 4, "do_sample": True}, 400),
        ({"truncate": CONTEXT + 1}, 400),
        ({"timeout": 0.000001}, 504),
    ],
    ids=str,
)
def test_errors_have_tgis_shape_on_every_route(
    parameters: dict[str, object], status: int, client: httpx.Client
) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8, **parameters}}
    for route in ("/generate", "/generate_stream", "/"):
        reply = client.post(route, json=body)
        assert reply.status_code == status
        assert tgi_error(reply)["error_type"] == ("generation" if status == 504 else "validation")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grammar", {"type": "json", "value": {}}),
        ("response_format", {"type": "json_object"}),
        ("typical_p", 0.5),
        ("watermark", True),
        ("merged_adapters", {"ids": ["tone", "voice"], "weights": [1, 1]}),
        ("ignore_eos_token", True),
        ("return_k_alternatives", 2),
    ],
)
def test_unsupported_parameters_that_change_the_answer_are_refused(
    name: str, value: object, client: httpx.Client
) -> None:
    reply = generate(client, **{name: value})
    assert (reply.status_code, tgi_error(reply)["error"]) == (400, f"{name} is not supported")


def test_best_of_cannot_be_streamed(client: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"best_of": 2}}
    assert tgi_error(client.post("/generate_stream", json=body))["error_type"] == "validation"


@pytest.mark.parametrize("body", [{}, {"inputs": 5}, {"inputs": ["a"]}, []], ids=str)
def test_a_body_without_inputs_is_refused(body: object, client: httpx.Client) -> None:
    reply = client.post("/generate", json=body)
    assert reply.status_code == 422
    tgi_error(reply)


def test_fields_that_mean_nothing_here_are_ignored(client: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8, "api_token": "x"}, "options": {}}
    assert client.post("/generate", json=body).json() == generate(client).json()


def test_a_wrong_method_has_tgis_shape_too(client: httpx.Client) -> None:
    reply = client.get("/generate")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    tgi_error(reply)
