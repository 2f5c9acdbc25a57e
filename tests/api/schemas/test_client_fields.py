"""What other servers' clients send: taken where it means nothing, else refused in words."""

from __future__ import annotations

import httpx
import pytest

from app.api.schemas.client_fields import IGNORED, NEUTRAL_COMPLETION
from tests.api.helpers import BASE, END, complete, error_of, text_of

PROMPT = "the quick"


def message_of(reply: httpx.Response, status: int = 400) -> str:
    assert reply.status_code == status, reply.text
    error = error_of(reply)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    return str(error["message"])


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("tempratur", "temperature"),
        ("num_beam", "num_beams"),
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("topp", "top_p"),
        ("stops", "stop"),
        ("Seed", "seed"),
        ("logprob", "logprobs"),
        ("prompts", "prompt"),
    ],
)
def test_a_misspelled_field_is_named_with_the_one_that_was_meant(
    field: str, meant: str, client: httpx.Client
) -> None:
    reply = complete(client, **{field: None})
    said = message_of(reply)
    assert said == f"unknown field '{field}': did you mean '{meant}'?"
    assert error_of(reply)["param"] == field


@pytest.mark.parametrize(
    "field",
    [
        *("response_format", "guided_json", "guided_regex", "structured_outputs", "tools"),
        *("stop_token_ids", "adapter_id", "lora_request", "use_beam_search", "ignore_eos"),
        *("messages", "inputs", "parameters", "do_sample", "max_new_tokens", "foo", "x" * 500),
        *("max_completion_tokens", "bad_words", "skip_special_tokens", "prompt_logprobs"),
    ],
)
def test_what_would_change_the_text_is_refused_by_name(field: str, client: httpx.Client) -> None:
    said = message_of(complete(client, **{field: {"type": "json_object"}}))
    assert field[:60] in said
    assert len(said) < 400


def test_an_adapter_is_named_as_the_model(client: httpx.Client) -> None:
    assert "name the prefix in model" in message_of(complete(client, adapter_id="tone"))


def test_fields_that_mean_nothing_and_values_that_ask_for_nothing_change_nothing(
    client: httpx.Client,
) -> None:
    expected = text_of(complete(client, PROMPT))
    anything = {name: {"any": ["thing", 1]} for name in IGNORED}
    assert text_of(complete(client, PROMPT, **anything)) == expected
    for position in range(3):
        neutral = {
            name: (None, *values)[position % (1 + len(values))]
            for name, values in NEUTRAL_COMPLETION.items()
        }
        assert text_of(complete(client, PROMPT, **neutral)) == expected


def test_true_is_not_the_one_that_asks_for_nothing(client: httpx.Client) -> None:
    assert "typical_p" in message_of(complete(client, typical_p=True))
    assert complete(client, typical_p=1.0).status_code == 200


def test_values_that_peers_send_by_default_mean_what_they_mean_there(client: httpx.Client) -> None:
    expected = text_of(complete(client, PROMPT))
    assert text_of(complete(client, PROMPT, top_k=-1)) == expected
    assert text_of(complete(client, PROMPT, top_k=0, min_p=0.0, top_p=1)) == expected
    assert text_of(complete(client, PROMPT, temperature=1.5, top_p=0)) == expected
    sampled = {"temperature": 1.0, "seed": 4}
    drawn = text_of(complete(client, PROMPT, **sampled))
    assert text_of(complete(client, PROMPT, **sampled, top_k=-1)) == drawn
    beams = {"num_beams": 3, "length_penalty": 1.0}
    found = text_of(complete(client, PROMPT, **beams))
    assert text_of(complete(client, PROMPT, **beams, top_p=0, top_k=-1)) == found


def test_top_p_0_is_greedy_for_tgi_too(client: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    expected = client.post("/generate", json=body).json()["generated_text"]
    body["parameters"] |= {"top_p": 0, "do_sample": True, "top_k": -1, "typical_p": 1.0}
    reply = client.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["generated_text"] == expected


@pytest.mark.parametrize("given", [{}, {"prompt": None}], ids=str)
def test_without_a_prompt_the_model_begins_a_new_document(
    given: dict[str, object], client: httpx.Client
) -> None:
    body = {"model": BASE, "temperature": 0, "max_tokens": 8}
    reply = client.post("/v1/completions", json={**body, **given})
    assert text_of(reply) == text_of(complete(client, [END]))
    assert reply.json()["usage"]["prompt_tokens"] == 1


# Messages


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stop": list("abcde")}, "stop: at most 4 stop strings are taken; there are 5"),
        ({"prompt": []}, "prompt: give at least one prompt"),
        ({"prompt": ["a", 5]}, "prompt: prompt[0] is a text and prompt[1] is 5; "),
        ({"prompt": [1, 2, "x"]}, "prompt: prompt[2] is 'x'; a token id is a whole number"),
        ({"prompt": [[1], [2, None]]}, "prompt: prompt[1][1] is null; a token id is"),
        ({"prompt": [[1], []]}, "prompt: prompt[1] has no token ids; give at least one"),
        ({"prompt": {"a": 1}}, "prompt: give a text, a list of texts, "),
        ({"model": ""}, "model: name a model or a prefix; GET /v1/models lists them"),
        ({"temperature": 3}, "temperature: takes 2 at most; 3 is too much"),
        ({"n": 1.5}, "n: takes a whole number, not 1.5"),
        ({"echo": "yes"}, "echo: takes true or false, not 'yes'"),
        ({"logprobs": True}, "logprobs: takes a whole number, not true"),
        ({"early_stopping": "x"}, "early_stopping: takes true, false or 'never', not 'x'"),
        ({"prefixes": ["a"] * 9}, "prefixes: takes at most 8 items; there are 9"),
        (
            {"logit_bias": dict.fromkeys(map(str, range(2000)), 1)},
            "logit_bias: at most 1024 token ids are taken",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_message_says_what_is_taken_and_what_came(
    fields: dict[str, object], said: str, client: httpx.Client
) -> None:
    assert message_of(complete(client, **fields)).startswith(said)


def test_ids_that_the_model_has_not_are_named_with_those_it_has(client: httpx.Client) -> None:
    beyond = message_of(complete(client, [10**9]))
    assert beyond.startswith("prompt: token ids of this model are 0 to ")
    said = message_of(complete(client, [1, 2, -5]))
    assert said.endswith("; prompt[2] is -5")
    assert message_of(complete(client, [[1], [2, -5]])).endswith("; prompt[1][1] is -5")
    assert message_of(complete(client, [10**4000])).endswith("is a number of many digits")


def test_no_model_at_all_is_told_where_models_are_listed(client: httpx.Client) -> None:
    reply = client.post("/v1/completions", json={"prompt": "a"})
    assert message_of(reply) == "model: name a model or a prefix; GET /v1/models lists them"


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5", "meta-llama/Llama-3.1-8B", "GPT-4", "a b/c"])
def test_another_servers_model_does_not_exist_here(model: str, client: httpx.Client) -> None:
    replies = [
        complete(client, model=model),
        complete(client, prefixes=[model]),
        client.get(f"/v1/models/{model}"),
        client.post("/tokenize", json={"inputs": "a", "model": model}),
    ]
    for reply in replies:
        assert (reply.status_code, error_of(reply)["code"]) == (404, "prefix_not_found")
        assert repr(BASE) in error_of(reply)["message"]


# The tokenizer's and TGI's routes


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tokenize", {"text": "a"}, "unknown field 'text': give prompt"),
        ("/tokenize", {"promt": "a"}, "unknown field 'promt': did you mean 'prompt'?"),
        ("/detokenize", {"tokens": [1], "token": 1}, "unknown field 'token': did you mean"),
        ("/detokenize", {"tokens": [5, -1]}, "tokens: token ids are 0 or more; tokens[1] is -1"),
        ("/generate", {"inputs": "a", "parameters": {"num_beam": 2}}, "parameters.unknown field"),
        ("/generate", {"inputs": "a", "prompt": "a"}, "unknown field 'prompt': give inputs"),
        ("/generate", {"inputs": "a", "stream": True}, "stream is not supported; it may be left"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_other_routes_refuse_unknown_fields_too(
    path: str, body: dict[str, object], said: str, client: httpx.Client
) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert (error if isinstance(error, str) else error["message"]).startswith(said)


def test_bodies_of_vllms_and_tgis_clients_are_taken(client: httpx.Client) -> None:
    bodies = {
        "/tokenize": {"model": BASE, "prompt": "a", "return_token_strs": False},
        "/detokenize": {"model": BASE, "tokens": [5]},
        "/generate": {"inputs": "a", "stream": False, "parameters": {"max_new_tokens": 1}},
        "/generate_stream": {"inputs": "a", "stream": True, "parameters": {"max_new_tokens": 1}},
    }
    for path, body in bodies.items():
        assert client.post(path, json=body).status_code == 200, path


@pytest.mark.parametrize("name", ["output", "target", "targets"])
def test_examples_call_the_right_output_as_training_data_do(
    name: str, client: httpx.Client
) -> None:
    for value in ("cat", ["cat", "dog"]):
        examples = [{"input": "the", name: value}]
        body = {"examples": examples, "metrics": ["loss"]}
        reply = client.post("/v1/prefixes/tone/evaluate", json=body)
        assert reply.status_code == 200, reply.text
        expected = {"examples": [{"input": "the", "output": value}], "metrics": ["loss"]}
        scores = client.post("/v1/prefixes/tone/evaluate", json=expected).json()["scores"]
        assert reply.json()["scores"] == scores
    both = [{"input": "the", "output": "cat", "target": "cat"}]
    refused = client.post("/v1/prefixes/tone/evaluate", json={"examples": both})
    assert "give one of output, target, targets" in error_of(refused)["message"]
