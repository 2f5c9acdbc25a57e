"""A model with an encoder over HTTP: the prompt is what the encoder reads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from tests.api.helpers import Json, error_of, events_of, text_of
from tests.equivalence.bart_reference import generate as generate_plainly
from tests.equivalence.bart_reference import plain_bart
from tests.equivalence.beam_results import Result, assert_same_results, found_by
from tests.server import RunningServer
from tests.tiny import CONTEXT

BASE = "tiny-bart"
PROMPT = "the quick brown fox"
START, END = 0, 2
"""The ids of `<s>` and `</s>`."""

NO_END = {str(END): -100}
CHOICES = [(), ("whole",), ("plain",), ("whole", "plain"), ("plain", "whole")]


@pytest.fixture(scope="module")
def client(bart_client: httpx.Client) -> httpx.Client:
    return bart_client


@pytest.fixture(scope="module")
def official(bart_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{bart_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: httpx.Client, prompt: object = PROMPT, **fields: object) -> httpx.Response:
    body = {"model": BASE, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
    return client.post("/v1/completions", json=body)


def generate(client: httpx.Client, inputs: str = PROMPT, **parameters: object) -> httpx.Response:
    asked = {"max_new_tokens": 8, "details": True, **parameters}
    return client.post("/generate", json={"inputs": inputs, "parameters": asked})


def details_of(reply: httpx.Response) -> Json:
    assert reply.status_code == 200, reply.text
    return reply.json()["details"]


def ids_of(details: Json) -> tuple[int, ...]:
    return tuple(token["id"] for token in details["tokens"])


def adapter(names: tuple[str, ...]) -> dict[str, str]:
    return {"adapter_id": "+".join(names)} if names else {}


# The text is what transformers alone would say


@pytest.mark.parametrize("names", CHOICES, ids="+".join)
def test_greedy_text_equals_plain_transformers(
    names: tuple[str, ...],
    client: httpx.Client,
    bart_prefixes: dict[str, Prefix],
    tiny_bart_folder: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bart_folder)
    prefixes = [bart_prefixes[name] for name in names]
    output = generate_plainly(
        plain_bart(tiny_bart_folder), prefixes, tokenizer.encode(PROMPT), max_new_tokens=8
    )
    ids = output.sequences[0, 1:].tolist()
    assert ids_of(details_of(generate(client, **adapter(names)))) == tuple(ids)
    text = text_of(complete(client, model="+".join(names) or BASE))
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("names", CHOICES[:4], ids="+".join)
@pytest.mark.parametrize(
    "options",
    [{}, {"length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2}],
    ids=str,
)
def test_four_beams_equal_plain_transformers(
    names: tuple[str, ...],
    options: dict[str, object],
    client: httpx.Client,
    bart_prefixes: dict[str, Prefix],
    tiny_bart_folder: Path,
    tiny_bart: FrozenModel,
) -> None:
    body = generate(client, num_beams=4, best_of=2, **adapter(names), **options).json()
    both = [body["details"], *body["details"]["best_of_sequences"]]
    found = [Result(ids_of(details), details["beam_score"]) for details in both]

    def by_transformers(**extras: object) -> list[Result]:
        output = generate_plainly(
            plain_bart(tiny_bart_folder),
            [bart_prefixes[name] for name in names],
            tiny_bart.text.encode(PROMPT),
            max_new_tokens=8,
            num_beams=4,
            num_return_sequences=2,
            **options,
            **extras,
        )
        return found_by(output, 1)

    assert_same_results(found, by_transformers)
    reply = complete(client, model="+".join(names) or BASE, num_beams=4, n=2, **options)
    texts = [choice["text"] for choice in reply.json()["choices"]]
    assert texts == [tiny_bart.text.decode(result.token_ids) for result in found]


def test_a_mixed_batch_gives_each_what_it_gets_alone(client: httpx.Client) -> None:
    asked = [
        {"prompt": prompt, "model": model, "num_beams": beams}
        for prompt in (PROMPT, "cat", "the mat " * 12)
        for model in (BASE, "whole", "plain", "whole+plain", "form")
        for beams in (1, 4)
    ]
    alone = [text_of(complete(client, **fields)) for fields in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda fields: text_of(complete(client, **fields)), asked))
    assert together == alone
    assert len(set(alone)) > 10


def test_openais_client_completes_streams_and_searches(official: openai.OpenAI) -> None:
    fields = {"model": "whole", "prompt": PROMPT, "max_tokens": 8}
    whole = official.completions.create(**fields, temperature=0)
    chunks = list(official.completions.create(**fields, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    sampled = official.completions.create(**fields, n=3, seed=5, temperature=1.5)
    assert len({choice.text for choice in sampled.choices}) > 1
    for extra in ({"num_beams": 4}, {"num_beams": 4, "no_repeat_ngram_size": 2}):
        reply = official.completions.create(**fields, n=2, extra_body=extra)
        scores = [(choice.model_extra or {})["beam_score"] for choice in reply.choices]
        assert scores == sorted(scores, reverse=True)


def test_a_prefixes_template_and_beams_are_its_defaults(
    client: httpx.Client, tiny_bart: FrozenModel
) -> None:
    ids = tiny_bart.text.render("<s>say: {input}</s>", "cat")
    assert (ids[0], ids[-1]) == (START, END)
    body = {"model": "form", "prompt": "cat"}
    reply = client.post("/v1/completions", json=body).json()
    [choice] = reply["choices"]
    assert reply["usage"]["prompt_tokens"] == len(ids)
    asked = {"num_beams": 3, "early_stopping": True, "max_tokens": 6}
    [said] = complete(client, ids, model="form", **asked).json()["choices"]
    assert (choice["text"], choice["beam_score"]) == (said["text"], said["beam_score"])
    sampled = client.post("/v1/completions", json={**body, "temperature": 0.7}).json()
    assert "beam_score" not in sampled["choices"][0]


# The source


def test_the_source_is_counted_with_its_special_tokens(client: httpx.Client) -> None:
    count = client.post("/tokenize", json={"inputs": PROMPT}).json()["count"]
    usage = complete(client, logit_bias=NO_END).json()["usage"]
    assert usage == {
        "prompt_tokens": count,
        "completion_tokens": 8,
        "total_tokens": count + 8,
    }


def test_tokenize_shows_what_the_encoder_reads(
    client: httpx.Client, tiny_bart_folder: Path
) -> None:
    for text in (PROMPT, "über </s> <mask>"):
        body = client.post("/tokenize", json={"inputs": text}).json()
        plain = client.post("/detokenize", json={"tokens": body["tokens"]}).json()
        assert (body["tokens"][0], body["tokens"][-1]) == (START, END)
        assert {START, END}.isdisjoint(body["tokens"][1:-1])
        assert (body["pieces"][0]["text"], body["pieces"][-1]["text"]) == ("<s>", "</s>")
        assert plain == {"prompt": text}
    expected = AutoTokenizer.from_pretrained(tiny_bart_folder).encode(PROMPT)
    assert client.post("/tokenize", json={"inputs": PROMPT}).json()["tokens"] == expected


def test_the_source_is_echoed_as_text(client: httpx.Client) -> None:
    made = text_of(complete(client))
    assert text_of(complete(client, echo=True)) == PROMPT + made
    *chunks, end = events_of(complete(client, echo=True, stream=True).text)
    assert end == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == PROMPT + made
    [best] = complete(client, echo=True, best_of=3, temperature=1.0).json()["choices"]
    assert best["text"].startswith(PROMPT)
    assert best["logprobs"] is None


def test_the_source_has_no_logprobs(client: httpx.Client) -> None:
    for stream in (False, True):
        reply = complete(client, echo=True, logprobs=0, stream=stream)
        assert (reply.status_code, error_of(reply)["param"]) == (400, "echo")
    reply = generate(client, decoder_input_details=True)
    assert (reply.status_code, reply.json()["error_type"]) == (400, "validation")
    assert "decoder_input_details" in reply.json()["error"]


def test_new_tokens_have_logprobs(client: httpx.Client) -> None:
    [choice] = complete(client, logprobs=2, logit_bias=NO_END).json()["choices"]
    scores = choice["logprobs"]
    assert len(scores["tokens"]) == 8
    assert scores["text_offset"][0] == 0
    assert all(value <= 0 for value in scores["token_logprobs"])


def test_special_tokens_of_the_output_are_no_text(client: httpx.Client) -> None:
    details = details_of(generate(client, max_new_tokens=3))
    *_, last = details["tokens"]
    assert (last["id"], last["special"], details["finish_reason"]) == (END, True, "length")
    asked = {"max_new_tokens": 3}
    reply = client.post("/generate_stream", json={"inputs": PROMPT, "parameters": asked})
    events = events_of(reply.text)
    shown = "".join(event["token"]["text"] for event in events if not event["token"]["special"])
    assert (
        shown == events[-1]["generated_text"] == generate(client, **asked).json()["generated_text"]
    )


# A source that is too long


LONG = "the cat sat on the mat and " * 40


def test_a_source_that_is_too_long_is_refused_with_both_numbers(client: httpx.Client) -> None:
    count = client.post("/tokenize", json={"inputs": LONG}).json()["count"]
    assert count > CONTEXT
    for fields in ({}, {"truncate": False}, {"num_beams": 2}, {"stream": True}):
        error = error_of(complete(client, LONG, **fields))
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert str(count) in error["message"]
        assert str(CONTEXT) in error["message"]
    assert generate(client, LONG).status_code == 400


def test_it_is_cut_on_request_as_the_tokenizer_would(
    client: httpx.Client, tiny_bart_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bart_folder)
    ids = tokenizer.encode(LONG, truncation=True, max_length=CONTEXT)
    assert (len(ids), ids[-1]) == (CONTEXT, END)
    cut = complete(client, LONG, truncate=True)
    assert cut.json()["usage"]["prompt_tokens"] == CONTEXT
    assert text_of(cut) == text_of(complete(client, ids))
    assert text_of(complete(client, tokenizer.encode(LONG), truncate=True)) == text_of(cut)
    assert text_of(complete(client, truncate=True)) == text_of(complete(client))
    [choice] = complete(client, LONG, truncate=True, echo=True).json()["choices"]
    assert choice["text"].startswith(tokenizer.decode(ids[1:-1]))


def test_tokens_without_an_end_are_cut_to_the_first(client: httpx.Client) -> None:
    ids = list(range(20, 20 + CONTEXT + 5))
    cut = complete(client, ids, truncate=True)
    assert text_of(cut) == text_of(complete(client, ids[:CONTEXT]))


def test_tgis_truncate_leaves_so_many_tokens(client: httpx.Client, tiny_bart: FrozenModel) -> None:
    ids = tiny_bart.text.encode(LONG)
    for count in (1, 2, 10, CONTEXT):
        details = details_of(generate(client, LONG, truncate=count))
        assert details["prompt_tokens"] == count
        body = generate(client, LONG, truncate=count).json()
        assert body["generated_text"] == text_of(complete(client, [*ids[: count - 1], END]))
    assert generate(client, LONG, truncate=CONTEXT + 1).status_code == 400


def test_a_text_that_no_tokens_could_shorten_is_refused_unread(client: httpx.Client) -> None:
    text = "the cat " * 20_000
    error = error_of(complete(client, text))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert f"{len(text)} characters" in error["message"]
    assert str(CONTEXT) in error["message"]
    assert text_of(complete(client, text, truncate=True)) == text_of(
        complete(client, text[:4000], truncate=True)
    )


# What the decoder may make


def test_new_tokens_are_limited_by_the_decoders_positions_alone(
    client: httpx.Client, bart_prefixes: dict[str, Prefix]
) -> None:
    ids = [20] * CONTEXT
    offset = bart_prefixes["plain"].metadata.position_offset
    for model, room in ((BASE, CONTEXT - 1), ("whole", CONTEXT - 1), ("plain", 127 - offset)):
        fields = {"model": model, "logit_bias": NO_END}
        reply = complete(client, ids, max_tokens=room, **fields)
        assert reply.json()["usage"]["completion_tokens"] == room
        error = error_of(complete(client, ids, max_tokens=room + 1, **fields))
        assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
        assert str(CONTEXT) in error["message"]
        assert str(CONTEXT + 1) in error["message"]


def test_the_default_of_new_tokens_does_not_depend_on_the_source(client: httpx.Client) -> None:
    for prompt in ("a", [20] * CONTEXT):
        body = {"model": BASE, "prompt": prompt, "logit_bias": NO_END, "temperature": 0}
        reply = client.post("/v1/completions", json=body)
        assert reply.json()["usage"]["completion_tokens"] == 16


def test_beams_that_have_nowhere_to_go_are_results_all_the_same(client: httpx.Client) -> None:
    """At its limit an output ends with `</s>`: of a length of one there is a single one."""
    fields = {"num_beams": 4, "n": 3, "max_tokens": 1}
    reply = complete(client, **fields)
    choices = reply.json()["choices"]
    assert [choice["text"] for choice in choices] == [""] * 3
    assert choices[0]["beam_score"] > choices[1]["beam_score"] == choices[2]["beam_score"]
    chunks = events_of(complete(client, stream=True, **fields).text)[:-1]
    ends = [chunk["choices"][0] for chunk in chunks]
    assert [end["beam_score"] for end in ends] == [choice["beam_score"] for choice in choices]


def test_scoring_alone_makes_nothing(client: httpx.Client) -> None:
    assert text_of(complete(client, max_tokens=0)) == ""
    assert text_of(complete(client, max_tokens=0, echo=True)) == PROMPT


# What the server says of itself


def test_info_and_models_say_what_the_model_is(
    client: httpx.Client, tiny_bart: FrozenModel
) -> None:
    info = client.get("/info").json()
    assert (info["model_id"], info["family"]) == (BASE, "bart")
    assert (info["source_limit"], info["context_limit"]) == (CONTEXT, CONTEXT)
    assert (info["max_input_length"], info["max_total_tokens"]) == (CONTEXT, CONTEXT)
    assert info["modules"] == {
        "decoder": {"layers": 2, "kv_heads": 4, "head_dim": 8},
        "encoder": {"layers": 3, "kv_heads": 2, "head_dim": 16},
        "cross": {"layers": 2, "kv_heads": 4, "head_dim": 8},
    }
    assert info["base_fingerprint"] == tiny_bart.spec.fingerprint
    for model in client.get("/v1/models").json()["data"]:
        assert model["max_model_len"] == CONTEXT
