"""The official `openai` client against the server: what it sends is understood, and it back."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.types import Completion
from openai.types.completion_choice import CompletionChoice, Logprobs

from app.prefix.prefix import Prefix
from tests.api.helpers import BASE, LETTERS, NO_END, letter_bias
from tests.server import RunningServer


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, prompt: object = "the", **fields: object) -> Completion:
    asked = {"model": BASE, "temperature": 0, "max_tokens": 8, "logit_bias": NO_END, **fields}
    return client.completions.create(prompt=prompt, **asked)


def stream(client: openai.OpenAI, prompt: object = "the", **fields: object) -> list[Completion]:
    return list(complete(client, prompt, stream=True, **fields))


def joined(chunks: list[Completion], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.text for choice in choices)


def reasons(chunks: list[Completion]) -> list[str]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return [choice.finish_reason for choice in choices if choice.finish_reason]


# Whole and streamed


def test_a_completion_has_openais_shape(client: openai.OpenAI) -> None:
    reply = complete(client, "the cat", model="tone")
    assert reply.id.startswith("cmpl-")
    assert (reply.object, reply.model) == ("text_completion", "tone")
    assert reply.created > 1_700_000_000
    assert reply.system_fingerprint
    [choice] = reply.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.text
    assert reply.usage
    assert reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8


def test_a_stream_says_the_same_as_a_whole_reply(client: openai.OpenAI) -> None:
    chunks = stream(client, model="tone")
    assert joined(chunks) == complete(client, model="tone").choices[0].text
    assert reasons(chunks) == ["length"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)


def test_the_usage_comes_in_a_last_chunk_without_choices(client: openai.OpenAI) -> None:
    *others, last = stream(client, stream_options={"include_usage": True})
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in others)
    assert last.choices == []
    assert last.usage == complete(client).usage


def test_the_last_chunk_of_a_stream_has_its_times(client: openai.OpenAI) -> None:
    for options in ({"include_usage": True}, {"include_usage": False}):
        *others, last = stream(client, stream_options=options)
        times = (last.model_extra or {})["timings"]
        assert 0 <= times["queue_time"] < times["time_to_first_token"] < times["total_time"]
        assert all("timings" not in (chunk.model_extra or {}) for chunk in others)


# Several choices


def test_n_gives_different_samples_in_order(client: openai.OpenAI) -> None:
    reply = complete(client, n=4, temperature=1.0, seed=7)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in reply.choices}) > 1
    assert reply.usage
    assert reply.usage.completion_tokens == 4 * 8


def test_a_stream_of_n_carries_the_same_samples(client: openai.OpenAI) -> None:
    whole = complete(client, n=3, temperature=1.0, seed=7)
    chunks = stream(client, n=3, temperature=1.0, seed=7)
    assert [joined(chunks, index) for index in range(3)] == [c.text for c in whole.choices]
    assert reasons(chunks) == ["length"] * 3


def test_best_of_returns_the_most_probable_of_its_samples(client: openai.OpenAI) -> None:
    asked = {"temperature": 1.0, "seed": 3, "logprobs": 0}
    every = complete(client, n=5, **asked).choices
    best = complete(client, n=2, best_of=5, **asked)
    ranked = sorted(every, key=lambda choice: -sum(choice.logprobs.token_logprobs))
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage
    assert best.usage.completion_tokens == 5 * 8


def test_best_of_ranks_without_showing_logprobs_nobody_asked_for(client: openai.OpenAI) -> None:
    [choice] = complete(client, best_of=3, temperature=1.0).choices
    assert choice.logprobs is None


@pytest.mark.parametrize(
    "fields", [{"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}], ids=["too few", "streamed"]
)
def test_an_impossible_best_of_is_refused(client: openai.OpenAI, fields: dict[str, int]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **fields)
    assert caught.value.param == "best_of"


# Log-probabilities


def check_logprobs(choice: CompletionChoice, num_tokens: int) -> Logprobs:
    """Equal lengths, and each offset where the token begins in the text that is returned."""
    scores = choice.logprobs
    assert scores
    assert scores.text_offset == sorted(scores.text_offset)
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text.startswith(token, offset)
    assert len(scores.tokens) == len(scores.token_logprobs) == num_tokens
    return scores


def test_logprobs_name_the_alternatives_of_every_token(client: openai.OpenAI) -> None:
    [choice] = complete(client, logprobs=3).choices
    scores = check_logprobs(choice, 8)
    for token, logprob, top in zip(
        scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True
    ):
        assert logprob <= 0
        assert top[token] == max(top.values()) == logprob
        assert len(top) <= 3


def test_the_chosen_token_is_named_even_if_it_is_not_among_the_best(
    client: openai.OpenAI, server: RunningServer
) -> None:
    bias = letter_bias(server.services)
    [choice] = complete(client, logprobs=1, logit_bias=bias, max_tokens=16).choices
    scores = check_logprobs(choice, 16)
    assert "".join(scores.tokens) == choice.text
    assert all(token in top for token, top in zip(scores.tokens, scores.top_logprobs, strict=True))
    assert max(len(top) for top in scores.top_logprobs) == 2


def test_logprobs_zero_scores_the_chosen_tokens_alone(client: openai.OpenAI) -> None:
    [choice] = complete(client, logprobs=0).choices
    assert check_logprobs(choice, 8).top_logprobs is None


def test_streamed_logprobs_join_to_the_whole_ones(client: openai.OpenAI) -> None:
    fields = {"logprobs": 2, "echo": True, "prompt": "the cat sat"}
    [whole] = complete(client, **fields).choices
    parts = [chunk.choices[0].logprobs for chunk in stream(client, **fields)]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        pieces = [getattr(part, name) for part in parts if part]
        assert [item for piece in pieces for item in piece] == getattr(whole.logprobs, name)


def test_echo_puts_the_prompt_first_with_its_scores(client: openai.OpenAI) -> None:
    prompt = "the quick brown fox"
    reply = complete(client, prompt, echo=True, logprobs=1)
    [choice] = reply.choices
    assert reply.usage
    scores = check_logprobs(choice, reply.usage.total_tokens)
    assert choice.text.startswith(prompt)
    assert "".join(scores.tokens[: reply.usage.prompt_tokens]) == prompt
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in scores.token_logprobs[1:])


def test_echoed_text_scores_as_it_did_when_it_was_generated(
    client: openai.OpenAI, server: RunningServer
) -> None:
    bias = letter_bias(server.services)
    [made] = complete(client, [5, 6], logprobs=0, logit_bias=bias).choices
    ids = [5, 6, *(server.services.model.text.encode(letter)[0] for letter in made.text)]
    [echoed] = complete(client, ids, echo=True, logprobs=0, max_tokens=0).choices
    assert echoed.logprobs.token_logprobs[2:] == pytest.approx(
        made.logprobs.token_logprobs, abs=1e-4
    )


# Ends


def test_a_stop_string_across_tokens_ends_the_text_before_it(
    client: openai.OpenAI, server: RunningServer
) -> None:
    fields = {"logit_bias": letter_bias(server.services), "max_tokens": 24}
    [free] = complete(client, **fields).choices
    assert set(free.text) <= set(LETTERS)
    stop = free.text[9:12]
    cut = free.text[: free.text.index(stop)]
    for given in (stop, [stop], ["ZZZ", stop]):
        [choice] = complete(client, stop=given, **fields).choices
        assert (choice.text, choice.finish_reason) == (cut, "stop")
        chunks = stream(client, stop=given, **fields)
        assert (joined(chunks), reasons(chunks)) == (cut, ["stop"])


def test_the_first_of_several_stop_strings_counts(
    client: openai.OpenAI, server: RunningServer
) -> None:
    fields = {"logit_bias": letter_bias(server.services), "max_tokens": 12}
    [free] = complete(client, **fields).choices
    late, early = free.text[7:10], free.text[3:5]
    [choice] = complete(client, stop=[late, early], **fields).choices
    assert choice.text == free.text[: free.text.index(early)]


def test_more_than_four_stop_strings_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, stop=["a", "b", "c", "d", "e"])
    assert caught.value.param == "stop"


# Sampling


def test_a_seed_makes_a_sample_reproducible(client: openai.OpenAI) -> None:
    texts = [
        complete(client, temperature=1.0, seed=seed, max_tokens=16).choices[0].text
        for seed in (11, 11, 12)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_samples_differ(client: openai.OpenAI) -> None:
    texts = {complete(client, temperature=1.0, max_tokens=16).choices[0].text for _ in range(3)}
    assert len(texts) > 1


def test_logit_bias_forces_and_bans_tokens(client: openai.OpenAI, server: RunningServer) -> None:
    letter, *_ = server.services.model.text.encode("q")
    assert complete(client, logit_bias={str(letter): 100}).choices[0].text == "q" * 8
    forced = complete(client, logit_bias={"0": 100})
    assert (forced.choices[0].text, forced.choices[0].finish_reason) == ("", "stop")
    banned = complete(client, logit_bias={"0": -100}, max_tokens=100)
    assert banned.choices[0].finish_reason == "length"


@pytest.mark.parametrize("key", ["q", "-1", "99999", "²"])
def test_a_logit_bias_for_what_is_no_token_is_refused(client: openai.OpenAI, key: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, logit_bias={key: 1})
    assert caught.value.param == "logit_bias"


def test_a_user_may_be_named(client: openai.OpenAI) -> None:
    assert complete(client, user="user-17").choices[0].text == complete(client).choices[0].text


# Prompts


def test_a_list_of_prompts_is_answered_in_order(client: openai.OpenAI) -> None:
    prompts = ["the quick", "brown", "the cat sat on"]
    reply = complete(client, prompts, n=2)
    alone = [complete(client, prompt).choices[0].text for prompt in prompts]
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert [choice.text for choice in reply.choices[::2]] == alone
    assert [choice.text for choice in reply.choices[1::2]] == alone
    chunks = stream(client, prompts, n=2)
    assert [joined(chunks, index) for index in range(6)] == [c.text for c in reply.choices]


def test_token_ids_stand_for_their_text(client: openai.OpenAI, server: RunningServer) -> None:
    ids = server.services.model.text.encode("the lazy dog")
    expected = complete(client, "the lazy dog").choices[0].text
    assert complete(client, ids).choices[0].text == expected
    assert [choice.text for choice in complete(client, [ids, ids]).choices] == [expected] * 2


# Models


def test_models_are_the_base_and_the_prefixes(
    client: openai.OpenAI, prefixes: dict[str, Prefix]
) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids[0] == BASE
    assert set(prefixes) <= set(ids)


def test_a_model_is_retrieved_by_every_form_of_its_name(
    client: openai.OpenAI, prefixes: dict[str, Prefix]
) -> None:
    digest = prefixes["tone"].digest
    for name in (BASE, "tone", "tone@latest", f"tone@{digest[:8]}", "tone+voice", "demo/tone"):
        model = client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")


def test_deleting_a_model_deletes_the_prefix(
    client: openai.OpenAI, server: RunningServer, prefixes: dict[str, Prefix]
) -> None:
    server.push("fleeting", prefixes["voice"])
    complete(client, model="fleeting")
    deleted = client.models.delete("fleeting")
    assert (deleted.id, deleted.deleted) == ("fleeting", True)
    with pytest.raises(openai.NotFoundError):
        complete(client, model="fleeting")
    with pytest.raises(openai.NotFoundError):
        client.models.delete("fleeting")


# Errors


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "prefix_not_found"),
        ({"model": "No Such!"}, openai.NotFoundError, "prefix_not_found"),
        ({"max_tokens": 1000}, openai.BadRequestError, "context_length_exceeded"),
        ({"suffix": "end"}, openai.BadRequestError, "invalid_value"),
        ({"prompt": ""}, openai.BadRequestError, "invalid_value"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        ({"prompt": []}, openai.BadRequestError, "invalid_value"),
        ({"logprobs": 6}, openai.BadRequestError, "invalid_value"),
        ({"stream": True, "model": "nobody"}, openai.NotFoundError, "prefix_not_found"),
        ({"stream": True, "max_tokens": 1000}, openai.BadRequestError, "context_length_exceeded"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict | str) else "",
)
def test_refusals_are_the_clients_own_exceptions(
    client: openai.OpenAI, fields: dict[str, object], kind: type[openai.APIError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        complete(client, **fields)
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]


def test_a_timeout_is_a_server_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        complete(client, extra_body={"timeout": 0.000001})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


def test_an_unknown_model_cannot_be_retrieved(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "prefix_not_found"


def test_the_base_model_cannot_be_deleted(client: openai.OpenAI) -> None:
    with pytest.raises(openai.ConflictError):
        client.models.delete(BASE)
