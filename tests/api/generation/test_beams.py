"""Beam search over HTTP: its results, its options and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch

from app.model.frozen import FrozenModel
from tests.api.helpers import (
    BASE,
    END,
    Json,
    complete,
    error_of,
    events_of,
    text_of,
    with_metadata,
)
from tests.equivalence.beam_results import Result, assert_same_results, found_by
from tests.equivalence.reference import plain_model
from tests.server import RunningServer
from tests.tiny import random_prefix

PROMPT = "the quick brown fox"
DECODING = {
    "num_beams": 3,
    "length_penalty": -1.0,
    "early_stopping": "never",
    "no_repeat_ngram_size": 2,
    "min_tokens": 2,
    "max_tokens": 9,
}


@pytest.fixture(scope="module", autouse=True)
def searcher(server: RunningServer, tiny_gpt2: FrozenModel) -> Iterator[None]:
    """A prefix whose defaults ask for beams, and draw if there are none."""
    prefix = with_metadata(
        random_prefix(tiny_gpt2, 4, seed=70), decoding={**DECODING, "temperature": 0.9}
    )
    assert server.push("searcher", prefix).status_code == 201
    yield
    httpx.delete(f"{server.url}/v1/prefixes/searcher")


@pytest.fixture(scope="module")
def official(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def search(client: httpx.Client, prompt: object = PROMPT, **fields: object) -> httpx.Response:
    """Four beams; no temperature is named."""
    body = {"model": BASE, "prompt": prompt, "max_tokens": 10, "num_beams": 4, **fields}
    return client.post("/v1/completions", json=body)


def choices_of(reply: httpx.Response) -> list[Json]:
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"]


def generate(client: httpx.Client, **parameters: object) -> Json:
    """`POST /generate` with four beams."""
    asked = {"max_new_tokens": 10, "num_beams": 4, "details": True, **parameters}
    reply = client.post("/generate", json={"inputs": PROMPT, "parameters": asked})
    assert reply.status_code == 200, reply.text
    return reply.json()


def result_of(details: Json) -> Result:
    return Result(tuple(token["id"] for token in details["tokens"]), details["beam_score"])


# What is found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 2.0, "early_stopping": True},
        {"length_penalty": -1.5, "early_stopping": "never"},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"num_beams": 2, "min_tokens": 6},
    ],
    ids=str,
)
def test_results_and_scores_equal_plain_transformers(
    options: dict[str, object], client: httpx.Client, tiny_gpt2_folder: Path, server: RunningServer
) -> None:
    body = generate(client, best_of=2, **options)
    [other] = body["details"]["best_of_sequences"]
    ids = server.services.model.text.encode(PROMPT)
    asked = {"num_beams": 4, **options}
    asked["min_new_tokens"] = asked.pop("min_tokens", 0) or None

    def by_transformers(**extras: object) -> list[Result]:
        output = plain_model(tiny_gpt2_folder).generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            num_return_sequences=2,
            max_new_tokens=10,
            pad_token_id=END,
            output_scores=True,
            return_dict_in_generate=True,
            **asked,
            **extras,
        )
        return found_by(output, len(ids))

    assert_same_results([result_of(body["details"]), result_of(other)], by_transformers)
    texts = [choice["text"] for choice in choices_of(search(client, n=2, **options))]
    assert texts == [body["generated_text"], other["generated_text"]]


def test_no_ngram_is_repeated_without_beams_either(
    client: httpx.Client, tiny_gpt2_folder: Path, server: RunningServer
) -> None:
    text = server.services.model.text
    ids = text.encode(PROMPT)
    output = plain_model(tiny_gpt2_folder).generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=30,
        no_repeat_ngram_size=1,
        pad_token_id=END,
    )
    expected = text.decode(output[0, len(ids) :].tolist())
    fields = {"max_tokens": 30, "no_repeat_ngram_size": 1}
    assert text_of(complete(client, PROMPT, **fields)) == expected
    assert text_of(complete(client, PROMPT, max_tokens=30)) != expected


def test_openais_client_sees_scores_best_first(official: openai.OpenAI) -> None:
    asked = {"num_beams": 4, "length_penalty": 0.5}
    reply = official.completions.create(
        model="tone", prompt=PROMPT, max_tokens=10, n=3, extra_body=asked
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    scores = [(choice.model_extra or {})["beam_score"] for choice in reply.choices]
    assert scores == sorted(scores, reverse=True)
    assert len({choice.text for choice in reply.choices}) == 3
    plain = official.completions.create(model="tone", prompt=PROMPT, max_tokens=10)
    assert "beam_score" not in (plain.choices[0].model_extra or {})


def test_logprobs_zero_gives_those_of_the_chosen_tokens(client: httpx.Client) -> None:
    reply = search(client, n=2, logprobs=0, length_penalty=1.0)
    for choice in choices_of(reply):
        values = choice["logprobs"]["token_logprobs"]
        assert sum(values) / len(values) == pytest.approx(choice["beam_score"], abs=1e-5)
        assert choice["logprobs"]["top_logprobs"] is None
    counted = sum(len(choice["logprobs"]["tokens"]) for choice in choices_of(reply))
    assert reply.json()["usage"]["completion_tokens"] == counted


def test_the_prompt_is_echoed_and_scored(client: httpx.Client) -> None:
    [plain] = choices_of(search(client))
    [choice] = choices_of(search(client, echo=True))
    assert choice["text"] == PROMPT + plain["text"]
    [scored] = choices_of(search(client, echo=True, logprobs=0))
    alone = complete(client, PROMPT, echo=True, logprobs=0, max_tokens=0).json()["choices"][0]
    count = len(alone["logprobs"]["tokens"])
    assert scored["logprobs"]["tokens"][:count] == alone["logprobs"]["tokens"]
    expected = alone["logprobs"]["token_logprobs"][1:]
    assert scored["logprobs"]["token_logprobs"][1:count] == pytest.approx(expected, abs=1e-4)


def test_a_stop_string_ends_a_result(client: httpx.Client) -> None:
    [free] = choices_of(search(client))
    stop = free["text"][4:6]
    [cut] = choices_of(search(client, stop=stop))
    assert cut["text"] == free["text"][: free["text"].index(stop)]
    assert cut["finish_reason"] == "stop"


def test_beams_and_others_do_not_disturb_each_other(client: httpx.Client) -> None:
    asked = [
        {"model": model, "num_beams": beams, "no_repeat_ngram_size": size, "temperature": 0}
        for model in (BASE, "tone", "voice", "tone+voice")
        for beams, size in ((1, 0), (4, 0), (3, 2), (1, 2))
    ]
    alone = [choices_of(search(client, **fields)) for fields in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = pool.map(lambda fields: choices_of(search(client, **fields)), asked)
        for expected, found in zip(alone, together, strict=True):
            assert [choice["text"] for choice in found] == [item["text"] for item in expected]


# Streams


def test_a_stream_gives_each_result_whole_and_then_its_end(official: openai.OpenAI) -> None:
    asked = {"model": "tone", "prompt": PROMPT, "max_tokens": 10, "n": 2}
    extra = {"num_beams": 4}
    whole = official.completions.create(**asked, extra_body=extra)
    options = {"include_usage": True}
    *chunks, last = official.completions.create(
        **asked, extra_body=extra, stream=True, stream_options=options
    )
    parts = [chunk.choices[0] for chunk in chunks]
    assert [part.index for part in parts] == [0, 0, 1, 1]
    assert [part.text for part in parts[::2]] == [choice.text for choice in whole.choices]
    assert [part.finish_reason for part in parts[::2]] == [None, None]
    for end, choice in zip(parts[1::2], whole.choices, strict=True):
        assert (end.text, end.finish_reason) == ("", choice.finish_reason)
        assert (end.model_extra or {})["beam_score"] == (choice.model_extra or {})["beam_score"]
    assert last.usage == whole.usage


def test_tgis_stream_ends_with_the_best_result(client: httpx.Client) -> None:
    whole = generate(client)
    asked = {"max_new_tokens": 10, "num_beams": 4}
    reply = client.post("/generate_stream", json={"inputs": PROMPT, "parameters": asked})
    events = events_of(reply.text)
    texts = [event["token"]["text"] for event in events if not event["token"]["special"]]
    assert "".join(texts) == events[-1]["generated_text"] == whole["generated_text"]
    details = events[-1]["details"]
    assert details["beam_score"] == whole["details"]["beam_score"]
    assert details["generated_tokens"] == len(events) == whole["details"]["generated_tokens"]


# What may be asked


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 5}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"temperature": 0.7}, "temperature"),
        ({"temperature": 1}, "temperature"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"logprobs": 1}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a", "b"], "num_beams": 33}, "num_beams"),
        ({"model": "searcher", "temperature": 0.7}, "temperature"),
        ({"model": "searcher", "num_beams": None, "n": 4}, "n"),
        ({"model": "searcher", "num_beams": None, "logprobs": 2}, "logprobs"),
    ],
    ids=str,
)
def test_options_that_beams_cannot_serve_are_refused(
    fields: dict[str, object], param: str, client: httpx.Client
) -> None:
    for stream in (False, True):
        if stream and "best_of" in fields:
            continue
        reply = search(client, stream=stream, **fields)
        error = error_of(reply)
        assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
        assert param in error["message"] or param == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 65}, "num_beams"),
        ({"num_beams": 2.5}, "num_beams"),
        ({"length_penalty": 11}, "length_penalty"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"truncate": 5}, "truncate"),
    ],
    ids=str,
)
def test_a_value_out_of_its_bounds_is_named(
    fields: dict[str, object], param: str, client: httpx.Client
) -> None:
    reply = search(client, **fields)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


@pytest.mark.parametrize(
    "parameters",
    [
        {"best_of": 5},
        {"top_n_tokens": 2},
        {"do_sample": True},
        {"temperature": 0.5},
        {"top_k": 3},
    ],
    ids=str,
)
def test_tgis_words_are_refused_likewise(
    parameters: dict[str, object], client: httpx.Client
) -> None:
    asked = {"num_beams": 4, **parameters}
    reply = client.post("/generate", json={"inputs": PROMPT, "parameters": asked})
    assert (reply.status_code, reply.json()["error_type"]) == (400, "validation")
    assert next(iter(parameters)) in reply.json()["error"]


def test_options_that_do_not_sample_are_taken_with_beams(client: httpx.Client) -> None:
    plain = choices_of(search(client, n=2))
    for fields in (
        {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "seed": 7},
        {"temperature": None, "top_p": None, "seed": None, "logprobs": None},
        {"best_of": 2},
        {"early_stopping": False, "length_penalty": 1},
    ):
        assert choices_of(search(client, n=2, **fields)) == plain


def test_one_beam_is_no_beam_search(client: httpx.Client) -> None:
    fields = {"num_beams": 1, "no_repeat_ngram_size": 0}
    assert text_of(complete(client, **fields)) == text_of(complete(client))


def test_beam_options_are_ignored_without_beams(client: httpx.Client) -> None:
    fields = {"length_penalty": 2.0, "early_stopping": True}
    [choice] = complete(client, **fields).json()["choices"]
    assert "beam_score" not in choice
    assert choice["text"] == text_of(complete(client))


# What a prefix asks


def test_a_prefixes_defaults_are_those_of_the_search(client: httpx.Client) -> None:
    said = {name: value for name, value in DECODING.items() if name != "max_tokens"}
    body = {"model": "searcher", "prompt": PROMPT}
    [default] = choices_of(client.post("/v1/completions", json=body))
    [asked] = choices_of(search(client, model="searcher", max_tokens=9, **said))
    assert default == asked
    [other] = choices_of(client.post("/v1/completions", json={**body, "length_penalty": 3.0}))
    assert other["beam_score"] != default["beam_score"]
    for fields in ({"num_beams": 2}, {"temperature": 0}, {"top_p": 1, "seed": 3}):
        [still] = choices_of(client.post("/v1/completions", json={**body, **fields}))
        assert "beam_score" in still


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0.7}, {"top_p": 0.5}, {"top_k": 4}, {"num_beams": 1}, {"max_tokens": 0}],
    ids=str,
)
def test_a_request_that_samples_has_no_beams(
    fields: dict[str, object], client: httpx.Client
) -> None:
    body = {"model": "searcher", "prompt": PROMPT, "echo": True, **fields}
    [choice] = choices_of(client.post("/v1/completions", json=body))
    assert "beam_score" not in choice


def test_tgis_do_sample_turns_a_prefixes_beams_off(client: httpx.Client) -> None:
    for fields, searches in (
        ({}, True),
        ({"do_sample": False}, True),
        ({"do_sample": True}, False),
    ):
        details = generate(client, adapter_id="searcher", num_beams=None, **fields)["details"]
        assert ("beam_score" in details) is searches


@pytest.mark.parametrize("value", ["sometimes", 1, None, []], ids=str)
def test_a_prefix_with_an_unknown_early_stopping_is_refused(
    value: object, server: RunningServer, tiny_gpt2: FrozenModel
) -> None:
    prefix = with_metadata(random_prefix(tiny_gpt2, 2), decoding={"early_stopping": value})
    reply = server.push("wrong", prefix)
    assert (reply.status_code, error_of(reply)["code"]) == (422, "invalid_prefix")
    assert "early_stopping" in error_of(reply)["message"]
